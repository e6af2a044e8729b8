"""Conversion between megagpt's checkpoints and the formats of other frameworks."""
