"""An OpenAI-compatible server for checkpoints of megagpt, and a page to talk to them."""
