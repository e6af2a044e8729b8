"""Cross-entropy with the vocabulary split over ranks, against torch's on the gathered logits."""

import pytest
import torch
from dist import run_distributed
from torch import Tensor
from truth_cross_entropy import linear_truth, random_case, truth

from megagpt.kernels.cross_entropy import cross_entropy, linear_cross_entropy

CASES = 8
COLUMNS = 48  # of all ranks
SIZE = 8


def logits_case(seed: int) -> tuple[Tensor, Tensor, Tensor, dict, str]:
    """A case and its back end: every third runs in Triton."""
    dtype = torch.bfloat16 if seed % 4 == 3 else torch.float32
    return *random_case(seed, COLUMNS, dtype), "triton" if seed % 3 == 0 else "torch"


def linear_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, dict, str]:
    _, labels, weights, options, backend = logits_case(seed)
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(*shape, SIZE, generator=generator) for shape in (labels.shape, (COLUMNS,)))
    return hidden, weight, labels, weights, options, backend


def on_a_rank() -> list[tuple[Tensor, ...]]:
    import torch.distributed as dist

    group, rank, ranks = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    alone = dist.new_subgroups(1)[0]
    results = []
    for seed in range(CASES):
        logits, labels, weights, options, backend = logits_case(seed)
        shard = logits.chunk(ranks, -1)[rank].clone().requires_grad_()
        losses = cross_entropy(shard * 1, labels, group=group, inplace=seed % 2 == 0, backend=backend, **options)
        (losses * weights).sum().backward()
        results.append((losses.detach(), shard.grad))

        hidden, weight, labels, weights, options, backend = linear_case(seed)
        rows = weight.chunk(ranks)[rank].clone().requires_grad_()
        hidden.requires_grad_()
        own = {"chunk_columns": 5 if seed % 2 else None, "reduce_hidden_gradient": seed % 4 != 0, "backend": backend}
        losses = linear_cross_entropy(hidden, rows, labels, group=group, **own, **options)
        (losses * weights).sum().backward()
        if seed < 4:
            whole, single = (cross_entropy(logits, labels, group=g, backend=backend, **options) for g in (None, alone))
            assert torch.equal(whole, single)
        if not own["reduce_hidden_gradient"]:
            dist.all_reduce(hidden.grad)
        results.append((losses.detach(), hidden.grad, rows.grad))
    return results


def expected(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    logits, labels, weights, options, _ = logits_case(seed)
    exact = logits.double().requires_grad_()
    losses = truth(exact, labels, **options)
    (losses * weights).sum().backward()

    hidden, weight, labels, weights, options, _ = linear_case(seed)
    inputs = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    linear_losses = linear_truth(*inputs, labels, **options)
    (linear_losses * weights).sum().backward()
    return [losses.detach(), exact.grad], [linear_losses.detach(), *(tensor.grad for tensor in inputs)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_equals_torch_on_the_gathered_logits(ranks):
    results = run_distributed(on_a_rank, ranks)
    for index, shards in enumerate(zip(*results, strict=True)):
        seed, linear = divmod(index, 2)
        losses, *gradients = expected(seed)[linear]
        for shard in shards:
            assert torch.equal(shard[0], shards[0][0]), "ranks disagree on the losses"
        joined = [torch.cat([shard[-1] for shard in shards], dim=0 if linear else -1)]
        if linear:
            assert all(torch.equal(shard[1], shards[0][1]) for shard in shards)
            joined.insert(0, shards[0][1])
        torch.testing.assert_close(shards[0][0], losses.float(), atol=2e-5, rtol=1e-5)
        for gradient, true_gradient in zip(joined, gradients, strict=True):
            atol = 1e-5 if gradient.dtype == torch.float32 else 8e-3
            torch.testing.assert_close(gradient.float(), true_gradient.float(), atol=atol, rtol=1e-5)
