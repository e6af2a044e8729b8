"""The rules that drop or edit texts, one module for each publication.

A rule takes an `Analysis` and returns the reason to drop the text, or None; an edit also returns the remaining text.
Neither has side effects, reads files, or depends on earlier texts.
"""
