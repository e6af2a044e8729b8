"""An OpenAI-compatible server for megagpt's checkpoints, with a web page to use them."""
