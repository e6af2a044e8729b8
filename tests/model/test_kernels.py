"""A model trains alike with Triton's kernels and with PyTorch's, and says which it uses."""

import logging

import pytest
import torch

from megagpt.config.load import load
from megagpt.errors import ConfigError
from megagpt.kernels.backend import chip_like
from megagpt.model.gpt import GPT
from megagpt.model.kernels import choose_kernels
from megagpt.model.kv_cache import KVCache

pytest.importorskip("triton", reason="Triton is not installed")
SMALL = [
    "model=tiny", "model.hidden_size=128", "model.num_attention_heads=2", "model.num_layers=2",
    "model.vocab_size=300", "model.sequence_length=40", "model.attention_pattern=[dense,banded]",
    "model.attention_window=16",
]  # fmt: skip
TRITON = [f"kernels.{key}=triton" for key in ("attention", "norm", "activation", "bias_dropout_add", "cross_entropy")]
TORCH = ["kernels.attention=sdpa", *(setting.replace("triton", "torch") for setting in TRITON[1:])]
MODERN = ["model.position_embedding=rope", "model.normalization=rmsnorm", "model.activation=swiglu", "model.bias=false"]


def losses(settings: list[str], steps: int = 4) -> list[float]:
    model = GPT(load([*SMALL, *settings]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    tokens = torch.randint(300, (2, 41), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.arange(40, device=device).expand(2, -1)
    found = []
    for _ in range(steps):
        loss = model(tokens[:, :-1], positions, None, labels=tokens[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("shape", [[], MODERN], ids=["gpt3", "modern"])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), pytest.param("bf16", 2e-2, marks=pytest.mark.slow)]
)
def test_training_with_kernels_equals_training_without(one_rank, launched, shape, precision, tolerance):
    settings = [*shape, f"optim.precision={precision}"]
    kernels = losses([*settings, *TRITON])
    if precision == "bf16":
        assert {"attention_forward_kernel", "attention_dkdv_kernel", "attention_dq_kernel"} <= set(launched)
    assert any("norm" in name for name in launched)
    assert any("cross_entropy" in name for name in launched)
    launched.clear()
    expected = losses([*settings, *TORCH])
    assert not launched
    assert kernels == pytest.approx(expected, rel=tolerance)
    assert kernels[-1] < 0.8 * kernels[0]


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [pytest.param(TRITON, marks=pytest.mark.thorough), TORCH], ids=["triton", "torch"])
@pytest.mark.parametrize("shape", [[], [*MODERN, "model.tie_embeddings=false"]], ids=["gpt3", "modern"])
def test_fused_output_projection_trains_alike(one_rank, shape, kernels):
    settings = [*shape, "optim.precision=fp32", *kernels]
    fused = losses([*settings, "kernels.fuse_output_projection=true"], steps=2)
    assert fused == pytest.approx(losses(settings, steps=2), rel=1e-5)


@pytest.mark.parametrize("kernels", [TRITON, TORCH], ids=["triton", "torch"])
@pytest.mark.parametrize("shape", [[], MODERN], ids=["gpt3", "modern"])
@torch.no_grad()
def test_logits_with_a_cache_are_those_without(one_rank, launched, shape, kernels):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = GPT(load([*SMALL, *shape, "optim.precision=bf16", *kernels])).to(device).eval()
    rows = torch.randint(300, (2, 23), generator=torch.Generator().manual_seed(0)).to(device)
    begins = (0, 14)  # the first row is longer than the window of the banded layer
    cache = KVCache(2, 2, 23, device)
    for end in (20, 21, 22, 23):
        if end == 20:
            current = cache.begin_prompts([20 - begin for begin in begins])
            tokens = torch.cat([row[begin:20] for row, begin in zip(rows, begins, strict=True)])
        else:
            current = cache.begin_tokens()
            tokens = rows[:, end - 1]
        launched.clear()
        logits = model(tokens, cache_pass=current)
        assert ("decode_attention_kernel" in launched) == (kernels is TRITON and end > 20)
        for row, begin, found in zip(rows, begins, logits, strict=True):
            positions = torch.arange(end - begin, device=device)[None]
            expected = model(row[None, begin:end], positions, None)[0, -1]
            torch.testing.assert_close(found.float(), expected.float(), atol=0.02, rtol=0)
            assert expected.abs().max() > 0.2


def test_what_was_chosen_is_logged(one_rank, caplog):
    caplog.set_level(logging.INFO, "megagpt")
    chosen = choose_kernels(load([*SMALL, "kernels.norm=triton"]))
    assert chosen.norm == "triton"
    assert "auto" not in vars(chosen).values()
    assert f"attention {chosen.attention}, norm triton" in caplog.text


@pytest.mark.parametrize(
    ("setting", "message"),
    [("model.attention_dropout=0.1", "attention_dropout=0.1"), ("model.num_attention_heads=8", "head dimension of 16")],
)
def test_what_the_kernels_lack_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        choose_kernels(load([*SMALL, setting, "kernels.attention=triton"]))


def test_a_gpu_that_no_launch_settings_fit_computes_with_torch(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "megagpt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr("megagpt.model.kernels.chip", lambda: None)
    chosen = choose_kernels(load(SMALL))
    assert chosen.attention == "sdpa"
    assert "triton" not in vars(chosen).values()
    assert "and this one has 7.5" in caplog.text
    monkeypatch.setattr("megagpt.model.kernels.interpreted", lambda: False)
    with pytest.raises(ConfigError, match=r"kernels.norm=triton needs .* compute capability 8.0 .* this one has 7.5"):
        choose_kernels(load([*SMALL, "kernels.norm=triton"]))


@pytest.mark.parametrize(
    ("capability", "shared_kib", "chip"),
    [
        (75, 64, None),  # T4
        (80, 163, 80),  # A100
        (86, 99, 86),  # RTX 3090
        (87, 163, 86),  # Orin
        (89, 99, 89),  # RTX 4090, L4
        (90, 227, 90),  # H100
        (100, 227, 100),  # B200
        (103, 227, 103),  # B300
        (110, 227, 103),  # Thor
        (120, 99, 120),  # RTX 5090
        (121, 99, 120),  # GB10
    ],
)
def test_a_gpu_takes_the_newest_launch_settings_that_fit_it(capability, shared_kib, chip):
    assert chip_like(capability, shared_kib) == chip
