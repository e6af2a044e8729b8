"""What how-to pages say of measurements is in the recorded figures, or on the page of docs/benchmarks they link."""

import re
from statistics import mean

import pytest

from tests.test_docs_figures import DOCS, EVIDENCE, page, recorded, table


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("*.md")), ids=lambda path: path.name)
def test_evidence_is_linked_from_where_it_is_needed(path):
    """From the index of all measurements; and what was moved out of a page is linked there."""
    if path.name == "index.md":
        return
    assert f"]({path.name})" in (EVIDENCE / "index.md").read_text(encoding="utf-8")
    home = re.search(r"^[^\n]*: \[[^\]]+\]\(\.\./(\w+\.md)\)\.$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if home:
        assert f"(benchmarks/{path.name}" in (DOCS / home[1]).read_text(encoding="utf-8")


def test_layouts():
    exact = [one for one in recorded("layouts_cpu")["layouts"] if one["holds_grad_norm"]]
    loss, gradient = (max(one[f"{name}_difference"] for one in exact) for name in ("loss", "grad_norm"))
    said = f"no loss is off by more than {loss:.1e} and no gradient norm by more than {gradient:.1e} (relative), in"
    assert f"{said} {len(exact)} layouts" in page("../parallelism")
    assert f"at most 1.5e-6 in {len(recorded('layouts_stages_cpu')['layouts']) // 3}." in page("../parallelism")


def test_memory_of_zero():
    rows = [[float(cell) for cell in row[1:]] for row in table("zero_memory", "precision", "ranks", "stage")]
    assert all(weights == held and optimizer == kept for _, _, weights, held, _, _, optimizer, kept in rows)
    assert max(gradients - held for _, _, _, _, gradients, held, _, _ in rows) == 0.5
    assert "gradients at most half a byte more" in page("../parallelism")


def test_serving():
    inside, outside = recorded("serve_engine_cpu"), recorded("serve_http_cpu")
    for found, said in ((inside, "generates {} to {} times"), (outside, "the server generates {} to {} times")):
        ratios = [found[name]["times_transformers"] for name in found if name.endswith(" clients")]
        assert said.format(f"{min(ratios):.2f}", f"{max(ratios):.2f}") in page("../serving")


def test_corpora():
    found, text = recorded("corpus_cpu")["chains"], page("../text_corpora")
    speeds = [f"{found[name]['mb_per_second']['megagpt']:.2f}" for name in ("fineweb", "gopher")]
    ratios = [f"{found[name]['ratio']:.1f}" for name in ("fineweb", "gopher")]
    assert f"{speeds[0]} MB of text a second with `fineweb` and {speeds[1]} with `gopher`" in text
    assert f"{ratios[0]} and {ratios[1]} times datatrove's" in text
    proof = recorded("corpus_proof_cpu")
    least = min(one["recall"] for one in proof["planted"].values())
    assert f"all or at least {least:.0%} of each kind" in text
    losses = proof["training"]["loss"]
    assert f"mean of three seeds {mean(losses['filtered']):.3f}, from the raw text {mean(losses['raw']):.3f}" in text


def test_preprocessing_and_conversion():
    speed = recorded("preprocess_cpu")["mb_per_second_per_core"]
    said = f"by GigaToken {speed['preprocess']:.1f} MB/s a core, by the tokenizers library"
    assert f"{said} {speed['preprocess_by_tokenizers']:.1f}" in page("../data")
    found = recorded("convert_cpu")
    there, back = (found[name] for name in ("to_huggingface", "back"))
    said = f"went to transformers in {there['seconds']:.1f} s with {there['peak_mib']:.0f} MiB at most, and back in"
    assert f"{said} {back['seconds']:.1f} s with {back['peak_mib']:.0f} MiB" in page("../conversion")


def test_in_context():
    models = recorded("in_context_cpu")["models"]
    ratios = [found["ratio"] for frames in models.values() for found in frames.values()]
    assert f"processes {min(ratios):.2f} to {max(ratios):.2f} times" in page("../in_context")
    learning = recorded("in_context_learning_cpu")
    rules = [run["kinds"]["kinds trained on"] for run in learning["runs"] if run["arm"] == "rules"]
    most = str(learning["shots"][-1])
    assert f"to {min(run['accuracy'][most][0] for run in rules):.3f} or more with 8" in page("../in_context_learning")


def test_learning_from_a_reward():
    runs = recorded("ppo_learning_cpu")["runs"]
    plain, target = (
        min(one["validation_score"][-1] - one["validation_score"][0] for one in runs[way])
        for way in ("plain", "target")
    )
    assert f"rises by at least {plain:.3f} with each of five seeds, and by at least {target:.3f}" in page("../ppo")


def test_reliability_of_many_ranks():
    (job,) = (job for job in recorded("control_plane_cpu")["jobs"] if job["ranks"] == 16384)
    said = f"takes {100 * job['store_share_of_a_processor']:.1f}% of a processor, and a hang is named after"
    assert f"{said} {job['named_after_seconds']:.1f} s" in page("../reliability")


@pytest.mark.parametrize(
    ("how_to", "figures"),
    [
        ("training", ["1.717", "1.953"]),
        ("quality", ["0.984", "0.953"]),
        ("code", ["11 of 256", "19 of 203", "0.616", "0.601"]),
        ("embeddings", ["1.48 times", "4 min 9 s", "0.094", "0.0075", "0.381"]),
        ("embedding_evaluation", ["0.8203247", "64.51"]),
        ("ppo", ["86.7%", "85.7%"]),
    ],
)
def test_figures_without_a_file_are_those_of_the_evidence(how_to, figures):
    """Their evidence is a page alone: what somebody saw, with the command."""
    for figure in figures:
        assert figure in page(how_to)
        assert figure.split()[0] in page(f"../{how_to}")
