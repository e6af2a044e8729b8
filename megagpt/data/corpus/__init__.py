"""Corpora to pretrain on: from folders, archives, crawls, dumps and books to filtered, deduplicated jsonl.

code and text hold what each kind is made by. executors runs their chains of datatrove pipelines, on this machine or a
cluster; shards, grams, redaction and tally are what both use.
"""
