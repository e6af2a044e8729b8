"""Evaluates trained models, and writes reports of runs."""
