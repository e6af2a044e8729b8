"""Tables and sentences of the docs against the recorded figures in docs/benchmarks, which have their command.

Figures of a page are compared after rounding to the digits that the page shows.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

import pytest

DOCS = Path(__file__).parent.parent / "docs"
EVIDENCE = DOCS / "benchmarks"
RECORDED = sorted(EVIDENCE.glob("*.json"))


def recorded(name: str) -> dict:
    return json.loads((EVIDENCE / f"{name}.json").read_text(encoding="utf-8"))


def page(name: str) -> str:
    """A page of docs/benchmarks with its line breaks as spaces; "../NAME" is one of docs."""
    return " ".join((EVIDENCE / f"{name}.md").read_text(encoding="utf-8").split())


def table(name: str, *head: str) -> list[list[str]]:
    """Rows of every table of a page whose head begins with these cells."""
    return [row for rows in tables(EVIDENCE / f"{name}.md") if tuple(rows[0][: len(head)]) == head for row in rows[2:]]


def tables(path: Path) -> Iterator[list[list[str]]]:
    rows: list[list[str]] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.lstrip().startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            yield rows
            rows = []


def shown(row: list[str], values: list[float]) -> None:
    """Every cell is its value, rounded to the cell's digits."""
    assert len(row) == len(values), row
    for cell, value in zip(row, values, strict=True):
        number = cell.rstrip(" %MiB")
        digits = len(number.partition(".")[2])
        assert number == f"{value:.{digits}f}", (row, value)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_recorded_figures_have_their_command_and_a_page(path):
    about = json.loads(path.read_text(encoding="utf-8"))
    tool = re.search(r"tools/\w+\.py", about["command"])[0]
    assert (DOCS.parent / tool).exists()
    assert about["date"]
    pages = [one.read_text(encoding="utf-8") for one in DOCS.rglob("*.md")]
    assert any(path.name in text and tool in text for text in pages), f"no page names {path.name} and {tool}"


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_figures_that_a_page_names_are_recorded_or_said_not_to_be(path):
    text = " ".join(path.read_text(encoding="utf-8").split())
    missing = [name for name in re.findall(r"benchmarks/(\w+\.json)", text) if not (EVIDENCE / name).exists()]
    assert not missing or re.search(r"No (whole )?run of it [^.]*has been recorded", text), missing


def test_training_step():
    peers = recorded("train_cpu")["results"]["demo fp32"]
    rows = table("performance", "", "tokens/s")
    names = {
        "megagpt": "megagpt",
        "transformers": "transformers",
        "transformers, fused GELU": "transformers fused gelu",
    }
    assert [row[0] for row in rows] == list(names)
    for name, *cells in rows:
        found = peers["contestants"][names[name]]
        values = [found["tokens_per_second"], found["peak_memory_gib"]]
        if name == "megagpt":
            assert cells.pop() == ""
        else:
            values.append(peers["ratio"][names[name]])
        shown(cells, values)


def test_layouts():
    every = recorded("layouts_cpu")["layouts"]
    found = [one for model in ("GPT-3", "Modern") for one in every if one["model"] == model]
    rows = table("layouts", "layout", "ranks")
    assert len(rows) == len(found) > 200
    for row, one in zip(rows, found, strict=True):
        assert row[0] == one["layout"]
        assert row[2:4] == [f"{one['loss_difference']:.1e}", f"{one['grad_norm_difference']:.1e}"]
        shown([row[1], *row[4:]], [one["ranks"], one["milliseconds"], one["memory_mib"]])


