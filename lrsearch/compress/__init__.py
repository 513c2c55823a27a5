"""Weights → smaller weights."""
