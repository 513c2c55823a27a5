"""A study on disk: its folder, trials, workers, and the loop that evaluates plans."""
