"""Zero-, one- and few-shot evaluation of tasks, by lm-eval's protocol or GPT-3's."""
