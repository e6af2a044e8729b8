"""How much a document is like those of curated sets: a classifier gives a score between 0 and 1, and a rule decides."""
