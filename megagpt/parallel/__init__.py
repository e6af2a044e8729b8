"""Process groups, running without CUDA, and the engines that execute a training step in any layout."""
