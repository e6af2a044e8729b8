"""Corpora to pretrain on: from folders, archives, crawls, dumps and books to filtered, deduplicated jsonl.

`code` and `text` make the two kinds of corpora. `executors` runs their chains of datatrove pipelines, on this machine
or a cluster. Both kinds use `shards`, `grams`, `redaction` and `tally`.
"""
