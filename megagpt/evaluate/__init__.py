"""Judging a trained model, and reporting a run."""
