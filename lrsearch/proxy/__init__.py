"""Data, calibration, finetuning, scoring."""
