"""What the user brings: data, model, metric."""
