"""Corpora of source code: from folders, archives and git checkouts.

sources and archives list and read files; file_filter puts each through languages, rules, licences, contamination and
redaction; steps, phases and build run that, and datatrove's MinHash, as datatrove pipelines; report says what became
of every file.
"""
