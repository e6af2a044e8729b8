"""Reinforcement learning from a reward: rollouts, advantages, and the update of policy and critic by PPO."""
