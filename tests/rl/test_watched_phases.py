"""The watchdog over PPO: every phase has its own name and time-out, and every model's passes count as progress."""

import time
from collections.abc import Callable

import pytest
from dist import run_distributed

from megagpt.train.heartbeat import Heartbeat
from megagpt.train.post_mortem import PostMortem

LIMIT = 1.0
"""Seconds that a phase may be without progress here."""

HELD = 6.0
"""Seconds that a phase is held up: longer than the time-out, the time between two looks, and naming who it was."""

PHASES = {"rollout": "generate", "scoring": "score", "critic": "train_critic", "policy": "train_policy"}


def _hold_up(overrides: list[str]) -> list[str]:
    """What the watchdog reports while each phase of the second iteration is held up."""
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.stages.session import open_run

    said: list[str] = []
    held: set[str] = set()

    def held_up(phase: str, work: Callable) -> Callable:
        def wait_and_work(*arguments, **named):
            if trainer.watchdog.progress.step > 2 and phase not in held:
                held.add(phase)
                time.sleep(HELD)
            return work(*arguments, **named)

        return wait_and_work

    with pytest.MonkeyPatch.context() as monkeypatch:
        # A hang is announced once and ends the job; here each is noted, and the job goes on.
        monkeypatch.setattr(Heartbeat, "announce", lambda self, hang: said.append(hang["text"]) or hang)
        monkeypatch.setattr(PostMortem, "end", lambda self, hang: None)
        with open_run(load(overrides)) as trainer:
            stage = trainer.stage
            for phase, method in PHASES.items():
                owner = stage.models.rollouts if phase == "rollout" else stage
                monkeypatch.setattr(owner, method, held_up(phase, getattr(owner, method)))
            stage.fit(trainer)
    parallel_state.destroy_model_parallel()
    assert held == set(PHASES)
    return said


@pytest.mark.slow
def test_every_phase_is_named_with_its_own_time_out(settings):
    limits = [f"reliability.{phase}_timeout={LIMIT}" for phase in PHASES]
    # The time-outs of training on batches have nothing to say here: PPO once ran under the name of the data loader.
    limits += [f"reliability.{section}_timeout=0.01" for section in ("load", "forward", "backward")]
    run = [*settings, *limits, "run_name=held_up", "ppo.epochs=1", "ppo.episodes=32"]
    (said,) = run_distributed(_hold_up, 1, run)
    for phase in PHASES:
        reports = [text for text in said if f"no progress in {phase} for" in text]
        assert reports, (phase, said)
        assert f"reliability.{phase}_timeout={LIMIT:g}" in reports[0]
    assert not any(f"progress in {section}" in text for text in said for section in ("load", "forward", "backward"))


def _count_progress(overrides: list[str]) -> dict[str, int]:
    """How often each of PPO's models moves the watchdog on, in one pass over the episodes."""
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.rl.scoring import compute_log_probs, compute_scores, compute_values
    from megagpt.stages.session import open_run

    with open_run(load(overrides)) as trainer:
        stage, progress = trainer.stage, trainer.watchdog.progress
        models, episodes, moved = stage.models, stage.episodes, {}
        prompts = stage.prompts.of_iteration(0)
        for name, work in {
            "rollout copy": lambda: models.rollouts.generate(episodes, prompts, 0),
            "critic": lambda: compute_values(models.critic, episodes),
            "reference": lambda: compute_log_probs(models.reference, episodes),
            "reward model": lambda: compute_scores(models.reward.model, episodes),
        }.items():
            before = progress.entered
            work()
            moved[name] = progress.entered - before
    parallel_state.destroy_model_parallel()
    return moved


def test_passes_of_every_model_are_progress(settings):
    """On two ranks with a rollout copy of its own layout: each response token, and each micro-batch of a model."""
    run = [*settings, "run_name=watched", "ppo.reward=model", "ppo.rollout_parallel.tensor_parallel_size=2"]
    for moved in run_distributed(_count_progress, 2, run):
        assert set(moved) == {"rollout copy", "critic", "reference", "reward model"}
        assert all(count >= 2 for count in moved.values()), moved
        assert moved["rollout copy"] >= 2 * 2, moved  # at least two passes, each entered and left
