"""Process groups, the launcher, Megatron-Core without CUDA, and the engines that execute training steps."""