def test_layouts_of_later_stages():
    rows = table("layouts", "learnt from")
    recording = recorded("layouts_stages_cpu")
    found = recording["layouts"]
    assert f"and {recording['steps']} steps:" in page("layouts")
    assert f"nothing is off by more than 1.5e-6 in fp32, on {recording['date']}" in page("layouts")
    exact = [one for one in found if one["holds_grad_norm"]]
    assert max(max(one["loss_difference"], one["grad_norm_difference"]) for one in exact) < 1.5e-6
    assert {row[0] for row in rows} == {one["model"] for one in found}
    for name, count, *cells in rows:
        exact = [one for one in found if one["model"] == name and one["holds_grad_norm"]]
        rough = [one for one in found if one["model"] == name and not one["holds_grad_norm"]]
        assert int(count) == len(exact) + len(rough)
        largest = [max(one[key] for one in exact) for key in ("loss_difference", "grad_norm_difference")]
        largest.append(max(one["loss_difference"] for one in rough))
        assert cells == [f"{value:.1e}" for value in largest]


def test_learning_from_a_reward():
    runs = recorded("ppo_learning_cpu")["runs"]
    rows = table("ppo", "seed")
    assert len(rows) == len(runs["plain"])
    for seed, row in enumerate(rows):
        of = {way: runs[way][seed] for way in ("plain", "target", "text")}
        before = [of["plain"]["validation_score"][0], of["plain"]["validation_loss"][0]]
        after = [
            of[way][f"validation_{name}"][-1] for name in ("score", "kl", "loss") for way in ("plain", "target", "text")
        ]
        shown(row, [seed + 1, *before, *after])


def test_what_holds_of_learning_from_a_reward():
    runs, text = recorded("ppo_learning_cpu")["runs"], page("ppo")

    def last(way: str, name: str) -> list[float]:
        return [one[f"validation_{name}"][-1] for one in runs[way]]

    def change(way: str, name: str) -> list[float]:
        return [one[f"validation_{name}"][-1] - one[f"validation_{name}"][0] for one in runs[way]]

    plain, target, gradients = (f"{min(change(way, 'score')):.3f} or more" for way in ("plain", "target", "text"))
    assert f"by {plain}, held to the target by {target}, and with pretraining gradients by {gradients}" in text
    furthest = max(one["largest_kl"] for one in runs["target"])
    assert f"no iteration's own answers are more than {furthest:.3f} nats away" in text
    held, free = (f"{min(last(way, 'kl')):.2f} to {max(last(way, 'kl')):.2f}" for way in ("target", "plain"))
    assert f"held-out prompts end at {held}, and without it at {free}" in text
    plain, target = (f"{min(change(way, 'loss')):.3f} to {max(change(way, 'loss')):.3f}" for way in ("plain", "target"))
    assert f"rises by {plain} in the plain way and changes by {target} with the target" in text
    falls = [-value for value in change("text", "loss")]
    assert f"with pretraining gradients it falls by {min(falls):.3f} to {max(falls):.3f}" in text


def test_speed_of_ppo():
    found, text = recorded("ppo_cpu"), page("ppo")
    iteration = found["iteration"]
    for sentence in (
        f"an iteration of {iteration['episodes']} answers took {iteration['seconds']:.1f} s"
        f" in the median of {iteration['iterations']}",
        f"{iteration['rollout_seconds']:.1f} s of them for answering, {iteration['scoring_seconds']:.1f} s for scoring"
        f" and {iteration['update_seconds']:.1f} s for four updates",
        "answered 32 prompts at {megagpt:.0f} tokens a second".format(**found["generation"]["tokens_per_second"]),
        "on the same weights at {transformers:.0f}".format(**found["generation"]["tokens_per_second"]),
        f"{found['generation']['ratio']:.2f} times as fast",
        "it was {megagpt:.0f} to {transformers:.0f}".format(**found["rollout"]["tokens_per_second"]),
        f"{found['rollout']['ratio']:.2f} times (medians of {found['rollout']['repeats']})",
    ):
        assert sentence in text


