"""The transformer on Megatron-Core, its losses, and generation."""

from megagpt.model.megatron_import import import_megatron

import_megatron()
