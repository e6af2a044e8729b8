"""Rows that join and leave at any time get what each gets alone, what transformers gives, and what no cache gives."""

import random
from dataclasses import replace

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import ParallelConfig
from megagpt.model.generation_config import GenerationConfig
from tests.model.tiny import GPT3, LLAMA, VOCAB, generator, same

SHARED = [31, 7, 90, 14, 5, 66, 71, 8, 120, 33, 4, 17, 58, 250, 61, 19, 23, 77]
"""What many prompts begin with: longer than what is worth a copy."""


def jobs(count: int) -> list[tuple[list[int], GenerationConfig]]:
    """Prompts, short and long, some of which begin alike, and settings that differ in everything."""
    draw, found = random.Random(5), []
    for number in range(count):
        own = draw.choices(range(VOCAB), k=draw.choice((1, 3, 9, 20)))
        settings = GenerationConfig(
            max_new_tokens=draw.randint(1, 14),
            temperature=draw.choice((0.0, 0.7, 1.0, 1.6)),
            top_k=draw.choice((0, 0, 5, 40)),
            top_p=draw.choice((1.0, 0.9, 0.6)),
            repetition_penalty=draw.choice((1.0, 1.3)),
            frequency_penalty=draw.choice((0.0, 0.8)),
            presence_penalty=draw.choice((0.0, -0.9, 1.5)),
            logit_bias=draw.choice(((), {draw.randrange(VOCAB): 4.0, 3: -100.0})),
            stop=draw.choice(((), ("e", " ", "a"))),
            seed=number,
        )
        found.append((SHARED + own if number % 2 else own, settings))
    return found


def run(ours, jobs, rows: int, chunk_tokens: int | None, kept_tokens: int, seed: int):
    """Completions of jobs that are added at random times, and the batch that made them."""
    from megagpt.model.continuous_batching import ContinuousBatch
    from megagpt.model.prefix_store import PrefixStore
    from megagpt.model.staged_model import for_generation

    batch = ContinuousBatch(ours, rows, None, chunk_tokens, PrefixStore(kept_tokens) if kept_tokens else None)
    made = [ours.row(number, prompt, settings) for number, (prompt, settings) in enumerate(jobs)]
    draw, coming = random.Random(seed), list(made)
    draw.shuffle(coming)
    texts: dict[int, str] = {}
    with for_generation(ours.modules):
        while coming or batch.busy:
            for _ in range(draw.choice((0, 0, 1, 3)) if batch.busy else 1):
                if coming:
                    batch.add(coming.pop())
            for written in batch.step():
                texts[written.row.key] = texts.get(written.row.key, "") + written.text
    assert [texts[row.key] for row in made] == [row.completion().text for row in made]
    return [row.completion() for row in made], batch


@pytest.mark.parametrize("model", [GPT3, LLAMA])
@pytest.mark.usefixtures("one_rank")
def test_a_row_in_company_equals_itself_alone(model, monkeypatch):
    from megagpt.model import kv_cache

    monkeypatch.setattr(kv_cache, "FIRST_ROOM", (1, 8))  # so that it has to grow
    monkeypatch.setattr(kv_cache, "SPARE_COLUMNS", 2)
    ours, work = generator(model), jobs(24)
    alone = [ours.generate([prompt], settings)[0] for prompt, settings in work]
    assert len({len(completion.tokens) for completion in alone}) > 6
    assert {completion.finish_reason for completion in alone} >= {"stop", "length", "context"}
    for seed, (rows, chunk, kept) in enumerate([(5, None, 0), (5, 4, 0), (7, 6, 90), (1, 3, 60)]):
        together, batch = run(ours, work, rows, chunk, kept, seed)
        same(together, alone)
        assert (batch.reused_tokens > 5 * len(SHARED)) == (kept > 0)
        assert batch.prompt_tokens == sum(len(prompt) for prompt, _ in work)
        assert batch.new_tokens == sum(len(completion.tokens) for completion in alone)
        if kept:
            assert batch.prefixes.tokens <= kept