def test_embeddings():
    learnt = recorded("embed_learning_cpu")
    rows = {name.strip("`"): cells for name, *cells in table("embeddings", "", "steps")}
    for name, key in (("before", "before"), ("stage `embed", "megagpt"), ("sentence-transformers",) * 2):
        steps, *cells = rows[name]
        assert steps == ("" if key == "before" else str(learnt["steps"][key.replace("-", "_")]))
        scores = learnt[key.replace("-", "_")]
        shown(cells, [scores["sts_spearman"], scores["retrieval_ndcg_at_10"]])
    found, text = recorded("embed_cpu"), page("embeddings")
    step = found["step"]
    assert "takes {megagpt:.2f} s, and {sentence_transformers:.2f} s with".format(**step["seconds"]) in text
    assert f"{step['ratio']:.2f} times as fast" in text
    times = [f"{1000 * one['seconds_per_pair']:.0f}" for one in found["growth"]]
    sizes = [f"{one['peak_memory_gib']:.2f}" for one in found["growth"]]
    assert f"take {times[0]}, {times[1]} and {times[2]} ms a pair" in text
    assert f"{sizes[0]}, {sizes[1]} and {sizes[2]} GiB" in text


def test_speed_in_context():
    models = recorded("in_context_cpu")["models"]
    rows = {name: cells for name, *cells in table("in_context", "model, demonstrations")}
    for model, frames in models.items():
        for frame, said in (("drawn", "drawn anew"), ("fixed", "the same for all")):
            found, cells = frames[frame], rows.pop(f"{model}, {said}")
            shown(cells[:2], list(found["requests_per_second"].values()))
            shown(cells[2:3], [found["ratio"]])
            assert cells[3] == f"{found['reused']:.0%}"
    assert not rows
    worst = max(found["largest_difference"] for frames in models.values() for found in frames.values())
    assert f"at most {worst:.1e} a token".replace("e-0", "e-") in page("in_context")


def test_preprocessing():
    found = recorded("preprocess_cpu")
    names = ("preprocess", "preprocess_by_tokenizers", "encode_batch", "encode_batch_fast")
    rows = table("preprocessing", "", "MB/s a core")
    assert len(rows) == len(names)
    for (_, *cells), name in zip(rows, names, strict=True):
        shown(cells, [found["mb_per_second_per_core"][name], found["mb_per_cpu_second"][name]])
    stages = found["cpu_ms_per_mb"]["preprocess"]
    rows = table("preprocessing", "stage", "ms a MB")
    assert [row[0] for row in rows] == list(stages)
    for stage, *cells in rows:
        shown(cells, [stages[stage], 100 * stages[stage] / sum(stages.values())])
    assert found["mb_per_second_per_core"]["preprocess"] == pytest.approx(
        found["bytes"] / 1e6 / median(found["seconds"]["preprocess"]) / found["cores"], rel=0.01
    )


def test_speed_of_corpora():
    found, text = recorded("corpus_cpu"), page("text_corpora")
    steps = found["steps"]
    speed = {name: f"{step['mb_per_cpu_second']['megagpt']:.0f}" for name, step in steps.items()}
    words, hashed = speed["words"], speed["quality, hashed words"]
    assert f"all rules share, {words}; with the score of `hashing` on top of them {hashed}" in page("quality")
    assert f"The counting pass takes {speed['decontamination count']} MB a second" in page("../decontamination")
    rows = table("text_corpora", "recipe", "megagpt")
    assert [row[0] for row in rows] == list(found["chains"])
    for name, *cells in rows:
        chain, verdicts = found["chains"][name], found["verdicts"][name]
        shown(cells, [chain["mb_per_second"]["megagpt"], chain["mb_per_second"]["datatrove"], chain["ratio"]])
        assert f"No verdict on {verdicts['documents']} documents differs when datatrove gets our words" in text
        assert verdicts["different"] == 0
    slow = {name: step["ratio"] for name, step in steps.items() if step["ratio"] and step["ratio"] < 20}
    for name, sentence in (("minhash signatures", "MinHash signatures ({} times)"), ("pii", "redaction ({})")):
        assert sentence.format(slow.pop(name)) in text
    assert f"exact hashes ({slow.pop('exact hashes')}) are below 20 times on their own" in text
    assert list(slow) == ["language, fastText"]


