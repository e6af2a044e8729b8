"""Make pairs of texts for contrastive training from text, source code, and labelled sets.

Each source yields `FoundPair`s and counts omissions in a `Tally`. `make` drops duplicates, splits and samples.
"""
