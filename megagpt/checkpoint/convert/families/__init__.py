"""Families of transformers' models: each file reads and writes one family, or a few similar ones."""
