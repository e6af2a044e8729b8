"""Task files of lm-eval (*.yaml) for data sets in a folder, and the functions that they name.

Which tasks there are, and where their data lies: docs/in_context_tasks.md.
"""
