"""Inputs of a corpus of text: crawls, dumps, books, articles.

`units` lists the files. `read` turns every record of a file into a Page or a Broken: `warc`, `records`, `files`, `dump`
with `wikitext`, and `epub` read the formats; `encodings` decodes, `gutenberg` cuts licences, and `links` selects pages
by score. `extract` turns HTML into text. Libraries that parse untrusted input run in `sandbox`, a process that may hang
or die.
"""
