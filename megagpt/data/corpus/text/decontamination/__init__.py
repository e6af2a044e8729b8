"""Cut text of evaluations out of a corpus, and find clean examples of evaluations (arXiv 2005.14165, appendix C)."""
