"""The transformer on Megatron-Core, its losses, and generation."""