PLANTED = {
    "boilerplate, keyword spam, word salad, repeated lines, gibberish, numbers": (
        "boilerplate",
        "keyword spam",
        "word salad",
        "repeated lines",
        "gibberish",
        "numbers",
    ),
    "code": ("code",),
    "other languages": ("foreign",),
    "exact copies": ("exact copy",),
    "near copies, 1 word in 100 changed": ("near copy, 1 word in 100",),
    "near copies, 1 word in 30 changed": ("near copy, 1 word in 30",),
    "text of evaluations": ("evaluation text",),
    "addresses": ("address",),
}


def test_proof_of_corpora():
    found = recorded("corpus_proof_cpu")
    rows = table("text_corpora", "planted", "pages")
    assert [row[0] for row in rows] == list(PLANTED)
    assert {kind for kinds in PLANTED.values() for kind in kinds} == set(found["planted"])
    for name, pages, share in rows:
        for kind in PLANTED[name]:
            planted = found["planted"][kind]
            assert pages.removesuffix(" each") == str(planted["planted"])
            assert share == ("all" if planted["found"] == planted["planted"] else f"{planted['recall']:.0%}")
    training = found["training"]
    losses = [training["loss"][name] for name in ("raw", "filtered", "mixed")]
    *rows, (last, *means) = table("text_corpora", "seed", "raw")
    for row, seed, values in zip(rows, training["seeds"], zip(*losses, strict=True), strict=True):
        shown(row, [seed, *values])
    assert last == "mean"
    shown(means, [mean(values) for values in losses])
    text = page("text_corpora")
    assert f"Loss on {training['held_out_pages']} clean pages that are in none of the texts" in text
    assert f"after {training['train_tokens']:,} tokens" in text
    assert f"What that command gave on {found['date']}" in text


def test_speed_of_serving():
    inside, outside = recorded("serve_engine_cpu"), recorded("serve_http_cpu")
    for count, *cells in table("serving", "requests at a time"):
        found = inside[f"{count} clients"]
        shown(cells, [*found["tokens_per_second"].values(), found["times_transformers"]])
    for count, *cells in table("serving", "clients"):
        found = outside[f"{count} clients"]
        rates, seconds = found["tokens_per_second"].values(), found["seconds_to_first_text"].values()
        shown(cells, [*rates, found["times_transformers"], *(1e3 * value for value in seconds)])


def test_grammar_of_the_demo():
    found = recorded("blimp_demo_cpu")
    model, ngrams = found["model"], found["3-grams"]
    *tasks, means = table("in_context", "BLiMP's task")
    assert [row[0].replace(" ", "_") for row in tasks] == [task.removeprefix("blimp_") for task in model["tasks"]]
    for (_, *cells), task in zip(tasks, model["tasks"], strict=True):
        shown(cells, [model["tasks"][task], ngrams["tasks"][task]])
    shown(means[1:], [model["accuracy"], ngrams["accuracy"]])
    (low, high), (other_low, other_high) = model["interval_95"], ngrams["interval_95"]
    said = f"overlap ({low:.3f} to {high:.3f}, {other_low:.3f} to {other_high:.3f})"
    assert low < other_high
    assert said in page("in_context")
    assert f"On {found['pairs']:,} pairs" in page("in_context")


