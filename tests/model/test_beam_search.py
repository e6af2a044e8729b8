"""Beam search finds what transformers finds, what trying every sequence finds, and the same in every layout."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import ModelConfig, ParallelConfig
from megagpt.errors import ConfigError, DataError, TrainingDiverged
from tests.model.tiny import GPT3, LLAMA, PROMPTS, VOCAB, generator, same

DENSE = replace(GPT3, attention_pattern=("dense",))
MODELS = {"dense": DENSE, "banded": GPT3, "rope": LLAMA}
SEARCHES = [
    (4, 0.6, False),
    (4, 1.0, True),
    (4, 1.5, False),
    (4, 1.5, True),
    (4, 1.5, "never"),
    (4, -0.7, "never"),
    (3, 1.0, False),
    (1, 0.6, "never"),
]
"""Numbers of beams, length penalties, and when the search ends."""


def search(ours, prompts, **values):
    from megagpt.model.beam_search import BeamSearchConfig, beam_search

    return beam_search(ours, prompts, BeamSearchConfig(**values))


def that_ends(model: ModelConfig, **options):
    """A generator whose continuations often end by themselves, which one token of hundreds would seldom do."""
    ours = generator(model, **options)
    with torch.no_grad():
        for module in ours.modules:
            if module.post_process or (module.pre_process and model.tie_embeddings):
                weight = (
                    module.shared_embedding_or_output_weight() if model.tie_embeddings else module.output_layer.weight
                )
                end = ours.tokenizer.end_of_text_id - module.pg_collection.tp.rank() * len(weight)
                if 0 <= end < len(weight):
                    weight[end] *= 2.5
    return ours


def in_transformers(ours, model: ModelConfig):
    """The same weights in transformers' class."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from megagpt.model.parameters import named_boxes
    from tests.model.hf import to_hugging_face

    width, layers, heads, length = 32, 4, 4, model.sequence_length
    if model is DENSE:
        theirs = GPT2LMHeadModel(
            GPT2Config(n_layer=layers, n_embd=width, n_head=heads, n_positions=length, vocab_size=VOCAB)
        )
    elif model is GPT3:
        theirs = GPTNeoForCausalLM(
            GPTNeoConfig(
                num_layers=layers,
                hidden_size=width,
                num_heads=heads,
                max_position_embeddings=length,
                vocab_size=VOCAB,
                attention_types=[[["global", "local"], 2]],
                window_size=model.attention_window,
            )
        )
        with torch.no_grad():  # GPT-Neo has no such bias
            for layer in ours.modules[0].decoder.layers:
                layer.self_attention.linear_qkv.bias.zero_()
    else:
        theirs = Qwen3ForCausalLM(
            Qwen3Config(
                num_hidden_layers=layers,
                hidden_size=width,
                intermediate_size=model.ffn_size,
                num_attention_heads=heads,
                num_key_value_heads=model.query_groups,
                head_dim=model.head_size,
                vocab_size=VOCAB,
                max_position_embeddings=length,
                rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
                rms_norm_eps=model.norm_epsilon,
                tie_word_embeddings=False,
            )
        )
    weights = {name: p.detach() for name, p, _ in named_boxes(ours.modules)}
    missing, unexpected = theirs.load_state_dict(to_hugging_face(weights, model, theirs), strict=False)
    assert not missing and not unexpected
    return theirs.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("one_rank")
