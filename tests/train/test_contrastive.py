"""The contrastive loss and its gradients, against sentence-transformers' losses and a double loop in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megagpt.config.embedding import LOG_SCALE_ORIGIN, LOG_SCALE_SPEED, EmbedConfig
from megagpt.data.pair_loader import ABSENT
from megagpt.model.heads import LogScale
from megagpt.train import contrastive
from megagpt.train.contrastive import contrastive_gradients

PAIRS, WIDTH, TEMPERATURE = 12, 16, 0.05


def _texts(kinds: int, seed: int = 0) -> torch.Tensor:
    """Random vectors of length 1 / sqrt(TEMPERATURE)."""
    values = torch.randn(kinds, PAIRS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values + 0.7 * values[:1], dim=-1) / math.sqrt(TEMPERATURE)


def _different(kinds: int) -> torch.Tensor:
    return torch.arange(kinds * PAIRS).view(kinds, PAIRS)


def _by_loops(texts: np.ndarray, ids: np.ndarray, margin: float | None) -> float:
    """The sum of the loss, as its definition has it."""
    queries, documents, total = texts[0], texts[1:].reshape(-1, WIDTH), 0.0
    document_ids, squared = ids[1:].reshape(-1), float((texts[0, 0] ** 2).sum())
    for i in range(PAIRS):
        own = queries[i] @ documents[i]
        far = math.inf if margin is None else own + margin * squared
        mine = {ids[0, i], ids[1, i]}
        row = [own]
        for j, document in enumerate(documents):
            says = {document_ids[j]} | ({ids[0, j]} if j < PAIRS else set())
            if j != i and not mine & says and document_ids[j] != ABSENT and queries[i] @ document <= far:
                row.append(queries[i] @ document)
        column = [own]
        for j in range(PAIRS):
            if j != i and not mine & {ids[0, j], ids[1, j]} and documents[i] @ queries[j] <= far:
                column.append(documents[i] @ queries[j])
        total += (np.logaddexp.reduce(row) + np.logaddexp.reduce(column)) / 2 - own
    return total


@pytest.mark.parametrize("kinds", [2, 3, 4])
def test_loss_and_gradients_are_those_of_sentence_transformers(kinds):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    theirs = losses.MultipleNegativesRankingLoss(
        None, scale=1 / TEMPERATURE, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    texts = _texts(kinds)
    leaf = texts.clone().requires_grad_()
    expected = theirs.compute_loss_from_embeddings(list(leaf), None)
    expected.backward()
    gradients, sums = contrastive_gradients(texts, _different(kinds), EmbedConfig(), None)
    assert float(sums[0] / sums[1]) == pytest.approx(expected.item(), rel=1e-5)
    # Their cosine takes vectors of any length, so its gradient along a vector is 0; ours is that of the temperature.
    across = gradients - (gradients * texts).sum(-1, keepdim=True) * texts * TEMPERATURE
    torch.testing.assert_close(across / PAIRS, leaf.grad, rtol=1e-4, atol=1e-6)


def test_matryoshka_is_the_mean_of_sentence_transformers_losses():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    texts = _texts(2)
    theirs = losses.MultipleNegativesRankingLoss(
        None, scale=1 / TEMPERATURE, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    leaf = texts.clone().requires_grad_()
    expected = sum(theirs.compute_loss_from_embeddings(list(leaf[..., :size]), None) for size in (4, 8, WIDTH)) / 3
    expected.backward()
    gradients, sums = contrastive_gradients(texts, _different(2), EmbedConfig(dimensions=(4, 8)), None)
    assert float(sums[0] / sums[1]) == pytest.approx(expected.item(), rel=1e-5)
    across = gradients - (gradients * texts).sum(-1, keepdim=True) * texts * TEMPERATURE
    torch.testing.assert_close(across / PAIRS, leaf.grad, rtol=1e-4, atol=1e-6)


def _ids_with_repetitions() -> torch.Tensor:
    ids = _different(4)
    ids[0, 3] = ids[0, 5]  # one query twice
    ids[1, 2] = ids[1, 7]  # one document twice
    ids[1, 9] = ids[0, 1]  # a document that is another pair's query
    ids[2, 4] = ids[1, 8]  # a negative that is another pair's document
    ids[2, 6] = ids[3, 0] = ids[3, 1] = ABSENT
    return ids


@pytest.mark.parametrize("margin", [None, 0.0, 0.1])
def test_what_says_the_same_or_is_too_near_is_no_negative(margin):
    texts, ids = _texts(4), _ids_with_repetitions()
    settings = EmbedConfig(false_negative_margin=margin)
    gradients, sums = contrastive_gradients(texts, ids, settings, None)
    double = texts.double().numpy()
    assert float(sums[0]) == pytest.approx(_by_loops(double, ids.numpy(), margin), rel=1e-5)
    assert float(_by_loops(double, _different(4).numpy(), None)) > float(sums[0]) + 0.2  # the masks matter
    if margin is None:  # a margin is a step, at which differences mean nothing
        direction = torch.randn(texts.shape, generator=torch.Generator().manual_seed(1)).double()
        step = 1e-6 * direction.numpy()
        slope = (_by_loops(double + step, ids.numpy(), None) - _by_loops(double - step, ids.numpy(), None)) / 2e-6
        assert float((gradients.double() * direction).sum()) == pytest.approx(slope, rel=1e-4)
    absent = ids == ABSENT
    assert not gradients[absent].any()


def test_blocks_change_nothing(monkeypatch):
    texts, ids, settings = _texts(4), _ids_with_repetitions(), EmbedConfig(dimensions=(8,), false_negative_margin=0.1)
    whole = contrastive_gradients(texts, ids, settings, None)
    monkeypatch.setattr(contrastive, "BLOCK", 5 * 4 * PAIRS)  # 5 pairs at a time, and 2 at the end
    torch.testing.assert_close(contrastive_gradients(texts, ids, settings, None), whole, rtol=1e-5, atol=1e-6)


def test_metrics_are_means_over_pairs():
    texts = _texts(2)
    _, sums = contrastive_gradients(texts, _different(2), EmbedConfig(), None)
    cosines = F.normalize(texts[0], dim=-1) @ F.normalize(texts[1], dim=-1).t()
    _, count, right, cosine, temperature = sums.tolist()
    assert count == PAIRS
    assert right == int((cosines.argmax(1) == torch.arange(PAIRS)).sum())
    assert cosine == pytest.approx(float(cosines.diagonal().sum()), rel=1e-5)
    assert temperature / PAIRS == pytest.approx(TEMPERATURE, rel=1e-5)


@pytest.mark.parametrize(("value", "slope", "passes"), [(1.0, 1, 1), (1.0, -1, 1), (3.0, 1, 1), (3.0, -1, 0)])
def test_a_temperature_at_its_limit_can_only_come_back(value, slope, passes):
    parameter = torch.tensor([(value - LOG_SCALE_ORIGIN) / LOG_SCALE_SPEED], requires_grad=True)
    log_scale = LogScale.apply(parameter, 2.0)
    assert log_scale.item() == pytest.approx(min(value, 2.0))
    (slope * log_scale).sum().backward()
    assert parameter.grad.item() == slope * passes


@pytest.mark.parametrize("dimensions", [(), (4,), (4, 8)])
def test_the_temperature_gets_the_gradient_of_all_dimensions(dimensions):
    directions, settings = F.normalize(_texts(2).double(), dim=-1), EmbedConfig(dimensions=dimensions)

    def loss(log_scale: float) -> float:
        texts = (directions * math.exp(log_scale / 2)).float()
        return contrastive_gradients(texts, _different(2), settings, None)[1][0].item()

    middle = -math.log(TEMPERATURE)
    texts = (directions * math.exp(middle / 2)).float()
    gradients, _ = contrastive_gradients(texts, _different(2), settings, None)
    slope = (loss(middle + 0.01) - loss(middle - 0.01)) / 0.02
    assert (gradients * texts).sum().item() / 2 == pytest.approx(slope, rel=1e-3)
