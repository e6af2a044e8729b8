"""Sampling against definitions written out, against transformers' processors, and by its frequencies."""

import pytest
import torch

from megagpt.model.sampling import choose_tokens, draw, keep_top_k, keep_top_p, penalize

VOCAB = 37


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(50, VOCAB, generator=torch.Generator().manual_seed(0))


def support(logits: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


@pytest.mark.parametrize("k", [1, 2, 10, VOCAB, 1000])
def test_top_k_keeps_the_k_largest(logits, k):
    ranked = [sorted(range(VOCAB), key=row.__getitem__, reverse=True) for row in logits.tolist()]
    assert support(keep_top_k(logits, k)) == [set(order[:k]) for order in ranked]


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_of_that_probability(logits, p):
    for row, kept in zip(logits.double().softmax(-1).tolist(), support(keep_top_p(logits, p)), strict=True):
        nucleus, total = set(), 0.0
        for token in sorted(range(VOCAB), key=row.__getitem__, reverse=True):
            if total >= p:
                break
            nucleus.add(token)
            total += row[token]
        assert kept == nucleus


def test_processors_equal_transformers(logits):
    from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

    ids = torch.randint(0, VOCAB, (50, 12), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(50, VOCAB, dtype=torch.bool).scatter_(1, ids, True)
    for penalty in (0.7, 1.3):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        torch.testing.assert_close(penalize(logits, seen, penalty), expected)
    for k in (1, 7):
        torch.testing.assert_close(keep_top_k(logits, k), TopKLogitsWarper(k)(ids, logits))
    for p in (0.2, 0.8):
        torch.testing.assert_close(keep_top_p(logits, p), TopPLogitsWarper(p)(ids, logits))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 5, 1.0), (1.5, 9, 0.7)]
)
def test_frequencies_are_the_probabilities(logits, temperature, top_k, top_p):
    """Evenly spaced numbers must choose every token as often as its probability says, to within one each."""
    count = 4000
    scaled = logits[0].double() / temperature
    order = scaled.argsort(descending=True)
    probabilities = scaled[order[: top_k or VOCAB]].softmax(-1)
    kept = int((probabilities.cumsum(-1) - probabilities < top_p).sum())
    expected = torch.zeros(VOCAB, dtype=torch.float64)
    expected[order[:kept]] = probabilities[:kept] / probabilities[:kept].sum()

    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, logprobs = choose_tokens(logits[:1].expand(count, -1), uniforms, temperature, top_k, top_p)
    frequencies = tokens.bincount(minlength=VOCAB)
    assert (frequencies - expected * count).abs().max() <= 1.01
    assert not frequencies[expected == 0].any()
    torch.testing.assert_close(logprobs.double(), expected[tokens].log(), atol=1e-5, rtol=1e-5)


def test_top_p_over_many_tokens_keeps_the_smallest_set_of_that_probability():
    """A peaked row, a flat one, and one between."""
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(2)) * torch.tensor([[9.0], [0.01], [2.0]])
    for p in (0.3, 0.95):
        found = support(keep_top_p(logits, p))
        for row, kept in zip(logits.double().softmax(-1), found, strict=True):
            ordered = row.sort(descending=True)
            count = int((ordered.values.cumsum(-1) < p).sum()) + 1
            assert abs(len(kept) - count) <= 1  # float32 sums may differ by the last token
            assert kept == set(ordered.indices[: len(kept)].tolist())
    columns = torch.tensor([[0.3], [0.9], [1.0]])
    together = support(keep_top_p(logits, columns))
    assert together == [support(keep_top_p(logits[row : row + 1], float(p)))[0] for row, p in enumerate(columns)]


def test_of_equally_likely_tokens_the_first_are_in_the_nucleus():
    logits = torch.tensor(
        [[0.0, 1.0, 0.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0], [5.0, 0.0, 0.0, 0.0, 5.0, 5.0]]
    )
    assert support(keep_top_p(logits, 0.6)) == [{0, 1, 3}, {0, 1, 2, 3}, {0, 4}]


def test_rows_with_settings_of_their_own_get_what_each_gets_alone(logits):
    temperatures = [(0.0, 0.6, 1.0, 2.0)[row % 4] for row in range(50)]
    top_k = [(0, 3, 9, 100)[row // 4 % 4] for row in range(50)]
    top_p = [(1.0, 0.8, 0.4)[row % 3] for row in range(50)]
    uniforms = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tokens, logprobs = choose_tokens(logits, uniforms, temperatures, top_k, top_p)
    for row in range(50):
        own = slice(row, row + 1)
        alone = choose_tokens(logits[own], uniforms[own], temperatures[row], top_k[row], top_p[row])
        assert (tokens[row], logprobs[row]) == alone
    assert len(set(tokens.tolist())) > 10


def test_greedy_takes_the_largest_and_tells_its_probability(logits):
    tokens, logprobs = choose_tokens(logits, torch.zeros(50, dtype=torch.float64), temperature=0, top_k=3, top_p=0.1)
    assert tokens.tolist() == [max(range(VOCAB), key=row.__getitem__) for row in logits.tolist()]
    torch.testing.assert_close(logprobs, logits.softmax(-1).amax(-1).log())


def test_a_token_of_probability_zero_is_never_drawn():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    uniforms = torch.tensor([0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(probabilities.log().expand(4, -1), uniforms).tolist() == [1, 1, 3, 3]
