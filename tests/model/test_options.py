"""The options of the architecture against transformers' models that have them, with the same weights in float32."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from megagpt.config.schema import ModelConfig
from tests.model.peers import GEMMA2, GEMMA3, LLAMA, LLAMA3, PEERS, YARN, Peer
from tests.model.test_gpt import build as near_zero
from tests.model.test_gpt import inputs, named

pytestmark = pytest.mark.usefixtures("one_rank")


def build(model: ModelConfig):
    """A model whose weights are large enough for activations to differ from their approximations."""
    gpt = near_zero(model)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter *= 1 if parameter.dim() == 1 else 2.5
    return gpt


@pytest.mark.parametrize("name", PEERS)
def test_a_model_equals_transformers(name: str):
    peer = PEERS[name]
    gpt, theirs = build(peer.model), peer.build()
    load(peer, gpt, theirs)
    tokens, positions, labels = inputs(peer.model)
    expected = theirs(input_ids=tokens).logits
    assert expected.std() > 0.1  # the comparison has something to compare
    logits = gpt(tokens, positions, None)[..., : peer.model.vocab_size]
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)

    loss = gpt(tokens, positions, None, labels=labels).mean()
    expected_loss = F.cross_entropy(expected.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected_loss.backward()
    gradients = peer.tensors(named(gpt, gradients=True))
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name in wanted:
        scale = wanted[name].abs().max().clamp(min=1e-4)  # softmax ignores biases of keys, whose gradients are noise
        found = pad_positions(gradients[name], wanted[name])
        torch.testing.assert_close(found / scale, wanted[name] / scale, atol=1e-4, rtol=0, msg=name)


def load(peer: Peer, gpt: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Give `theirs` the weights of `gpt`: all of them, to each of its own."""
    tensors, own = peer.tensors(named(gpt)), theirs.state_dict()
    tensors = {name: pad_positions(tensor, own[name]) for name, tensor in tensors.items()}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and all(peer.model.tie_embeddings and name == "lm_head.weight" for name in missing), missing


def pad_positions(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """OPT's positions begin at the third row of their table."""
    return F.pad(ours, (0, 0, 2, 0)) if theirs.shape[0] == ours.shape[0] + 2 else ours


EFFECTS = [
    (LLAMA3, "rope_scaling", LLAMA.rope_scaling),
    (YARN, "rope_scaling", replace(YARN.rope_scaling, attention_factor=1.0)),
    (YARN, "activation", "geglu"),
    (GEMMA2, "embedding_scale", None),
    (GEMMA2, "attention_scale", None),
    (GEMMA2, "attention_softcap", None),
    (GEMMA2, "logit_softcap", None),
    (GEMMA3, "rope_local_base", None),
    (GEMMA3, "zero_centered_norm", False),
    (PEERS["phi3"].model, "rotary_fraction", 1.0),
    (PEERS["gpt_neox"].model, "activation", "gelu"),
    (PEERS["gpt_neox"].model, "parallel_block", "none"),
    (PEERS["nemotron"].model, "activation", "relu"),
]


@pytest.mark.parametrize(("model", "option", "other"), EFFECTS)
def test_an_option_has_an_effect(model: ModelConfig, option: str, other):
    """What the comparison above cannot miss: with the same weights, another value gives other logits."""
    tokens, positions, _ = inputs(model)
    gpt, changed = build(model), build(replace(model, **{option: other}))
    changed.load_state_dict(gpt.state_dict())
    difference = (gpt(tokens, positions, None) - changed(tokens, positions, None)).abs().max()
    assert difference > 1e-3