@pytest.mark.usefixtures("one_rank")
def test_greedy_rows_that_join_at_random_times_equal_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel

    from megagpt.model.parameters import named_boxes
    from tests.model.hf import to_hugging_face

    model = replace(GPT3, attention_pattern=("dense",))
    ours = generator(model)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=32, n_head=4, n_positions=40, vocab_size=VOCAB)).eval()
    weights = {name: p.detach() for name, p, _ in named_boxes(ours.modules)}
    theirs.load_state_dict(to_hugging_face(weights, model, theirs))
    end = ours.tokenizer.end_of_text_id
    greedy = GenerationConfig(max_new_tokens=12, temperature=0.0)
    work = [(prompt, greedy) for prompt, _ in jobs(12)]
    made, _ = run(ours, work, 4, 7, 200, seed=1)
    for (prompt, _), completion in zip(work, made, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=min(12, 40 - len(prompt)),
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        assert prompt + completion.tokens == expected[0].tolist()


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("model", [GPT3, LLAMA])
@pytest.mark.usefixtures("one_rank")
def test_penalties_bias_and_log_probabilities_equal_those_without_a_cache(model, chunk):
    from megagpt.model.continuous_batching import ContinuousBatch
    from megagpt.model.staged_model import for_generation

    ours = generator(model)
    choice = GenerationConfig(
        max_new_tokens=12, temperature=0.0, frequency_penalty=0.7, presence_penalty=1.1, logit_bias={5: 3.0, 9: -100.0}
    )
    rows = [
        ours.row(number, prompt, choice, alternatives=4 * (number % 2), prompt_alternatives=wanted)
        for number, (prompt, wanted) in enumerate([(SHARED, 3), ([5], 2), (SHARED[:7], 0), ([*SHARED, 2], None)])
    ]
    batch = ContinuousBatch(ours, 3, None, chunk)
    for row in rows:
        batch.add(row)
    written: dict = {row: [] for row in rows}
    with for_generation(ours.modules):
        while batch.busy:
            for each in batch.step():
                written[each.row].append(each)
    for row in rows:
        start, tokens = len(row.prompt), torch.tensor([row.prompt + row.tokens])
        with torch.no_grad():
            logits = ours.modules[0].eval()(tokens, torch.arange(tokens.shape[1])[None], None)[0, :, :VOCAB]
        plain = logits.log_softmax(-1)
        for place, each in enumerate(written[row]):
            here, before = logits[start + place - 1].clone(), row.tokens[:place]
            for token in set(before):
                here[token] -= 0.7 * before.count(token) + 1.1
            here[5] += 3.0
            here[9] -= 100.0
            assert each.token == int(here.argmax())
            best = plain[start + place - 1].topk(row.alternatives)
            assert [token for token, _ in each.alternatives] == best.indices.tolist()
            found = [each.model_logprob, row.logprobs[place], *(value for _, value in each.alternatives)]
            expected = [plain[start + place - 1, each.token], here.log_softmax(-1)[each.token], *best.values]
            torch.testing.assert_close(torch.tensor(found), torch.stack(expected), atol=1e-4, rtol=0)
        if row.prompt_alternatives is None:
            assert row.prompt_scores == []
            continue
        assert len(row.prompt_scores) == start - 1
        for place, (logprob, alternatives) in enumerate(row.prompt_scores):
            best = plain[place].topk(row.prompt_alternatives)
            assert [token for token, _ in alternatives] == best.indices.tolist()
            found = [logprob, *(value for _, value in alternatives)]
            expected = [plain[place, row.prompt[place + 1]], *best.values]
            torch.testing.assert_close(torch.tensor(found), torch.stack(expected), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("one_rank")
def test_a_cancelled_row_makes_place_at_once_and_changes_nothing_for_others():
    from megagpt.model.continuous_batching import ContinuousBatch
    from megagpt.model.staged_model import for_generation

    ours = generator(GPT3)
    work = jobs(3)
    long = GenerationConfig(max_new_tokens=30, seed=8)
    alone = [ours.generate([prompt], long)[0] for prompt, _ in work]
    batch = ContinuousBatch(ours, 2, None, 6)
    first, second, third = rows = [ours.row(number, prompt, long) for number, (prompt, _) in enumerate(work)]
    with for_generation(ours.modules):
        for row in rows:
            batch.add(row)
        while second not in batch.active:
            batch.step()
        batch.cancel(first)
        assert batch.active == [second]
        batch.step()
        assert batch.active == [second, third] and len(first.tokens) < 30
        reading = ours.row("long", SHARED, long)
        batch.cancel(third)
        batch.add(reading)
        batch.step()
        assert batch.reading is reading
        batch.cancel(reading)
        unread = ours.row("unread", SHARED, long)
        batch.add(unread)
        batch.cancel(unread)
        while batch.busy:
            batch.step()
        batch.cancel(second)  # which has ended
    same([second.completion()], [alone[1]])
    assert not reading.tokens and not unread.tokens


def _in_layouts(layouts: list[dict]) -> list:
    from megatron.core import parallel_state

    from megagpt.parallel import launch

    results = []
    for layout in layouts:
        launch.initialize(ParallelConfig(**layout), seed=0)
        for model in (GPT3, LLAMA):
            ours = generator(model, **layout)
            made, _ = run(ours, jobs(10), 4, 6, 90, seed=3)
            row = ours.row("scores", SHARED, GenerationConfig(max_new_tokens=2), 0, 2, 2)
            results.append((made, scored(ours, row)))
        parallel_state.destroy_model_parallel()
    return results


def scored(ours, row) -> list[float]:
    """All log-probabilities that are made for a row, one after the other."""
    from megagpt.model.continuous_batching import ContinuousBatch
    from megagpt.model.staged_model import for_generation

    batch, found = ContinuousBatch(ours, 2, None, 6), []
    batch.add(row)
    with for_generation(ours.modules):
        while batch.busy:
            for each in batch.step():
                found += [each.model_logprob, *(value for _, value in each.alternatives)]
    return found + [value for own, others in row.prompt_scores for value in (own, *(each for _, each in others))]


@pytest.mark.usefixtures("one_rank")
def test_tensor_and_pipeline_ranks_equal_one():
    layouts = [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}]
    expected = []
    for model in (GPT3, LLAMA):
        ours = generator(model)
        alone = [ours.generate([prompt], settings)[0] for prompt, settings in jobs(10)]
        row = ours.row("scores", SHARED, GenerationConfig(max_new_tokens=2), 0, 2, 2)
        expected.append((alone, scored(ours, row)))
    assert len(expected[0][1]) == 2 * 3 + 17 * 3
    for rank in run_distributed(_in_layouts, 2, layouts):
        for (made, scores), (alone, right) in zip(rank, expected * 2, strict=True):
            same(made, alone)
            torch.testing.assert_close(scores, right, atol=1e-3, rtol=0)
