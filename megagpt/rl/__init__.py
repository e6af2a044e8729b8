"""The parts of PPO: prompts, rollouts, scoring, advantages, minibatches, objectives. The loop is `stages/ppo.py`."""
