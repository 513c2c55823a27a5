"""What users call: a module per command, each with the one function that the command line and Python call."""
