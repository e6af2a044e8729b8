"""Names of the special tokens of fill-in-the-middle in published models."""

from typing import NamedTuple


class FimTokens(NamedTuple):
    """Tokens before the prefix, before the middle and before the suffix, and the padding token if there is one."""

    prefix: str
    middle: str
    suffix: str
    pad: str | None


OWN = FimTokens("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
"""The names of StarCoder and Megatron-LM."""
FIM_STYLES = (
    OWN,
    FimTokens("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),  # Qwen2.5-Coder, CodeGemma
    FimTokens("<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"),  # SantaCoder
    FimTokens("\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", None),  # CodeLlama
)
END_OF_MIDDLE = "\u2581<EOT>"
"""CodeLlama's token for the end of the middle; other models use end-of-text."""
FIM_NAMES = frozenset(name for style in FIM_STYLES for name in style if name) | {END_OF_MIDDLE}
