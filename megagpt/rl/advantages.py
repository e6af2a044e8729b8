"""Computes advantages and returns from scores, log-probabilities and values."""

from megagpt.config.schema import PPOConfig
from megagpt.rl import ppo_math
from megagpt.rl.episodes import Episodes


def compute_advantages(episodes: Episodes, ppo: PPOConfig) -> dict[str, float]:
    """Fill `advantages` and `returns`; with `ppo.kl_target`, adapt the KL coefficient for the next iteration.

    Returns the metrics of the iteration: means over episodes, `kl` in nats per response. Its `kl_coefficient` is the
    one before adaptation, which the rewards were computed with.
    """
    mask, coefficient = episodes.mask, episodes.kl_coefficient.item()
    scores = episodes.scores - ppo.missing_eos_penalty * (1 - episodes.finished)
    rewards = ppo_math.token_rewards(scores, episodes.logprobs, episodes.reference, mask, coefficient)
    if ppo.whiten_rewards:
        rewards = ppo_math.whiten(rewards, mask, shift_mean=False)
    advantages, returns = ppo_math.advantages_and_returns(rewards, episodes.values, mask, ppo.gamma, ppo.gae_lambda)
    episodes.advantages.copy_(ppo_math.whiten(advantages, mask) if ppo.whiten_advantages else advantages)
    episodes.returns.copy_(returns)
    kl = ((episodes.logprobs - episodes.reference) * mask).sum(1).mean().item()
    if ppo.kl_target is not None:
        adapted = ppo_math.adapted_kl_coefficient(
            coefficient, kl=kl, target=ppo.kl_target, episodes=len(mask), horizon=ppo.kl_horizon
        )
        episodes.kl_coefficient.fill_(adapted)
    return {
        "score": episodes.scores.mean().item(),
        "reward": (rewards * mask).sum(1).mean().item(),
        "kl": kl,
        "kl_coefficient": coefficient,
        "response_tokens": mask.sum(1).mean().item(),
        "eos_rate": episodes.finished.double().mean().item(),
        "explained_variance": ppo_math.explained_variance(episodes.values, returns, mask),
    }
