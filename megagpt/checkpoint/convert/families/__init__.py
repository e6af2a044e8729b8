"""Families of transformers' models: each file says how one of them, or a few alike, is read and written."""
