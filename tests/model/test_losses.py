"""Cross-entropy against torch's, on one rank and with the vocabulary split over two."""

import pytest
import torch
import torch.nn.functional as F
from dist import run_distributed

from megagpt.kernels.cross_entropy import cross_entropy

SEQUENCE, BATCH, PADDED = 11, 3, 24


def example(dtype: torch.dtype, vocab_size: int):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (6 * torch.randn(SEQUENCE, BATCH, PADDED, generator=generator)).to(dtype)
    labels = torch.randint(0, vocab_size, (BATCH, SEQUENCE), generator=generator)
    weight = torch.rand(BATCH, SEQUENCE, generator=generator)  # gradients that differ between tokens
    return logits, labels, weight


def expected(dtype: torch.dtype, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels, weight = example(dtype, vocab_size)
    logits.requires_grad_()
    real = logits[..., :vocab_size].float().permute(1, 2, 0)
    losses = F.cross_entropy(real, labels, reduction="none")
    (losses * weight).sum().backward()
    return losses.detach(), logits.grad


def ours(dtype: torch.dtype, vocab_size: int, rank: int, ranks: int, group) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels, weight = example(dtype, vocab_size)
    shard = logits.chunk(ranks, dim=-1)[rank].clone().requires_grad_()
    losses = cross_entropy(shard, labels.t(), vocab_size, group, inplace=True).t()
    (losses * weight).sum().backward()
    return losses.detach(), shard.grad


def on_a_rank() -> list:
    import torch.distributed as dist

    return [ours(*case, dist.get_rank(), dist.get_world_size(), dist.group.WORLD) for case in CASES]


# With 9 real columns of 24, the second of two ranks holds padding only.
CASES = [(dtype, vocab_size) for dtype in (torch.float32, torch.bfloat16) for vocab_size in (PADDED, 19, 9)]


def check(losses: torch.Tensor, gradient: torch.Tensor, case: tuple) -> None:
    dtype, vocab_size = case
    true_losses, true_gradient = expected(*case)
    assert losses.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(losses, true_losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, true_gradient, atol=1e-6 if dtype == torch.float32 else 4e-3, rtol=0)
    assert not gradient[..., vocab_size:].any()


@pytest.mark.parametrize("case", CASES)
def test_one_rank(case: tuple):
    check(*ours(*case, 0, 1, None), case)


def test_two_ranks():
    shards = run_distributed(on_a_rank, 2)
    for case, first, second in zip(CASES, *shards, strict=True):
        assert torch.equal(first[0], second[0])
        check(first[0], torch.cat((first[1], second[1]), dim=-1), case)


def test_large_scores_do_not_overflow():
    logits = torch.tensor([[[1e4, -1e4, 0.0]]]).requires_grad_()
    losses = cross_entropy(logits.clone(), torch.tensor([[1]]), 3, inplace=True)
    assert losses.item() == pytest.approx(2e4)


def test_a_second_backward_pass_is_refused():
    logits, labels, _ = example(torch.float32, PADDED)
    losses = cross_entropy(logits.requires_grad_().clone(), labels.t(), PADDED, inplace=True)
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()
