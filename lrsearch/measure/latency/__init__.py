"""How long layers and models take on a backend, in milliseconds."""
