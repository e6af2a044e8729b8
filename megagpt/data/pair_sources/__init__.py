"""Where pairs of texts for contrastive training come from: text, source code, and labelled sets.

Each source yields `FoundPair`s and counts what it leaves out in a `Tally`; `make` drops duplicates, splits and samples.
"""
