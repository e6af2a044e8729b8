"""Held-out infilling: cuts against the documents, losses against sums by hand, exact match of a model made to match."""

import importlib.util
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.data.code_tokens import grow_for_code
from megagpt.data.indexed import write_corpus
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import DataError

LAYOUTS = {
    "tp2": ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
    "pp2": ["parallel.pipeline_parallel_size=2", "parallel.virtual_pipeline_size=2"],
    "dp2": [],
}
if importlib.util.find_spec("deepspeed"):
    LAYOUTS |= {f"zero{stage}": ["parallel.engine=deepspeed", f"parallel.zero_stage={stage}"] for stage in (2, 3)}
COUNT = 13


def _text(number: int) -> str:
    words = random.Random(number)
    lines = [
        " " * words.choice([0, 4, 8]) + " ".join(words.choices(["to", "be", "or", "not"], k=words.randint(0, 4)))
        for _ in range(40)
    ]
    return "\n".join([f"é {number}", *lines, ""])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents with indented, empty and blank lines."""
    return [_text(number) for number in range(60)]


def _corpus(folder, tokenizer, texts: list[str], name: str) -> None:
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in texts]
    lengths = np.array([len(document) for document in documents], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(folder / name, [(lengths, np.concatenate(documents))], len(documents), about)


@pytest.fixture(scope="module")
def settings(overrides, texts, tmp_path_factory) -> list[str]:
    """Overrides of a tiny run on `texts`, with a tokenizer that knows infilling."""
    folder = tmp_path_factory.mktemp("infilling")
    tokenizer = grow_for_code(train_tokenizer(texts, 280))
    tokenizer.save(folder / "tokenizer.json")
    _corpus(folder, tokenizer, texts, "text")
    _corpus(folder, tokenizer, ["to be or not " * 20] * 30, "one_line")
    return [
        *overrides,
        f"model.vocab_size={tokenizer.vocab_size}",
        "model.sequence_length=64",
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.corpora=[{{path: {folder}/text}}]",
        "data.fim_rate=0.5",
        "stage.fim_cuts=4",
        "optim.ramp_start=null",
        "optim.ramp_tokens=0",
    ]


def _loader(settings: list[str]):
    from megagpt.config.load import load
    from megagpt.data.loader import PretrainLoader

    return PretrainLoader(load(settings))


def _cuts(loader, count: int = COUNT):
    from megagpt.evaluate.fim import held_out_cuts

    return held_out_cuts(loader, "validation", count)


def test_cuts_are_lines_of_held_out_documents(settings, texts):
    loader = _loader(settings)
    corpus, cuts = loader.corpora["validation"][0], _cuts(loader)
    held_out = [texts[number] for number in corpus.documents]
    assert 0 < len(held_out) < len(texts)
    assert len({(cut.prefix, cut.middle, cut.suffix) for cut in cuts}) == COUNT
    for cut in cuts:
        whole = cut.prefix + cut.middle + cut.suffix
        assert any(whole in text for text in held_out)
        assert cut.middle[0] == cut.suffix[0] == "\n"
        assert cut.middle.strip()
        assert "\n" not in cut.middle[1:]
        assert not cut.prefix.endswith(("\n", " "))
        parts = [loader.tokenizer.encode(part) for part in (cut.prefix, cut.middle, cut.suffix)]
        assert [token for part in parts for token in part] == loader.tokenizer.encode(whole)
        assert len(parts[1]) <= 64 // 8
        assert sum(map(len, parts)) + 4 <= 64


def test_cuts_depend_on_the_seed_alone(settings):
    cuts = _cuts(_loader(settings))
    assert _cuts(_loader(settings)) == cuts
    assert _cuts(_loader(settings), 5) == cuts[:5]
    assert _cuts(_loader([*settings, "seed=7"])) != cuts
    assert len({cut.spm for cut in cuts}) == 2
    for rate, spm in ((0, False), (1, True)):
        given = _cuts(_loader([*settings, f"data.fim_spm_rate={rate}"]))
        assert given == [replace(cut, spm=spm) for cut in cuts]


def test_fewer_cuts_than_asked_for_are_all_there_are(settings):
    cuts = _cuts(_loader(settings), 10_000)
    assert COUNT < len(cuts) < 10_000
    assert cuts[:COUNT] == _cuts(_loader(settings))


def test_documents_without_lines_are_refused(settings):
    one_line = next(text for text in settings if text.startswith("data.corpora") and "infilling" in text)
    with pytest.raises(DataError, match=r"no line to fill in.*stage\.fim_cuts=0"):
        _cuts(_loader([*settings, one_line.replace("/text}", "/one_line}")]))


def _sums_by_hand(model, tokenizer, cuts) -> dict[str, float]:
    """Mean losses from the logits of every text by itself."""
    names = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")
    before, middle, after = (tokenizer.special_ids[name] for name in names)
    losses: dict[str, list] = defaultdict(list)
    for cut in cuts:
        prefix, wanted, suffix = (tokenizer.encode(part) for part in (cut.prefix, cut.middle, cut.suffix))
        psm, spm = [before, *prefix, after, *suffix, middle], [before, after, *suffix, middle, *prefix]
        asked = {
            "fim_loss": (spm if cut.spm else psm, [*wanted, tokenizer.end_of_text_id]),
            "fim_middle_loss": (spm if cut.spm else psm, wanted),
            "left_to_right_loss": (prefix, wanted),
        }
        for name, (prompt, answer) in asked.items():
            tokens = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                logits = model.eval()(tokens[:, :-1], torch.arange(tokens.shape[1] - 1)[None], None)[0]
            logits = logits[len(prompt) - 1 :, : tokenizer.vocab_size].double()
            losses[name].append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none"))
    return {name: torch.cat(parts).mean().item() for name, parts in losses.items()}


def _always(engine, bias: np.ndarray | None, token: int) -> np.ndarray:
    """Make the model say `token` whatever it reads; returns the final norm's bias that does it, float32 [H]."""
    if bias is None:
        table = next(p for p in engine.shards(for_saving=False) if p.name == "model/embedding.word_embeddings.weight")
        bias = 1000 * table.data.detach().view(table.global_shape)[token].numpy().copy()
    for piece in engine.shards(for_saving=False):
        if piece.name == "model/decoder.final_layernorm.bias":
            piece.data.view(-1).copy_(torch.from_numpy(bias[slice(*piece.range)]))
    engine.post_load(0)
    return bias


