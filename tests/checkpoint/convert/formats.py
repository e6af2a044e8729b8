"""The formats that tests of broken files break."""

from megagpt.checkpoint.convert import deepspeed, deepspeed_universal, megatron, megatron_dist, native

FORMATS = {module.NAME: module.FORMAT for module in (native, megatron, megatron_dist, deepspeed, deepspeed_universal)}
