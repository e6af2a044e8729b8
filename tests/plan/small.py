"""Overrides of small models for plans and traces."""

GPT3 = [
    "model=gpt3",
    "model.num_layers=4",
    "model.hidden_size=512",
    "model.num_attention_heads=8",
    "model.sequence_length=512",
    "model.vocab_size=4000",
    "optim.global_batch_size=16",
    "optim.ramp_start=null",
    "optim.ramp_tokens=0",
]
EMBED = [*GPT3, "stage=embed", "checkpoint.load=runs/other", "data.pairs=[a.jsonl]", "embed.max_tokens=128"]
