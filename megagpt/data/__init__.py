"""From raw text to batches: tokenizer, corpora, packed samples, loaders."""
