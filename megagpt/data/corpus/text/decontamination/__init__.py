"""Text of the evaluations is cut out of a corpus, and evaluations lose what a corpus has: GPT-3's appendix C."""
