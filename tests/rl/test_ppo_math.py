"""PPO's arithmetic against what its definitions give, written out."""

import math

import pytest
import torch

from megagpt.rl import ppo_math

EPISODES, TOKENS = 7, 11


@pytest.fixture
def episodes() -> dict[str, torch.Tensor]:
    """Random figures of episodes whose answers begin and end anywhere, one of them a single token."""
    generator = torch.Generator().manual_seed(0)
    firsts = torch.tensor([0, 3, 2, 5, 0, 10, 4])
    lasts = torch.tensor([10, 8, 2, 9, 0, 10, 7])
    columns = torch.arange(TOKENS)
    mask = ((columns >= firsts[:, None]) & (columns <= lasts[:, None])).float()
    names = ("rewards", "values", "logprobs", "reference", "returns")
    drawn = {name: torch.randn(EPISODES, TOKENS, generator=generator) for name in names}
    scores = torch.randn(EPISODES, generator=generator)
    return drawn | {"mask": mask, "scores": scores, "firsts": firsts, "lasts": lasts}


def test_the_reward_of_tokens_is_the_divergence_and_at_the_end_the_score(episodes):
    rewards = ppo_math.token_rewards(
        episodes["scores"], episodes["logprobs"], episodes["reference"], episodes["mask"], 0.3
    )
    for n in range(EPISODES):
        for t in range(TOKENS):
            inside = episodes["firsts"][n] <= t <= episodes["lasts"][n]
            expected = -0.3 * (episodes["logprobs"][n, t] - episodes["reference"][n, t]) if inside else 0.0
            if t == episodes["lasts"][n]:
                expected = expected + episodes["scores"][n]
            assert math.isclose(rewards[n, t], expected, abs_tol=1e-6)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_sums_of_discounted_temporal_differences(episodes, gamma, gae_lambda):
    rewards, values, mask = (episodes[name].double() for name in ("rewards", "values", "mask"))
    advantages, returns = ppo_math.advantages_and_returns(rewards, values, mask, gamma, gae_lambda)
    for n in range(EPISODES):
        first, last = int(episodes["firsts"][n]), int(episodes["lasts"][n])
        for t in range(TOKENS):
            expected = 0.0
            for k in range(t, last + 1) if first <= t else ():
                following = values[n, k + 1] if k < last else 0.0
                delta = rewards[n, k] + gamma * following - values[n, k]
                expected += (gamma * gae_lambda) ** (k - t) * delta
            inside = first <= t <= last
            assert math.isclose(advantages[n, t], expected if inside else 0.0, abs_tol=1e-9)
            assert math.isclose(returns[n, t], expected + values[n, t] if inside else 0.0, abs_tol=1e-9)


def test_without_decay_a_return_is_the_sum_of_the_rewards_to_come(episodes):
    _, returns = ppo_math.advantages_and_returns(episodes["rewards"], episodes["values"], episodes["mask"], 1.0, 1.0)
    kept = episodes["rewards"] * episodes["mask"]
    expected = kept.flip(1).cumsum(1).flip(1) * episodes["mask"]
    torch.testing.assert_close(returns, expected)


