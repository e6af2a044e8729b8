"""Prompts as a generative model reads them. This needs the tokenizer, not the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from megagpt.data.fim import fim_prompt
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError
from megagpt.model.generation_config import GenerationConfig


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts for one model, and checks what depends on its vocabulary."""

    tokenizer: Tokenizer
    window: int
    """Tokens of the model's context."""
    spm: bool
    """Whether the model was trained to fill in the middle in SPM order."""

    def encode(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        """Token ids of each prompt (a text or token ids); an empty prompt becomes the tokens that start a document.

        Raises DataError for a prompt that leaves no room in the context window or has an unknown token.
        """
        encoded = []
        for index, prompt in enumerate(prompts):
            tokens = (
                self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
            )
            tokens = tokens or self.tokenizer.encode_prompt("")
            if len(tokens) >= self.window:
                raise DataError(
                    f"prompt {index} has {len(tokens)} tokens, but the model's sequence_length of {self.window} takes "
                    f"at most {self.window - 1}, to leave room for a response: shorten it"
                )
            if not all(0 <= token < self.tokenizer.vocab_size for token in tokens):
                raise DataError(f"prompt {index} has a token that is not in 0..{self.tokenizer.vocab_size - 1}")
            encoded.append(tokens)
        return encoded

    def fim_prompt(self, prefix: str, suffix: str) -> list[int]:
        """Token ids of a prompt that makes the model write the text between `prefix` and `suffix`.

        The order is suffix, prefix, middle (SPM) if the model was trained on it. Raises DataError when the tokenizer
        has no tokens for fill-in-the-middle.
        """
        return fim_prompt(self.tokenizer, prefix, suffix, self.spm)

    def check_bias(self, settings: GenerationConfig) -> None:
        """Raises DataError for a bias on an unknown token."""
        for token, _ in settings.logit_bias:
            if not 0 <= token < self.tokenizer.vocab_size:
                raise DataError(f"logit_bias has token {token}, which is not in 0..{self.tokenizer.vocab_size - 1}")
