"""PPO's arithmetic as pure functions of tensors (Schulman et al., arXiv 1707.06347; Ziegler et al., arXiv 1909.08593).

Tensors are float32 [N, T], for N episodes of T tokens, aligned with the predicted tokens. `mask` is 1 where the policy
generated the token; these tokens are contiguous in each episode.
"""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Reward of every token, float32 [N, T]: -kl_coefficient (log p - log p_ref), plus the score at the last token.

    scores: float32 [N], of whole responses. logprobs, reference: float32 [N, T], of the generated tokens.
    """
    rewards = -kl_coefficient * (logprobs - reference) * mask
    return rewards.scatter_add(1, last_index(mask)[:, None], scores[:, None])


def last_index(mask: Tensor) -> Tensor:
    """Index of the last 1 of every row, int64 [N]."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates (arXiv 1506.02438) and returns, both float32 [N, T], 0 where `mask` is 0.

    A_t = sum_k (gamma gae_lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t, where V is 0 after the last
    token; the return is A_t + V_t.
    """
    advantages, following, next_value = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = here * (delta + gamma * gae_lambda * following)
        next_value = here * values[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`values` scaled to (biased) variance 1 over `mask` and, if `shift_mean`, shifted to mean 0; 0 elsewhere."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    white = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_ratio: float
) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - clip_ratio, 1 + clip_ratio) A) with r = p / p_old, and r, both in the inputs' shape."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    return torch.maximum(-advantages * ratio, -advantages * clipped), ratio.detach()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_value: float) -> Tensor:
    """max((V - R)^2, (V_old + clip(V - V_old, -clip_value, clip_value) - R)^2) / 2, in the shape of the inputs."""
    near = old_values + (values - old_values).clamp(-clip_value, clip_value)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over `mask`: 1 for a perfect critic, 0 for a constant.

    NaN when R varies only by rounding. Returns are sums of advantages and values, so the rounding error scales with the
    larger of |R| and |V|.
    """
    kept = mask.bool()
    real, guessed = returns[kept].double(), values[kept].double()
    rounding = torch.finfo(returns.dtype).eps * max(real.abs().max(), guessed.abs().max())
    spread = real.var(unbiased=False)
    if not spread.sqrt() > 8 * rounding:
        return float("nan")
    return float(1 - (real - guessed).var(unbiased=False) / spread)


def adapted_kl_coefficient(coefficient: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The KL coefficient after `episodes` whose mean divergence was `kl`; kl, target: nats per response.

    coefficient (1 + clip(kl / target - 1, -0.2, 0.2) min(episodes / horizon, 1)), see arXiv 1909.08593, section 2.2.
    The minimum limits the change of one update to 20%.
    """
    return coefficient * (1 + min(max(kl / target - 1, -0.2), 0.2) * min(episodes / horizon, 1.0))
