"""Frozen plain data: no torch, no Optuna."""
