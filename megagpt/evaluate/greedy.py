"""Responses by greedy decoding, with a progress bar."""

from collections.abc import Sequence

from megagpt.log import progress
from megagpt.model.generation import GenerationConfig, Generator


def greedy_responses(
    generator: Generator, prompts: Sequence[Sequence[int]], max_new_tokens: int, unit: str, label: str
) -> list[str]:
    """The model's response to each prompt, token ids. `unit` and `label` are of the progress bar."""
    settings = GenerationConfig(max_new_tokens=max_new_tokens, temperature=0)
    responses: list[str] = []
    with progress(len(prompts), unit, label) as bar:
        for start in range(0, len(prompts), generator.batch_size):
            chosen = prompts[start : start + generator.batch_size]
            responses += [generator.tokenizer.without_start(one.text) for one in generator.generate(chosen, settings)]
            bar.update(len(chosen))
    return responses
