"""Plans, and what decides which to try; the only floor that imports Optuna."""
