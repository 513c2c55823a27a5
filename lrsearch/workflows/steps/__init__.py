"""The steps of the commands, on a model and examples that are at hand."""
