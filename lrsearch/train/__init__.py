"""Finetuning, recovering, polishing, BatchNorm correction."""
