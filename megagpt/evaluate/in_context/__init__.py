"""Tasks that a model does from its prompt: zero-, one- and few-shot, by lm-eval's protocol or by that of GPT-3."""
