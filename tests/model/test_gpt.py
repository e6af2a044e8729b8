"""Our model against transformers' models with the same weights, and against itself under recompute."""

from dataclasses import replace

import pytest
import torch

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from tests.model.peers import llama_settings

pytestmark = pytest.mark.usefixtures("one_rank")

TINY = ModelConfig(num_layers=4, hidden_size=48, num_attention_heads=4, sequence_length=64, vocab_size=301)
LLAMA = replace(
    TINY,
    position_embedding="rope",
    rope_base=5000.0,
    normalization="rmsnorm",
    activation="swiglu",
    bias=False,
    tie_embeddings=False,
    num_query_groups=2,
)


def build(model: ModelConfig, recompute: str = "none", precision: str = "fp32"):
    """A model whose biases and norms are not at their initial zeros and ones, so that every one of them counts."""
    from megagpt.model.gpt import GPT

    gpt = GPT(Config(model=model, parallel=ParallelConfig(recompute=recompute), optim=OptimConfig(precision=precision)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return gpt


def named(gpt, gradients: bool = False) -> dict[str, torch.Tensor]:
    from megagpt.model.parameters import named_boxes

    return {name: (p.grad if gradients else p.detach()) for name, p, _ in named_boxes([gpt])}


def inputs(model: ModelConfig, batch: int = 3, length: int = 37):
    tokens = torch.randint(0, model.vocab_size, (batch, length + 1), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(length).expand(batch, length)
    return tokens[:, :-1], positions, tokens[:, 1:]


def compare(gpt, theirs, model: ModelConfig, check_gradients: bool = True) -> None:
    """Same logits, same mean loss and, as the conversion is linear, same gradients under converted names."""
    from tests.model.hf import to_hugging_face

    missing, unexpected = theirs.load_state_dict(to_hugging_face(named(gpt), model, theirs), strict=False)
    assert not missing and not unexpected
    theirs.train()
    tokens, positions, labels = inputs(model)
    expected = theirs(input_ids=tokens).logits
    logits = gpt(tokens, positions, None)
    torch.testing.assert_close(logits[..., : model.vocab_size], expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1  # the comparison has something to compare

    loss = gpt(tokens, positions, None, labels=labels).mean()
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    if not check_gradients:
        return
    loss.backward()
    expected_loss.backward()
    gradients = to_hugging_face(named(gpt, gradients=True), model, theirs)
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(gradients[name] / scale, parameter.grad / scale, atol=1e-4, rtol=0, msg=name)


def test_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(
        GPT2Config(
            n_layer=4, n_embd=48, n_head=4, n_positions=64, vocab_size=301, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0
        )
    )
    gpt = build(TINY)
    compare(gpt, theirs, TINY)
    assert gpt.embedding.word_embeddings.weight.shape[0] == 384
    assert not gpt.embedding.word_embeddings.weight.grad[301:].any()


def test_gpt_neo_for_the_banded_pattern():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    model = replace(TINY, attention_pattern=("dense", "banded"), attention_window=7)
    theirs = GPTNeoForCausalLM(
        GPTNeoConfig(
            num_layers=4,
            hidden_size=48,
            num_heads=4,
            max_position_embeddings=64,
            vocab_size=301,
            attention_types=[[["global", "local"], 2]],
            window_size=7,
            resid_dropout=0,
            attention_dropout=0,
            embed_dropout=0,
        )
    )
    gpt = build(model)
    with torch.no_grad():
        for layer in gpt.decoder.layers:
            layer.self_attention.linear_qkv.bias.zero_()
    # The scale folded into q makes the gradient of q's weight differ by that factor.
    compare(gpt, theirs, model, check_gradients=False)
    dense = build(TINY)
    dense.load_state_dict(gpt.state_dict())
    tokens, positions, _ = inputs(model)
    assert (dense(tokens, positions, None) - gpt(tokens, positions, None)).abs().max() > 1e-2


def test_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    compare(build(LLAMA), LlamaForCausalLM(LlamaConfig(**llama_settings(LLAMA, vocab_size=LLAMA.vocab_size))), LLAMA)


def test_qwen3_for_normalised_queries_and_keys():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = replace(LLAMA, qk_layernorm=True)
    compare(build(model), Qwen3ForCausalLM(Qwen3Config(**llama_settings(model, vocab_size=model.vocab_size))), model)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.filterwarnings("ignore:.*core_attn")
def test_recompute_changes_nothing(recompute: str, dropout: float):
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model = replace(
        LLAMA,
        attention_pattern=("banded", "dense"),
        attention_window=5,
        hidden_dropout=dropout,
        attention_dropout=dropout,
    )
    tokens, positions, labels = inputs(model)
    results = []
    for gpt in (build(model), build(model, recompute)):
        model_parallel_cuda_manual_seed(3, force_reset_rng=True)
        loss = gpt(tokens, positions, None, labels=labels).mean()
        loss.backward()
        results.append({"loss": loss.detach(), **named(gpt, gradients=True)})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_dropout_is_off_in_evaluation():
    model = replace(TINY, hidden_dropout=0.5, attention_dropout=0.5)
    tokens, positions, _ = inputs(model)
    gpt = build(model)
    assert not torch.equal(gpt(tokens, positions, None), gpt(tokens, positions, None))
    gpt.eval()
    plain = build(TINY)(tokens, positions, None)
    torch.testing.assert_close(gpt(tokens, positions, None), plain)


@pytest.mark.parametrize("base", [TINY, LLAMA])
def test_documents_do_not_see_each_other(base: ModelConfig):
    from megagpt.data.batch import cumulative_lengths

    model = replace(base, attention_pattern=("dense", "banded"), attention_window=4)
    gpt = build(model)
    lengths = (5, 11, 9)
    tokens, _, _ = inputs(model, batch=1, length=sum(lengths))
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = gpt(tokens, positions, cumulative_lengths(ids))
    apart = [gpt(part, torch.arange(part.shape[1])[None], None) for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), atol=1e-5, rtol=0)


def test_a_given_mask_replaces_causality():
    gpt = build(TINY)
    tokens, positions, _ = inputs(TINY, batch=1, length=8)
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % TINY.vocab_size
    for mask, sees_the_end in ((None, False), (torch.zeros(1, 1, 8, 8, dtype=torch.bool), True)):
        same = torch.equal(gpt(tokens, positions, mask)[:, 0], gpt(changed, positions, mask)[:, 0])
        assert same != sees_the_end


def test_bf16():
    model = replace(LLAMA, qk_layernorm=True)
    gpt = build(model, precision="bf16")
    assert {p.dtype for p in gpt.parameters()} == {torch.bfloat16}
    tokens, positions, labels = inputs(model)
    losses = gpt(tokens, positions, None, labels=labels)
    assert losses.dtype == torch.float32
    exact = build(model)
    exact.load_state_dict(gpt.state_dict())
    torch.testing.assert_close(losses, exact(tokens, positions, None, labels=labels), atol=0.1, rtol=0)
    losses.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gpt.parameters())