def test_same_as_transformers(name):
    model = MODELS[name]
    ours = that_ends(model)
    theirs, end = in_transformers(ours, model), ours.tokenizer.end_of_text_id
    prompts = [*PROMPTS, "dog", ";"]
    ids = [ours.tokenizer.encode(prompt) or [end] for prompt in prompts]
    longest = max(map(len, ids))
    padded = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in ids])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in ids])
    found = {}
    for beams, penalty, early in SEARCHES:
        expected = theirs.generate(
            padded,
            attention_mask=mask,
            num_beams=beams,
            length_penalty=penalty,
            early_stopping=early if beams > 1 else False,
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            return_dict_in_generate=True,
            output_scores=True,
        )
        given = {"num_beams": beams, "length_penalty": penalty, "early_stopping": early, "max_new_tokens": 16}
        completions = search(ours, prompts, length_penalty_form="power", **given)
        for number, (completion, row) in enumerate(
            zip(completions, expected.sequences[:, longest:].tolist(), strict=True)
        ):
            length = len(completion.tokens)
            assert completion.tokens == row[:length], (given, number)
            assert set(row[length:]) <= {end}
            if beams > 1:
                score = sum(completion.logprobs) / length**penalty
                assert score == pytest.approx(expected.sequences_scores[number].item(), abs=1e-4)
        found[beams, penalty, early] = [tuple(completion.tokens) for completion in completions]
    assert len({len(tokens) for rows in found.values() for tokens in rows}) > 4
    assert found[4, 0.6, False] != found[4, 1.5, False] != found[4, 1.5, True]  # the settings matter
    assert name == "rope" or found[4, 1.5, False] != found[4, 1.5, "never"]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.usefixtures("one_rank")
def test_gnmt_penalty_against_every_sequence(alpha):
    """Four tokens and end-of-text can be generated, and the search is wide enough to see all their sequences."""
    ours, length = generator(DENSE), 3
    gpt, end = ours.modules[0].eval(), ours.tokenizer.end_of_text_id
    allowed = [40, 70, 90, 110]
    with torch.no_grad():  # the first dimension is 1 whatever comes in, and pushes all other tokens down
        gpt.decoder.final_layernorm.weight[0], gpt.decoder.final_layernorm.bias[0] = 0.0, 1.0
        gpt.embedding.word_embeddings.weight[:, 0] = -60.0
        gpt.embedding.word_embeddings.weight[[*allowed, end], 0] = 0.0
        gpt.embedding.word_embeddings.weight[end] *= 2
    for prompt in ([5, 6, 7], [8], [200, 40, 40, 40, 3]):
        scores = {}
        for count in range(length + 1):
            for tokens in product(allowed, repeat=count):
                whole = tokens if count == length else (*tokens, end)
                row = torch.tensor([[*prompt, *whole]])
                with torch.no_grad():
                    logits = gpt(row, torch.arange(row.shape[1])[None], None)[0, len(prompt) - 1 : -1, :VOCAB]
                logprob = logits.double().log_softmax(-1).gather(-1, torch.tensor(whole)[:, None]).sum().item()
                scores[whole] = logprob / ((5 + len(whole)) / 6) ** alpha
        best = max(scores, key=scores.__getitem__)
        (completion,) = search(ours, [prompt], num_beams=100, max_new_tokens=length, length_penalty=alpha)
        assert tuple(completion.tokens) == best
        total = sum(completion.logprobs) / ((5 + len(best)) / 6) ** alpha
        assert total == pytest.approx(scores[best], abs=1e-4)


@pytest.mark.parametrize("model", [GPT3, LLAMA], ids=["gpt3", "llama"])
@pytest.mark.usefixtures("one_rank")
def test_one_beam_is_greedy_and_a_batch_gives_what_each_prompt_gives_alone(model):
    from megagpt.model.generation import GenerationConfig

    ours = that_ends(model)
    greedy = ours.generate(PROMPTS, GenerationConfig(temperature=0.0, max_new_tokens=20))
    assert len({completion.finish_reason for completion in greedy}) > 1
    same(search(ours, PROMPTS, num_beams=1, max_new_tokens=20), greedy)
    alone = [search(ours, [prompt], max_new_tokens=20)[0] for prompt in PROMPTS]
    for batch_size in (1, 8, 32):
        ours.batch_size = batch_size
        same(search(ours, PROMPTS, max_new_tokens=20), alone)
        same(search(ours, PROMPTS[::-1], max_new_tokens=20), alone[::-1])
    assert search(ours, []) == []


def _search_all(model: ModelConfig, **layout) -> list:
    ours = that_ends(model, **layout)
    return [search(ours, PROMPTS, stop="e", max_new_tokens=20, length_penalty=alpha) for alpha in (0.6, 2.0)]


