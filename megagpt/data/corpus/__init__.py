"""A corpus of source code: from folders, archives and git checkouts to filtered, deduplicated jsonl.

sources and archives list and read files; file_filter puts each through languages, rules, licences, contamination and
redaction; steps and build run that, and datatrove's MinHash, as datatrove pipelines; tally and report say what
became of every file.
"""