def _measure(settings: list[str], tokens: dict[str, int], biases: dict[str, np.ndarray]) -> dict:
    """Figures of a model as it is initialised, and of ones that always say the same, in one layout."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.evaluate.fim import evaluate_fim
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective

    config, loader = load(settings), _loader(settings)
    launch.initialize(config.parallel, config.seed)
    engine, cuts = build_engine(config, LanguageModelObjective()), _cuts(loader)
    result = {"initial": evaluate_fim(engine, loader, cuts), "biases": {}}
    if dist.get_world_size() == 1:
        result["by hand"] = _sums_by_hand(engine.modules[0], loader.tokenizer, cuts)
    made = [*cuts[:2], replace(cuts[0], middle=""), replace(cuts[1], middle="\n"), replace(cuts[2], middle="\n")]
    for name, token in tokens.items():
        result["biases"][name] = _always(engine, biases.get(name), token)
        result[name] = evaluate_fim(engine, loader, made)
    parallel_state.destroy_model_parallel()
    return result


def _measure_all(settings: list[str], tokens: dict[str, int], biases: dict[str, np.ndarray]) -> dict[str, dict]:
    return {name: _measure([*settings, *layout], tokens, biases) for name, layout in LAYOUTS.items()}


@pytest.fixture(scope="module")
def tokens(settings) -> dict[str, int]:
    """What models are made to say always."""
    tokenizer = _loader(settings).tokenizer
    return {"end": tokenizer.end_of_text_id, "newline": tokenizer.encode("\n")[0]}


@pytest.fixture(scope="module")
def one(settings, tokens) -> dict:
    """The figures on one rank."""
    return run_distributed(_measure, 1, settings, tokens, {})[0]


def test_losses_equal_sums_by_hand(one):
    assert len(one["by hand"]) == 3
    for name, value in one["by hand"].items():
        assert one["initial"][name] == pytest.approx(value, rel=1e-5)
    assert one["initial"]["fim_cuts"] == COUNT


def test_exact_match_is_the_share_of_right_middles(one):
    # Of five middles one is empty and two are a newline: what models say that always end, or always say a newline.
    assert one["end"]["fim_exact_match"] == 1 / 5
    assert one["newline"]["left_to_right_exact_match"] == 2 / 5
    assert one["newline"]["fim_exact_match"] == 0  # it never ends
    assert one["initial"]["fim_exact_match"] == one["initial"]["left_to_right_exact_match"] == 0


@pytest.mark.slow
def test_every_layout_gives_the_same_figures(settings, tokens, one):
    for rank in run_distributed(_measure_all, 2, settings, tokens, one["biases"]):
        assert set(rank) == set(LAYOUTS)
        for name, result in rank.items():
            for of in ("initial", *tokens):
                assert result[of] == pytest.approx(one[of], rel=1e-5), (name, of)
