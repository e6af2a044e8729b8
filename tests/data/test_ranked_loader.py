"""Batches of ranked answers, and the loss on them against another computation over all pairs."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from megagpt.config.schema import Config, DataConfig, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.chat import Message, encode_chat, grow_for_chat
from megagpt.data.ranked_loader import RankedLoader
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import DataError
from megagpt.train.objectives import RewardObjective, ranking_loss


def record(number: int, ranks: list, words: int = 2, **others) -> dict:
    """A prompt of its own with an answer for each rank."""
    answers = [{"content": " ".join([f"answer{number}"] * words + ["x"] * n), "rank": r} for n, r in enumerate(ranks)]
    return {"messages": [{"role": "user", "content": f"question {number}"}], "answers": answers, **others}


@pytest.fixture
def loader_of(tmp_path):
    """A function from records, and settings of `parallel`, to their loader."""

    def make(records: list[dict], split=(0.8, 0.2, 0.0), **parallel) -> RankedLoader:
        (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        tokenizer = grow_for_chat(train_tokenizer(["question answer x 0 1 2 3 4 5 6 7 8 9"] * 9, 280))
        tokenizer.save(tmp_path / "tokenizer.json")
        data = DataConfig(str(tmp_path / "tokenizer.json"), split=split, rankings=(str(tmp_path / "rankings.jsonl"),))
        model = ModelConfig(sequence_length=64, vocab_size=tokenizer.vocab_size, head="scalar")
        return RankedLoader(Config(model=model, data=data, parallel=ParallelConfig(**parallel), optim=OptimConfig()))

    return make


RECORDS = [record(number, list(range(2 + number % 8))) for number in range(24)]


def test_a_ranking_that_the_model_s_template_refuses_is_named(loader_of, tmp_path):
    template = "{% if '23' in messages[0].content %}{{ raise_exception('not this') }}{% endif %}"
    template += "{% for m in messages %}{{ m.role + ':' + m.content + '<|endoftext|>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(DataError, match=r"rankings\.jsonl:24: the model's chat template refuses .*: not this"):
        loader_of(RECORDS)


def test_an_answer_is_a_row_and_its_score_is_read_at_its_end(loader_of):
    loader = loader_of(RECORDS, micro_batch_size=2)
    texts = {}
    for r in RECORDS:
        for a in r["answers"]:
            conversation = [Message("user", r["messages"][0]["content"]), Message("assistant", a["content"])]
            texts[tuple(encode_chat(loader.tokenizer, conversation).tokens.tolist())] = (r["answers"], a["rank"])
    for batch in loader.micro_batches(0, 8, 0, 1):
        assert batch.tokens.shape == batch.loss_mask.shape == batch.position_ids.shape
        assert (batch.loss_mask.sum(1) == 1).all()
        assert batch.loss_mask[:, -1].any()  # rows are as long as the longest
        for prompt, group in itertools.groupby(range(len(batch.tokens)), key=lambda row: batch.prompts[row].item()):
            seen = []
            for row in group:
                end = batch.loss_mask[row].argmax().item()
                answers, rank = texts[tuple(batch.tokens[row, : end + 1].tolist())]
                assert batch.ranks[row] == rank
                seen.append(rank)
            assert seen == [answer["rank"] for answer in answers], prompt
        values = torch.arange(batch.tokens.numel()).view(batch.tokens.shape).float()
        assert batch.scores(values).tolist() == [values[i, m.argmax()].item() for i, m in enumerate(batch.loss_mask)]


def test_replicas_share_the_prompts_of_a_step_and_an_epoch_has_each_once(loader_of):
    loader = loader_of(RECORDS)
    count = len(loader.examples["train"])
    whole = [batch.tokens.tolist() for batch in loader.micro_batches(0, count, 0, 1)]
    again = loader_of(RECORDS)
    for start in range(0, count - 3, 4):
        parts = [list(again.micro_batches(start, 4, rank, 2)) for rank in (0, 1)]
        merged = [batch.tokens.tolist() for pair in zip(*parts, strict=True) for batch in pair]
        assert merged == whole[start : start + 4]
    expected = sorted(row.tolist() for example in loader.examples["train"] for row in example.rows)
    end = loader.tokenizer.end_of_text_id
    assert sorted(_stripped(row, end) for rows in whole for row in rows) == expected


def _stripped(row: list[int], end: int) -> list[int]:
    while row[-2:] == [end, end]:
        row = row[:-1]
    return row


def test_batches_of_a_pipeline_have_one_shape_and_the_loss_does_not_see_its_padding(loader_of):
    plain = loader_of(RECORDS, micro_batch_size=2)
    piped = loader_of(RECORDS, micro_batch_size=2, pipeline_parallel_size=2)
    pairs = list(zip(plain.micro_batches(0, 16, 0, 1), piped.micro_batches(0, 16, 0, 1), strict=True))
    assert len({padded.tokens.shape for _, padded in pairs}) == 1
    assert len({batch.tokens.shape for batch, _ in pairs}) > 1
    for batch, padded in pairs:
        rows, length = batch.tokens.shape
        values = torch.randn(padded.tokens.shape, generator=torch.Generator().manual_seed(1))
        expected = RewardObjective().loss(values[:rows, :length], batch)
        loss, count, metrics = RewardObjective().loss(values, padded)
        torch.testing.assert_close((loss, count, *metrics), (expected[0], expected[1], *expected[2]))


def test_held_out_prompts_are_no_training_prompts_and_every_replica_gets_as_many_batches(loader_of):
    records = [*RECORDS, *RECORDS[:3], record(3, [1, 0, 2])]  # repetitions, and other answers to one prompt
    loader = loader_of(records)
    train, held = (
        {tuple(row[: len(row) // 2].tolist()) for example in loader.examples[split] for row in example.rows}
        for split in ("train", "validation")
    )
    assert held
    assert not train & held
    assert sum(len(examples) for examples in loader.examples.values()) == len(RECORDS) + 1
    batches = [list(loader.evaluation_batches("validation", None, rank, 2)) for rank in (0, 1)]
    assert len(batches[0]) == len(batches[1])
    scored = sum(int(batch.loss_mask.sum()) for part in batches for batch in part)
    assert scored == sum(len(example.rows) for example in loader.examples["validation"])


@pytest.mark.parametrize("rows", [[3, 5], [2], [9, 2, 4]])
def test_loss_and_gradient_are_those_of_all_pairs(rows):
    rng = np.random.default_rng(len(rows))
    ranks = [rng.integers(0, 4, size) for size in rows]
    scores = torch.tensor(rng.normal(size=sum(rows)), requires_grad=True)
    prompts = torch.tensor([number for number, size in enumerate(rows) for _ in range(size)])
    loss, count, accuracy, margin = ranking_loss(
        scores, torch.from_numpy(np.concatenate(ranks)), prompts, torch.ones(sum(rows), dtype=torch.bool)
    )
    loss.backward()

    expected, gradient, counted, right, margins, start = 0.0, np.zeros(sum(rows)), 0, 0.0, 0.0, 0
    for own in ranks:
        pairs = [(i, j) for i in range(len(own)) for j in range(len(own)) if own[i] < own[j]]
        for i, j in pairs:
            difference = scores[start + i].item() - scores[start + j].item()
            expected -= math.log(1 / (1 + math.exp(-difference))) / len(pairs)
            slope = 1 / (1 + math.exp(difference)) / len(pairs)
            gradient[start + i] -= slope
            gradient[start + j] += slope
            right += (difference > 0) / len(pairs)
            margins += difference / len(pairs)
        counted += bool(pairs)
        start += len(own)
    assert count == counted
    np.testing.assert_allclose([loss.item(), accuracy, margin], [expected, right, margins], rtol=1e-5)
    np.testing.assert_allclose(scores.grad, gradient, rtol=1e-5, atol=1e-12)


def test_a_prompt_of_ties_or_of_padding_has_no_loss_and_does_not_count():
    ranks, prompts = torch.tensor([1, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    scores = torch.tensor([3.0, -1.0, 0.5, 0.2])
    alone = ranking_loss(scores[2:], ranks[2:], prompts[2:], torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(ranking_loss(scores, ranks, prompts, torch.ones(4, dtype=torch.bool)), alone)
    present = torch.tensor([True, True, False, True])
    assert [float(value) for value in ranking_loss(scores, ranks, prompts, present)] == [0, 0, 0, 0]


def test_what_nothing_can_be_learnt_from_is_counted(loader_of, caplog):
    useless = [record(100, [0]), record(101, [2, 2, 2]), record(102, [0, 1], words=60)]
    loader = loader_of([*RECORDS, *useless], split=(1.0, 0.0, 0.0))
    assert len(loader.examples["train"]) == len(RECORDS)
    assert "2 of 27 prompts are left out: none of their answers is better" in caplog.text
    assert "1 of 27 prompts are left out: fewer than two different answers end within" in caplog.text
    with pytest.raises(DataError, match="no prompt with two answers to compare is left in the train split of 3"):
        loader_of(useless, split=(1.0, 0.0, 0.0))


def test_answers_without_ranks_are_refused_by_line(loader_of):
    bad = record(1, [0, 1])
    del bad["answers"][1]["rank"]
    with pytest.raises(DataError, match=r"rankings\.jsonl:2: .*rank"):
        loader_of([RECORDS[0], bad])
