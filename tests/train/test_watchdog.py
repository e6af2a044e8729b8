"""Who is named for a hang, and what counts as progress; tests/faults/test_ranks.py has what becomes of them."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from dist import run_distributed

from megagpt.config.schema import ReliabilityConfig
from megagpt.train.post_mortem import Hang, PostMortem
from megagpt.train.watchdog import Watchdog


class NotedHangs:
    """Stands for `PostMortem.end`: keeps the reports, and ends nothing."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def end(self, post_mortem: PostMortem, hang: Hang) -> None:
        self.texts.append(hang.text)

    def wait(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.texts:
            assert time.monotonic() < deadline, "nothing was reported"
            time.sleep(0.05)


def noted(monkeypatch: pytest.MonkeyPatch) -> NotedHangs:
    found = NotedHangs()
    monkeypatch.setattr(PostMortem, "end", lambda self, hang: found.end(self, hang))
    return found


def _enter_or_not(folder: Path) -> list[str]:
    config = ReliabilityConfig(heartbeat_timeout=1.0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        hangs = noted(monkeypatch)
        with Watchdog(config, folder):  # the store remembers that both have left it
            dist.barrier()
        watchdog = Watchdog(config, folder)
        if dist.get_rank() == 0:
            with watchdog:
                hangs.wait()
        dist.barrier()
        return hangs.texts


def test_a_rank_that_never_gave_a_sign_is_named(tmp_path):
    """As when it stops between the last collective before the first step and its first sign."""
    said, nothing = run_distributed(_enter_or_not, 2, tmp_path)
    assert "rank 1 gave no sign of life for 1 s" in said[0]
    assert "Held up by rank 1 (" in said[0]
    assert nothing == []


def _hang_in(section: str, folder: Path) -> tuple[str, str]:
    """What is reported when a phase hangs after the first step, and when an exception has left it."""
    limits = {f"{name}_timeout": 0.3 if name == section else 60.0 for name in ("rollout", "save", "optimizer")}
    with pytest.MonkeyPatch.context() as monkeypatch:
        hangs = noted(monkeypatch)
        watchdog = Watchdog(ReliabilityConfig(**limits, start_timeout=0.1), folder)
        watchdog.first_step_done()
        with watchdog:
            watchdog.enter("optimizer")
            with pytest.raises(KeyError), watchdog.within(section):
                watchdog.enter("forward")  # counts as progress, under the name of the phase
                inside = watchdog.progress.section
                hangs.wait()
                raise KeyError
            return inside, watchdog.progress.section, hangs.texts[0]


@pytest.mark.parametrize("phase", ["rollout", "save"])
def test_a_phase_is_watched_by_its_own_name_and_left_by_an_exception(phase, tmp_path):
    ((inside, after, said),) = run_distributed(_hang_in, 1, phase, tmp_path)
    assert (inside, after) == (phase, "optimizer")
    assert f"no progress in {phase} for" in said
    assert f"reliability.{phase}_timeout=0.3" in said


def _first_step(folder: Path) -> list[str]:
    """Reports of a first step that takes longer than its section may, and then longer than a first step may."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        hangs = noted(monkeypatch)
        watchdog = Watchdog(ReliabilityConfig(rollout_timeout=0.1, start_timeout=2.5), folder)
        with watchdog, watchdog.within("rollout"):
            time.sleep(1.5)
            early = list(hangs.texts)
            hangs.wait()
        return [*early, hangs.texts[0]]


def test_the_first_step_may_take_longer(tmp_path):
    ((said,),) = run_distributed(_first_step, 1, tmp_path)
    assert "reliability.start_timeout=2.5" in said


def _observed(folder: Path) -> list[tuple[str, int]]:
    watchdog, module = Watchdog(ReliabilityConfig(), folder), torch.nn.Linear(2, 2)
    watchdog.first_step_done()
    watchdog.observe([module])
    sections = []
    for batch in watchdog.batches([torch.ones(1, 2)] * 2):
        sections.append(watchdog.progress.section)
        module(batch)
        sections.append(watchdog.progress.section)
    return sections, watchdog.progress.entered


def test_every_micro_batch_and_pass_is_progress(tmp_path):
    ((sections, entered),) = run_distributed(_observed, 1, tmp_path)
    assert sections == ["forward", "backward"] * 2
    assert entered == 1 + 2 * (1 + 2 + 1)  # load; then forward twice, backward, and load again
