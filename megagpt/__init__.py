"""megagpt trains the ChatGPT family on Megatron-Core and DeepSpeed, from one laptop core to a thousand GPUs."""

__version__ = "0.1.0"
