"""Corpora of text: from crawls, dumps, books and lists of links to filtered, deduplicated documents."""
