"""Inputs of a corpus of text: crawls, dumps, books, articles.

units lists the files; read makes every record of one a Page or a Broken (warc, records, files, dump with wikitext, and
epub read the formats; encodings decodes, gutenberg cuts licences, links selects pages by score); extract makes text of
HTML. What strangers wrote and a library takes apart goes through sandbox, a process that may hang or die.
"""
