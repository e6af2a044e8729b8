"""Held-out evaluation against a plain sum over the documents, in every layout, and against gzip and xz themselves."""

import math
import subprocess

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.evaluate.held_out import compressed_bits_per_byte
from megagpt.train.metrics import perplexity


def _evaluate(overrides: list[str]) -> tuple[dict, float, int]:
    """What `evaluate` says on two layouts' worth of ranks, and the loss and bytes counted by hand from the logits."""
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.data.loader import PretrainLoader
    from megagpt.evaluate.held_out import evaluate
    from megagpt.parallel import launch
    from megagpt.parallel.megatron import MegatronEngine
    from megagpt.train.objectives import LanguageModelObjective

    config = load(overrides)
    launch.initialize(config.parallel, config.seed)
    loader, engine = PretrainLoader(config), MegatronEngine(config, LanguageModelObjective(), training=False)
    values = evaluate(engine, loader, "validation", None)
    total, length = 0.0, config.model.sequence_length
    text = loader.held_out_text("validation")
    if engine.dims.world_size == 1:
        corpus = loader.corpora["validation"][0]
        tokens = np.concatenate([[loader.tokenizer.end_of_text_id], corpus.read(0, corpus.num_tokens)])
        for start in range(0, len(tokens) - 1, length):
            window = torch.from_numpy(tokens[start : start + length + 1]).long()[None]
            positions = torch.arange(window.shape[1] - 1)[None]
            with torch.no_grad():
                logits = engine.modules[0].eval()(window[:, :-1], positions, None)[0, :, : config.model.vocab_size]
            total += torch.nn.functional.cross_entropy(logits.double(), window[0, 1:], reduction="sum").item()
    parallel_state.destroy_model_parallel()
    return values, total, len(text)


def test_equals_a_sum_by_hand(overrides):
    ((values, total, size),) = run_distributed(_evaluate, 1, overrides)
    assert values["bytes"] == size
    assert values["loss"] == pytest.approx(total / values["tokens"], rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
    assert values["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    interleaved = ["parallel.pipeline_parallel_size=2", "parallel.virtual_pipeline_size=2"]
    for other, _, _ in run_distributed(_evaluate, 2, [*overrides, *interleaved]):
        assert other == pytest.approx(values, rel=1e-5)


def test_a_perplexity_beyond_numbers_is_none_of_them():
    assert perplexity(700.0) == pytest.approx(math.exp(700))
    assert perplexity(800.0) == math.inf  # null in evaluation.json


@pytest.mark.parametrize(("command", "name"), [(["gzip", "-9", "-n"], "gzip_9"), (["xz", "-9"], "xz_9")])
def test_compressors_are_the_command_lines(command, name):
    text = b"to be or not to be " * 1000 + bytes(range(256))
    try:
        size = len(subprocess.run([*command, "--stdout"], input=text, capture_output=True, check=True).stdout)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    assert compressed_bits_per_byte(text)[f"{name}_bits_per_byte"] == pytest.approx(8 * size / len(text), rel=0.01)