def test_whitening(episodes):
    values, kept = episodes["values"], episodes["mask"].bool()
    white = ppo_math.whiten(values, episodes["mask"])
    assert not white[~kept].any()
    torch.testing.assert_close(white[kept].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(white[kept].std(correction=0), torch.tensor(1.0))
    scaled = ppo_math.whiten(values, episodes["mask"], shift_mean=False)
    torch.testing.assert_close(scaled[kept].mean(), values[kept].mean())
    torch.testing.assert_close(scaled[kept].std(correction=0), torch.tensor(1.0))


def test_the_policy_loss_is_flat_where_the_ratio_has_gone_far_enough():
    old = torch.zeros(4, dtype=torch.float64)
    new = torch.tensor([0.5, 0.1, -0.5, -0.1], dtype=torch.float64, requires_grad=True)
    for sign in (1.0, -1.0):
        losses, ratio = ppo_math.clipped_policy_loss(new, old, sign * torch.ones(4, dtype=torch.float64), 0.2)
        torch.testing.assert_close(ratio, new.detach().exp())
        (gradient,) = torch.autograd.grad(losses.sum(), new)
        beyond = (new.detach().exp() > 1.2) if sign > 0 else (new.detach().exp() < 0.8)
        torch.testing.assert_close(gradient, torch.where(beyond, 0.0, -sign * new.detach().exp()))
        for index in range(4):
            r, a = float(ratio[index]), sign
            assert math.isclose(losses[index], -min(r * a, min(max(r, 0.8), 1.2) * a), abs_tol=1e-12)


def test_at_the_old_policy_the_gradient_is_that_of_policy_gradient():
    logits = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    chosen, advantages = torch.tensor([0, 8, 3, 3, 1]), torch.tensor([1.0, -2.0, 0.5, 3.0, -0.1], dtype=torch.float64)
    logprobs = logits.log_softmax(-1).gather(1, chosen[:, None]).squeeze(1)
    losses, _ = ppo_math.clipped_policy_loss(logprobs, logprobs.detach(), advantages, 0.2)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(advantages * logprobs).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_the_value_loss_takes_the_worse_of_the_value_and_the_clipped_one():
    old, returns = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, -1.0])
    values = torch.tensor([0.1, 0.6, 0.6], requires_grad=True)
    losses = ppo_math.clipped_value_loss(values, old, returns, 0.2)
    expected = [0.5 * max((v - r) ** 2, (min(max(v, -0.2), 0.2) - r) ** 2) for v, r in ((0.1, 1), (0.6, 1), (0.6, -1))]
    torch.testing.assert_close(losses, torch.tensor(expected))
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    torch.testing.assert_close(gradient, torch.tensor([-0.9, 0.0, 1.6]))


def test_explained_variance(episodes):
    returns, mask = episodes["returns"], episodes["mask"]
    assert ppo_math.explained_variance(returns, returns, mask) == 1
    assert abs(ppo_math.explained_variance(torch.full_like(returns, 3.0), returns, mask)) < 1e-6
    assert math.isnan(ppo_math.explained_variance(returns, torch.ones_like(returns), mask))


def test_explained_variance_is_none_where_only_rounding_varies():
    """Answers of one token whose scores are all the same: advantages and values add up to it, but for rounding."""
    values = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    returns = (0.7 - values) + values
    assert returns.var() > 0
    assert math.isnan(ppo_math.explained_variance(values, returns, torch.ones_like(values)))


def test_the_divergence_that_is_penalised_is_in_the_mean_that_of_the_distributions():
    generator = torch.Generator().manual_seed(2)
    policy, reference = torch.randn(2, 6, dtype=torch.float64, generator=generator).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    chosen = torch.multinomial(policy.exp().expand(200_000, 6), 1, generator=generator)
    mask = torch.ones(200_000, 1, dtype=torch.float64)
    rewards = ppo_math.token_rewards(
        torch.zeros(200_000, dtype=torch.float64), policy[chosen], reference[chosen], mask, 1.0
    )
    error = rewards.std() / math.sqrt(200_000)
    assert abs(-rewards.mean() - exact) < 5 * error


@pytest.mark.parametrize(("kl", "expected"), [(6.0, 0.1), (60.0, 0.1 * 1.02), (0.0, 0.1 * 0.98), (6.6, 0.1 * 1.01)])
def test_the_coefficient_follows_the_divergence(kl, expected):
    assert math.isclose(ppo_math.adapted_kl_coefficient(0.1, kl, 6.0, 1000, 10_000), expected)


def test_the_coefficient_stays_above_0_where_an_iteration_is_longer_than_the_horizon():
    coefficient = 0.02
    for _ in range(50):
        coefficient = ppo_math.adapted_kl_coefficient(coefficient, kl=0.0, target=6.0, episodes=100_000, horizon=10)
    assert math.isclose(coefficient, 0.02 * 0.8**50)
