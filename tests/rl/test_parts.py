"""The parts of an iteration of PPO one by one, against loops and closed forms."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import Config, PPOConfig
from megagpt.data.chat import Message, chat_prompt, grow_for_chat
from megagpt.data.conversations import Conversation, read_conversations
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.shards import Shard
from megagpt.rl.advantages import compute_advantages
from megagpt.rl.episodes import EpisodeBatch, Episodes, PretrainingBatch
from megagpt.rl.minibatches import Minibatches
from megagpt.rl.offload import on_device
from megagpt.rl.prompts import Prompt, PromptOrder, read_prompts
from megagpt.rl.rewards import CheckerReward, ModelReward, response_text
from megagpt.rl.scoring import TokenModel, all_gather_rows, compute_scores, compute_values
from megagpt.rl.weight_average import WeightAverage

CPU = torch.device("cpu")
COUNT, LENGTH = 6, 9


@pytest.fixture(scope="module")
def tokenizer():
    return grow_for_chat(train_tokenizer(["to be or not to be, that is the question"] * 20, 280))


@pytest.fixture
def episodes() -> Episodes:
    """Episodes of random numbers: prompts of 2 or 3 tokens, responses of 1 to 5."""
    torch.manual_seed(0)
    made = Episodes(COUNT, LENGTH, kl_coefficient=0.1, device=CPU)
    made.prompt_lengths.copy_(torch.tensor([2, 3, 2, 3, 2, 3]))
    made.lengths.copy_(torch.tensor([3, 5, 5, 8, 7, 4]))
    made.finished.copy_(torch.tensor([1, 0, 1, 1, 0, 1]))
    for row, length in enumerate(made.lengths.tolist()):
        made.tokens[row, :length] = torch.randint(1, 200, (length,))
    mask = made.mask
    made.logprobs.copy_(-torch.rand(COUNT, LENGTH) * mask)
    made.reference.copy_(-torch.rand(COUNT, LENGTH) * mask)
    made.values.copy_(torch.randn(COUNT, LENGTH) * mask)
    made.scores.copy_(torch.randn(COUNT))
    return made


# ---- prompts ------------------------------------------------------------------------------------------------------


def conversation(*turns: tuple[str, str], **extra) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in turns), extra=extra)


def test_a_prompt_is_a_conversation_without_its_last_answer(tokenizer):
    ppo = PPOConfig(max_prompt_tokens=200, reward="checker")
    asked = conversation(("user", "to be?"), check={"kind": "copy"})
    answered = conversation(("user", "to be?"), ("assistant", "or not"), check={"kind": "copy"})
    first, second = read_prompts(tokenizer, [asked, answered], ppo)
    assert first == second
    assert first.tokens == chat_prompt(tokenizer, [Message("user", "to be?")])
    assert first.check == {"kind": "copy"}


@pytest.mark.parametrize(
    ("turns", "ppo", "message"),
    [
        ([("assistant", "or not")], PPOConfig(), "no user's turn"),
        ([("user", "to be?")], PPOConfig(reward="checker"), 'has no "check"'),
        ([("user", "to be? " * 50)], PPOConfig(max_prompt_tokens=10), "raise ppo.max_prompt_tokens"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(tokenizer, turns, ppo, message):
    with pytest.raises(DataError, match=message):
        read_prompts(tokenizer, [conversation(*turns)], ppo)


def test_an_unusable_prompt_is_named_by_its_line(tokenizer, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "to be?", "check": {}}\n{"prompt": "or not?"}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: .*no \"check\""):
        read_prompts(tokenizer, read_conversations([path]), PPOConfig(reward="checker"))


def test_prompts_that_are_too_long_are_counted(tokenizer, caplog):
    short, long = conversation(("user", "to be?")), conversation(("user", "to be? " * 50))
    assert len(read_prompts(tokenizer, [short, long], PPOConfig(max_prompt_tokens=30))) == 1
    assert "1 of 2 prompts are left out: longer than ppo.max_prompt_tokens (30)" in caplog.text


def test_every_prompt_comes_once_an_epoch_in_another_order():
    prompts = [Prompt((), [number], None) for number in range(12)]
    order = PromptOrder(prompts, count=4, seed=1)
    numbers = [prompt.tokens[0] for iteration in range(6) for prompt in order.of_iteration(iteration)]
    assert sorted(numbers[:12]) == sorted(numbers[12:]) == list(range(12))
    assert numbers[:12] != numbers[12:]
    again = PromptOrder(prompts, count=4, seed=1)
    assert [prompt.tokens[0] for prompt in again.of_iteration(5)] == numbers[20:]  # out of turn, as after a resume


# ---- episodes and minibatches -------------------------------------------------------------------------------------


def test_the_mask_holds_the_labels_that_are_response_tokens(episodes):
    for row in range(COUNT):
        first, last = episodes.prompt_lengths[row], episodes.lengths[row]
        expected = [float(first <= column + 1 < last) for column in range(LENGTH)]
        assert episodes.mask[row].tolist() == expected


def test_a_batch_of_episodes_predicts_the_next_token(episodes):
    rows = torch.tensor([4, 1])
    batch = episodes.batch(rows)
    assert isinstance(batch, EpisodeBatch)
    assert torch.equal(batch.tokens, episodes.tokens[rows])
    chosen = batch.loss_mask.bool()
    assert torch.equal(batch.labels[:, :-1], batch.tokens[:, 1:])
    assert (batch.labels[chosen] > 0).all()
    assert torch.equal(batch.values, episodes.values[rows])


def test_replicas_share_a_step_in_micro_batches(episodes):
    rows = torch.tensor([5, 4, 3, 2, 1, 0])
    alone = episodes.micro_batches(rows, 1, 0, 1)
    for size, replicas in ((1, 2), (3, 2), (1, 3), (2, 3)):
        shares = [episodes.micro_batches(rows, size, replica, replicas) for replica in range(replicas)]
        in_turn = [share[number] for number in range(len(shares[0])) for share in shares]
        assert torch.equal(torch.cat([b.tokens for b in in_turn]), torch.cat([b.tokens for b in alone]))


def dims(rank: int = 0, size: int = 1) -> ParallelDims:
    return ParallelDims(rank=rank, world_size=size, tensor_size=1, pipeline_size=1, virtual_size=1)


def test_every_epoch_of_an_iteration_takes_all_episodes_once():
    config = Config(ppo=PPOConfig(rollout_batch_size=6, epochs=2))
    minibatches = Minibatches(config, None)
    steps = [(first, minibatches.rows(first, 2).tolist()) for first in range(0, 24, 2)]
    assert [minibatches.iteration_of(first) for first, _ in steps] == [0] * 6 + [1] * 6
    epochs = [[row for _, rows in steps[at : at + 3] for row in rows] for at in range(0, 12, 3)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    with pytest.raises(ConfigError, match=r"ppo.rollout_batch_size a multiple of optim.global_batch_size"):
        minibatches.rows(4, 4)


class Text:
    """A loader of pretraining text that notes what it is asked for."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes, self.asked = episodes, []

    def micro_batches(self, first: int, count: int, rank: int, ranks: int):
        self.asked.append((first, count, rank, ranks))
        return iter([self.episodes.inputs(torch.tensor([0, 1]))] * (count // 2 // ranks))


def test_pretraining_text_follows_every_micro_batch_with_a_weight_of_its_mean(episodes):
    ppo = PPOConfig(rollout_batch_size=6, max_prompt_tokens=3, max_new_tokens=6, ptx_ratio=3, ptx_coefficient=2.0)
    config = Config(ppo=ppo)
    config = replace(config, parallel=replace(config.parallel, micro_batch_size=2))
    text, rows = Text(episodes), torch.tensor([0, 1, 2, 3])
    batches = list(Minibatches(config, text).of_policy(episodes, rows, first_sample=4, dims=dims()))
    assert text.asked == [(4 * 3, 4 * 3, 0, 1)]
    kinds = [type(batch) for batch in batches]
    assert kinds == ([EpisodeBatch] + [PretrainingBatch] * 3) * 2
    tokens = sum(int(episodes.lengths[row] - episodes.prompt_lengths[row]) for row in range(4))
    # The engine divides the sum by `tokens`; the text counts as the mean over its 12 rows of 9 tokens, twice.
    assert batches[1].weight * (12 * 9) / tokens == pytest.approx(2.0)
    plain = replace(config, ppo=replace(ppo, ptx_coefficient=0.0))
    alone = list(Minibatches(plain, text).of_policy(episodes, rows, first_sample=4, dims=dims()))
    assert [type(batch) for batch in alone] == [EpisodeBatch] * 2


# ---- scores, values, advantages -----------------------------------------------------------------------------------


class Engine:
    """Gives the number of each token as its value, and notes where its module is."""

    def __init__(self) -> None:
        self.dims, self.device = dims(), CPU
        self.modules = [torch.nn.Linear(1, 1)]

    def outputs(self, batches, count: int) -> list[torch.Tensor]:
        found = [batch.tokens.float() for batch in batches]
        assert len(found) == count
        return found


def test_scores_are_of_the_last_token_and_values_of_responses_alone(episodes):
    model = TokenModel(Engine(), micro_batch_size=4, offload=True)
    scores, values = compute_scores(model, episodes), compute_values(model, episodes)
    for row in range(COUNT):
        assert scores[row] == episodes.tokens[row, episodes.lengths[row] - 1]
        assert torch.equal(values[row], episodes.tokens[row].float() * episodes.mask[row])
    assert torch.equal(ModelReward(model)(episodes, []), scores)


def test_a_model_that_is_offloaded_comes_back_for_its_use():
    places = []
    module = SimpleNamespace(to=lambda device: places.append(str(device)))
    engine = SimpleNamespace(modules=[module], device=torch.device("cuda:0"))
    with on_device(engine, offload=True):
        places.append("used")
    with on_device(engine, offload=False):
        places.append("used")
    assert places == ["cuda:0", "used", "cpu", "used"]


def _rows_of_replicas() -> list:
    import torch.distributed as dist

    rank, size = dist.get_rank(), dist.get_world_size()
    values = torch.zeros(4, 3)
    values[rank * 2 : rank * 2 + 2] = rank + 1.0
    all_gather_rows([values], dims(rank, size))
    return values.tolist()


def test_every_rank_gets_the_rows_of_all_replicas():
    expected = [[1.0] * 3] * 2 + [[2.0] * 3] * 2
    assert run_distributed(_rows_of_replicas, 2) == [expected, expected]


def test_a_checker_reads_the_response_without_its_end(tokenizer):
    episodes = Episodes(2, 30, kl_coefficient=0.0, device=CPU)
    prompt, seen = tokenizer.encode("to be?"), []
    for row, text in enumerate(("or not", "that is")):
        tokens = prompt + tokenizer.encode(text) + [tokenizer.end_of_text_id]
        episodes.tokens[row, : len(tokens)] = torch.tensor(tokens)
        episodes.prompt_lengths[row], episodes.lengths[row] = len(prompt), len(tokens)

    def check(wanted: dict, text: str) -> float:
        seen.append((wanted, text))
        return float(text == wanted["text"])

    prompts = [Prompt((), prompt, {"text": "or not"}), Prompt((), prompt, {"text": "or not"})]
    assert CheckerReward(check, tokenizer)(episodes, prompts).tolist() == [1.0, 0.0]
    assert [text for _, text in seen] == ["or not", "that is"]
    assert response_text(episodes, 1, tokenizer) == "that is"


def test_advantages_and_metrics_of_an_iteration_follow_their_definitions(episodes):
    ppo = PPOConfig(
        missing_eos_penalty=0.5, gamma=0.9, gae_lambda=0.8, kl_target=0.3, kl_horizon=100, whiten_advantages=False
    )
    metrics = compute_advantages(episodes, ppo)
    kls = []
    for row in range(COUNT):
        first, last = int(episodes.prompt_lengths[row]) - 1, int(episodes.lengths[row]) - 1
        difference = (episodes.logprobs - episodes.reference)[row].tolist()
        rewards = {t: -0.1 * difference[t] for t in range(first, last)}
        rewards[last - 1] += float(episodes.scores[row]) - 0.5 * (1 - int(episodes.finished[row]))
        values, advantage = {**dict(enumerate(episodes.values[row].tolist())), last: 0.0}, 0.0
        for t in reversed(range(first, last)):
            delta = rewards[t] + 0.9 * (values[t + 1] if t + 1 < last else 0.0) - values[t]
            advantage = delta + 0.9 * 0.8 * advantage
            assert float(episodes.advantages[row, t]) == pytest.approx(advantage, abs=1e-5)
            assert float(episodes.returns[row, t]) == pytest.approx(advantage + values[t], abs=1e-5)
        kls.append(sum(difference[first:last]))
    kl = sum(kls) / COUNT
    assert metrics["kl"] == pytest.approx(kl, abs=1e-6)
    assert metrics["kl_coefficient"] == 0.1
    assert metrics["response_tokens"] == pytest.approx(sum(int(n) for n in episodes.mask.sum(1)) / COUNT)
    assert metrics["eos_rate"] == pytest.approx(4 / 6)
    grown = 0.1 * (1 + min(max(kl / 0.3 - 1, -0.2), 0.2) * COUNT / 100)
    assert float(episodes.kl_coefficient) == pytest.approx(grown)


def test_the_average_of_weights_is_the_exponential_mean_of_those_saved():
    weight = torch.tensor([1.0, 2.0])
    shards = [Shard.whole("model/weight", weight), Shard.whole("optimizer/exp_avg/weight", torch.ones(2))]
    engine = SimpleNamespace(shards=lambda for_saving: iter(shards))
    average = WeightAverage(engine, decay=0.9, device="cpu")
    assert [shard.name for shard in average.shards] == ["ema/weight"]
    expected = weight.clone()
    for step in range(1, 4):
        weight.add_(step)
        average.update()
        expected = 0.9 * expected + 0.1 * weight
        torch.testing.assert_close(average.shards[0].data, expected)
    average.restart()
    assert torch.equal(average.shards[0].data, weight)
