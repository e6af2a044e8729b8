"""Task files in lm-eval's format (*.yaml) for data sets in a folder, and the functions that they call.

docs/in_context_tasks.md lists the tasks and the locations of their data.
"""
