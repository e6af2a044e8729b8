"""The rules by which texts are kept, one module for each publication.

A rule looks at an `Analysis` and returns the reason to drop the text, or None; an edit also returns the text that is
left. Neither changes anything, reads a file, or depends on texts seen before.
"""
