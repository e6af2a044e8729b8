"""The training loop's parts: trainer, objectives, schedules, metrics, signals and fault handling."""
