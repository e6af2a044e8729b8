"""Classifiers that score from 0 to 1 how similar a document is to curated texts, and rules that keep by score."""
