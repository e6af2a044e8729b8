"""Corpora of source code: from folders, archives and git checkouts.

`sources` and `archives` list and read files. `file_filter` checks each file by `languages`, `rules`, `licences` and
`contamination`, and redacts it. `steps`, `phases` and `build` run this and the search for duplicates as datatrove
pipelines. `report` counts kept and dropped files by rule.
"""
