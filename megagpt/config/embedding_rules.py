"""Rules of stage embed. See `rules.py`."""

from collections.abc import Iterator

from megagpt.config.schema import Config


def lengths_fit_the_context(config: Config, world_size: int) -> Iterator[str]:
    """A text is at most as long as the context."""
    tokens, length = config.embed.max_tokens, config.model.sequence_length
    if config.stage.name == "embed" and tokens is not None and tokens > length:
        yield (
            f"embed.max_tokens ({tokens}) is above model.sequence_length ({length}): lower it, or set it to null for"
            " the whole context"
        )


def dimensions_are_beginnings(config: Config, world_size: int) -> Iterator[str]:
    """Matryoshka's vectors are the leading dimensions of the whole vector, so they are shorter."""
    if config.stage.name != "embed":
        return
    size, lengths = config.model.hidden_size, config.embed.dimensions
    if len(set(lengths)) < len(lengths):
        yield f"embed.dimensions ({', '.join(map(str, lengths))}) has a length twice: name each once"
    for length in lengths:
        if not 0 < length < size:
            yield (
                f"embed.dimensions ({length}) must be above 0 and below model.hidden_size ({size}), whose whole vector"
                " is always learned"
            )


def embeddings_have_no_ramp(config: Config, world_size: int) -> Iterator[str]:
    """A batch is drawn as a whole, so that no document is in it twice; its size is therefore constant."""
    if config.stage.name == "embed" and config.optim.ramp_start is not None:
        yield (
            f"optim.ramp_start ({config.optim.ramp_start}) lets the batch grow, but stage.name is embed, whose batches"
            " are drawn as a whole: set optim.ramp_start=null"
        )


def temperature_is_allowed(config: Config, world_size: int) -> Iterator[str]:
    """A learned temperature begins within its range."""
    embed = config.embed
    if config.stage.name == "embed" and embed.learn_temperature and embed.temperature < embed.min_temperature:
        yield (
            f"embed.temperature ({embed.temperature:g}) is below embed.min_temperature ({embed.min_temperature:g}):"
            " raise the first or lower the second"
        )


def spikes_are_not_skipped(config: Config, world_size: int) -> Iterator[str]:
    """Samples skipped after a spike would break up batches, which are drawn as a whole."""
    if config.stage.name == "embed" and config.reliability.spike_threshold:
        yield (
            f"reliability.spike_threshold ({config.reliability.spike_threshold:g}) leaves samples out, but stage.name"
            " is embed, whose batches are drawn as a whole: set reliability.spike_threshold=0"
        )


EMBEDDING_RULES = (
    lengths_fit_the_context,
    dimensions_are_beginnings,
    embeddings_have_no_ramp,
    temperature_is_allowed,
    spikes_are_not_skipped,
)
"""The rules of stage embed."""
