"""Synthetic edits with known right answers: training data for editing by instruction, in any amount.

`text.py` edits prose, `code.py` Python source, and `bugs.py` puts mistakes into the functions of `functions.py`.
`make.py` draws from all of them.
"""
