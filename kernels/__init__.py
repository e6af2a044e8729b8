"""megagpt's kernels, one folder an op. Imported as `megagpt.kernels`; nothing here imports the rest of megagpt."""