def test_learning_in_context():
    found = recorded("in_context_learning_cpu")
    shots = [str(count) for count in found["shots"]]
    arms = {"documents of one rule": "rules", "the same examples, shuffled": "shuffled"}
    rows = table("in_context_learning", "learned from")
    assert len(rows) == len(found["runs"])
    for name, seed, *cells in rows:
        (run,) = (one for one in found["runs"] if one["arm"] == arms[name] and one["seed"] == int(seed))
        accuracy = run["kinds"]["kinds trained on"]["accuracy"]
        shown(cells, [accuracy[count][0] for count in shots])
    kinds = {arm: [run["kinds"] for run in found["runs"] if run["arm"] == arm] for arm in arms.values()}
    rows = table("in_context_learning", "kind", "chance")
    assert len(rows) == len(kinds["rules"][0]) - 2  # without the means over kinds
    for name, chance, *cells in rows:
        kind = name.split("`")[1]
        values = [mean(run[kind]["accuracy"][count][0] for run in kinds["rules"]) for count in shots]
        values.append(mean(run[kind]["accuracy"][shots[-1]][0] for run in kinds["shuffled"]))
        shown([chance, *cells], [kinds["rules"][0][kind]["chance"], *values])
    minutes = [run["training_minutes"] for run in found["runs"]]
    assert f"took from {min(minutes)} to {max(minutes)} minutes" in page("in_context_learning")


def test_conversion():
    found = recorded("convert_cpu")
    names = {
        "megagpt to huggingface": "to_huggingface",
        "huggingface to megagpt": "back",
        "safetensors alone, load and save": "safetensors_load_and_save",
    }
    rows = table("conversion", "", "seconds")
    assert [row[0] for row in rows] == list(names)
    for name, *cells in rows:
        one = found[names[name]]
        shown(cells, [one["seconds"], one["mb_per_second"], one["peak_mib"]])
    size = f"({found['megabytes'] / 1000:.1f} GB, largest tensor {found['largest_tensor_mib']:.0f} MiB)"
    assert f"1.3B in fp32 {size}" in page("conversion")


def test_memory_of_zero():
    """Theory is section 3 of arXiv 1910.02054, with gradients in fp32; DeepSpeed's buckets come on top of gradients."""
    rows = table("zero_memory", "precision", "ranks", "stage")
    assert len(rows) == 18
    for precision, *cells in rows:
        ranks, stage, weights, held_weights, gradients, held_gradients, optimizer, held_optimizer = map(float, cells)
        small = precision == "bf16"
        assert held_weights == (2 if small else 4) / (ranks if stage == 3 else 1)
        assert held_gradients == 4 / (ranks if stage >= 2 else 1) + (2 if small and stage == 1 else 0)
        assert held_optimizer == 12 / ranks
        assert (weights, optimizer) == (held_weights, held_optimizer)
        assert held_gradients <= gradients <= held_gradients + 4 / 8


def test_compiled_kernels():
    rows = table("kernels_report", "op", "case")
    assert len(rows) > 1000
    limits = {"sm_80": 163, "sm_90": 227, "sm_100": 227}  # KiB of shared memory that a program can have
    for *_, chip, _warps, _stages, _registers, stack, spilled, shared, _instructions in rows:
        assert (stack, spilled) == ("0", "0")
        assert float(shared) <= limits[chip]


def test_mixture_of_gpt3():
    """By the weights and sizes of table 2.2 of arXiv 2005.14165 alone."""
    rows = table("../mixture", "corpus", "tokens")
    whole = sum(int(row[2].rstrip("%")) for row in rows)
    assert whole == 101
    for _, tokens, weight, *cells, _printed in rows:
        share = int(weight.rstrip("%")) / whole
        shown(cells, [100 * share, 300 * share / int(tokens.removesuffix(" B"))])


def test_control_plane():
    found = recorded("control_plane_cpu")
    rows = table("reliability", "ranks", "a look every")
    assert rows == [
        [
            f"{job['ranks']:,}",
            f"{job['tick_seconds']:g} s",
            f"{100 * job['store_share_of_a_processor']:.1f}%",
            f"{job['look_median_ms']:.2f} ms, {job['look_p99_ms']:.2f} ms",
            f"{job['named_after_seconds']:.1f} s",
        ]
        for job in found["jobs"]
    ]
    eager, lazy = (found["open_files_of_a_rank_in_a_group"][name]["gathered"] for name in ("eager", "lazy"))
    assert f"took {eager:g} open files of each rank when all connect to all, and takes {lazy:g}." in page("reliability")