def _search_in_layouts(layouts: list[dict]) -> list:
    from megatron.core import parallel_state

    from megagpt.parallel import launch

    results = []
    for layout in layouts:
        launch.initialize(ParallelConfig(**layout), seed=0)
        results += [_search_all(model, **layout) for model in (GPT3, LLAMA)]
        parallel_state.destroy_model_parallel()
    return results


@pytest.mark.usefixtures("one_rank")
def test_layouts_equal_one_rank():
    layouts = [
        {"tensor_parallel_size": 2, "sequence_parallel": True},
        {"pipeline_parallel_size": 2},
    ]
    expected = [_search_all(model) for model in (GPT3, LLAMA)]
    for rank in run_distributed(_search_in_layouts, 2, layouts):
        for ours, theirs in zip(rank, expected * len(layouts), strict=True):
            for completions, alone in zip(ours, theirs, strict=True):
                same(completions, alone)


@pytest.mark.usefixtures("one_rank")
def test_stop_strings_as_in_transformers(tmp_path):
    from transformers import PreTrainedTokenizerFast

    ours = that_ends(DENSE)
    theirs, end = in_transformers(ours, DENSE), ours.tokenizer.end_of_text_id
    ours.tokenizer.save(tmp_path / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    free = search(ours, PROMPTS, max_new_tokens=12, length_penalty_form="power")
    letters = sorted({letter for completion in free for letter in completion.text if letter.isascii()})
    ended = set()
    for letter in letters[::4]:
        completions = search(ours, PROMPTS, max_new_tokens=12, length_penalty_form="power", stop=letter)
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            ids = ours.tokenizer.encode(prompt) or [end]
            expected = theirs.generate(
                torch.tensor([ids]),
                num_beams=4,
                length_penalty=0.6,
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
                stop_strings=[letter],
                tokenizer=tokenizer,
            )
            assert completion.tokens == expected[0, len(ids) :].tolist()
            assert letter not in completion.text
            assert (completion.finish_reason == "stop") == (letter in ours.tokenizer.decode(completion.tokens))
            ended.add(completion.finish_reason)
    assert "stop" in ended and len(ended) > 1


@pytest.mark.usefixtures("one_rank")
def test_stop_strings_cross_tokens():
    ours = generator(GPT3)
    (free,) = search(ours, ["the cat"], max_new_tokens=12)
    pieces = [ours.tokenizer.decode([token]) for token in free.tokens]
    meets = [a[-1] + b[0] for a, b in pairwise(pieces) if a and b and (a + b).isascii()]
    for stop in meets:
        (stopped,) = search(ours, ["the cat"], max_new_tokens=12, stop=(stop, "never there"))
        assert stop not in stopped.text
        if stopped.finish_reason == "stop":
            assert (stopped.text + stop) in ours.tokenizer.decode(stopped.tokens)
            assert stop not in ours.tokenizer.decode(stopped.tokens[:-1])
    assert meets


@pytest.mark.usefixtures("one_rank")
def test_how_a_search_ends():
    ours = generator(GPT3)
    prompts = [[7] * 38, [7] * 39, [7, 8]]
    together = search(ours, prompts, max_new_tokens=10)
    assert [completion.finish_reason for completion in together] == ["context", "context", "length"]
    assert [len(completion.tokens) for completion in together] == [2, 1, 10]
    for prompt, completion in zip(prompts, together, strict=True):
        same([completion], search(ours, [prompt], max_new_tokens=10))
    # With one token left, the best continuation is the likeliest token.
    assert together[1].tokens == search(ours, [prompts[1]], num_beams=1)[0].tokens
    with pytest.raises(DataError, match=r"prompt 1 has 40 tokens.*at most 39"):
        search(ours, [[1], [1] * 40])
    with torch.no_grad():
        ours.modules[0].decoder.final_layernorm.bias.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="not finite"):
        search(ours, ["the"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 0),
        ("max_new_tokens", 0),
        ("length_penalty", float("nan")),
        ("length_penalty_form", "t5"),
        ("stop", ("a", "")),
        ("early_stopping", "always"),
    ],
)
def test_bad_settings_are_refused_by_name(name, value):
    from megagpt.model.beam_search import BeamSearchConfig

    with pytest.raises(ConfigError, match=f"^{name} is "):
        BeamSearchConfig(**{name: value})
