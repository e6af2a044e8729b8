"""Synthetic edits whose right answers are known: training data for editing by instruction, as much as wanted.

`text.py` edits prose, `code.py` Python source, `bugs.py` puts mistakes into the functions of `functions.py`; `make.py`
draws from all of them.
"""
