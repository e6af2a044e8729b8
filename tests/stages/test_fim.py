"""Stage code's figures of held-out lines before and after it: which files it writes, and what a resumed run keeps."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from dist import run_distributed

from megagpt.data.code_tokens import grow_for_code
from megagpt.data.indexed import write_corpus
from megagpt.data.tokenizer import train_tokenizer

STEPS, STOP, BATCH, LENGTH, CUTS = 12, 7, 8, 64, 6
BEFORE, AFTER = "evaluation_before.json", "evaluation.json"
FIGURES = {
    "fim_loss",
    "fim_middle_loss",
    "fim_exact_match",
    "left_to_right_loss",
    "left_to_right_exact_match",
}


def _run_in_turn(runs: list[list[str]]) -> list[dict]:
    """What the run folders hold after each of the runs."""
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.stages.session import run_stage

    results = []
    for overrides in runs:
        config = load(overrides)
        try:
            assert run_stage(config) == 0
        finally:
            parallel_state.destroy_model_parallel()
        folder = Path(config.run_dir)
        files = {name: (folder / name).read_text() for name in (BEFORE, AFTER) if (folder / name).exists()}
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        written = (folder / BEFORE).stat().st_mtime_ns if BEFORE in files else None
        figures = {name: json.loads(text) for name, text in files.items()}
        results.append({**figures, "losses": [json.loads(line)["loss"] for line in lines], "written": written})
    return results


@pytest.fixture(scope="module")
def runs(overrides, tmp_path_factory) -> dict[str, dict]:
    """Results of the runs by name."""
    folder, words = tmp_path_factory.mktemp("code"), random.Random(0)
    lines = ["to be or not", "    that is to be", "not that is or", "  be to that"]
    texts = ["\n".join([*words.choices(lines, k=30), ""]) for _ in range(120)]
    tokenizer = grow_for_code(train_tokenizer(texts, 280))
    tokenizer.save(folder / "tokenizer.json")
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in texts]
    lengths = np.array([len(document) for document in documents], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(folder / "text", [(lengths, np.concatenate(documents))], len(documents), about)
    base = [
        *overrides,
        f"runs_dir={folder}",
        f"model.vocab_size={tokenizer.vocab_size}",
        f"model.sequence_length={LENGTH}",
        f"data.tokenizer={folder}/tokenizer.json",
        "optim.lr=3e-3",
        f"data.corpora=[{{path: {folder}/text}}]",
        "optim.ramp_start=null",
        "optim.ramp_tokens=0",
        f"optim.global_batch_size={BATCH}",
        "data.fim_rate=0.9",
        f"stage.fim_cuts={CUTS}",
        f"optim.train_tokens={STEPS * BATCH * LENGTH}",
    ]
    code = [*base, "stage=code", f"stage.fim_cuts={CUTS}", f"checkpoint.load={folder}/base"]
    named = {
        "base": [*base, "data.fim_rate=0"],
        "infilling from scratch": [*base, "run_name=scratch"],
        "whole": [*code, "run_name=whole"],
        "not measured": [*code, "run_name=silent", "stage.fim_cuts=0"],
        "stopped": [*code, "run_name=parts", f"optim.train_tokens={STOP * BATCH * LENGTH}"],
        "resumed": [*code, "run_name=parts"],
    }
    named["base"].append("run_name=base")
    return dict(zip(named, run_distributed(_run_in_turn, 1, list(named.values()))[0], strict=True))


def test_figures_are_written_before_and_after(runs):
    before, after = runs["whole"][BEFORE], runs["whole"][AFTER]
    assert (before["step"], after["step"]) == (0, STEPS)
    assert FIGURES | {"loss", "bits_per_byte"} < set(before)
    assert before["fim_cuts"] == after["fim_cuts"] == CUTS
    assert after["fim_loss"] < before["fim_loss"] - 0.3
    # Before its first step the model is the one that was loaded, on the same documents.
    assert before["loss"] == pytest.approx(runs["base"][AFTER]["loss"], rel=1e-6)


def test_what_is_not_measured(runs):
    assert not FIGURES & set(runs["base"][AFTER])
    assert not FIGURES & set(runs["not measured"][AFTER])
    scratch = runs["infilling from scratch"]
    assert set(scratch[AFTER]) > FIGURES
    for name in ("base", "not measured", "infilling from scratch"):
        assert BEFORE not in runs[name]


def test_a_resumed_run_keeps_what_it_measured_before(runs):
    stopped, resumed = runs["stopped"], runs["resumed"]
    assert (resumed[BEFORE], resumed["written"]) == (stopped[BEFORE], stopped["written"])
    assert resumed[BEFORE] == runs["whole"][BEFORE]
    assert (stopped[AFTER]["step"], resumed[AFTER]["step"]) == (STOP, STEPS)
    assert resumed[AFTER] == runs["whole"][AFTER]


def test_measuring_changes_nothing_in_training(runs):
    assert len(runs["whole"]["losses"]) == STEPS
    assert runs["whole"]["losses"] == runs["not measured"]["losses"] == runs["resumed"]["losses"]
