"""Conversion between megagpt's checkpoints and those of others."""
