"""Duplicates among any number of documents: every task holds a range of hashes, or a shard, and never the corpus.

Whatever is compared (a URL, a text, a line, a bucket of MinHash) is a 64-bit hash, and shards write tables of hashes
that are sorted by them. A task reads its range of hashes from the tables of all shards, so that equal ones meet in one
task however many shards, ranges and workers there are. What it finds is again a table, sorted by place, of which each
shard reads its own part.
"""
