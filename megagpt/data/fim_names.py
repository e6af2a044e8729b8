"""Names of the special tokens for filling in the middle, as published models have them."""

from typing import NamedTuple


class FimTokens(NamedTuple):
    """Before the prefix, before the middle, before the suffix, and padding if there is a token for it."""

    prefix: str
    middle: str
    suffix: str
    pad: str | None


OWN = FimTokens("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
"""As StarCoder and Megatron-LM name them."""
FIM_STYLES = (
    OWN,
    FimTokens("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),  # Qwen2.5-Coder, CodeGemma
    FimTokens("<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"),  # SantaCoder
    FimTokens("\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", None),  # CodeLlama
)
END_OF_MIDDLE = "\u2581<EOT>"
"""Ends what CodeLlama inserts; for others it is end-of-text."""
FIM_NAMES = frozenset(name for style in FIM_STYLES for name in style if name) | {END_OF_MIDDLE}
