"""Who is named for a hang, and what counts as progress; tests/faults/test_ranks.py has what becomes of them."""

import math
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from dist import run_distributed

from megagpt.config.schema import ParallelConfig, ReliabilityConfig
from megagpt.train.hang_detector import HangDetector, tick_seconds
from megagpt.train.heartbeat import Heartbeat, Progress
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


def _slow_tasks(folder: Path) -> tuple[list[str], list[str]]:
    """Reports during tasks that take longer than anything may, and after them, in a section that does."""
    limits = dict.fromkeys((f"{name}_timeout" for name in ("start", "evaluation", "save", "forward", "optimizer")), 0.3)
    with pytest.MonkeyPatch.context() as monkeypatch:
        hangs = noted(monkeypatch)
        watchdog = Watchdog(ReliabilityConfig(**limits), folder)
        watchdog.first_step_done()
        with watchdog:
            with watchdog.within("tasks"):
                watchdog.enter("forward")
                time.sleep(2.5)
                during = list(hangs.texts)
            watchdog.enter("forward")
            hangs.wait()
        return during, hangs.texts


def test_tasks_take_as_long_as_they_take(tmp_path):
    ((during, after),) = run_distributed(_slow_tasks, 1, tmp_path)
    assert during == []
    assert "no progress in forward" in after[0]


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


def _timeouts(folder: Path) -> list[dict[str, float]]:
    """How long each group's collectives wait while the watchdog watches, by the group's name."""
    from megagpt.parallel import launch

    parallel = ParallelConfig(tensor_parallel_size=2, timeout_minutes=0.1)
    launch.initialize(parallel, seed=0)
    seen = []
    for config in (ReliabilityConfig(), ReliabilityConfig(save_timeout=math.inf)):
        with Watchdog(config, folder):
            groups = dist.distributed_c10d._world.pg_map
            backends = {group.group_name: group._get_backend(torch.device("cpu")) for group in groups}
            seen.append({name: backend.options._timeout.total_seconds() for name, backend in backends.items()})
    return seen


def test_collectives_wait_longer_than_the_watchdog(tmp_path):
    """NCCL ends a process that waits too long by SIGABRT, and nobody would learn who hangs."""
    longest = max(value for name, value in vars(ReliabilityConfig()).items() if name.endswith("_timeout"))
    for first, endless in run_distributed(_timeouts, 2, tmp_path):
        assert len(first) > 5  # of all layouts, and the default one
        assert min(first.values()) >= 2 * longest, first
        assert min(endless.values()) > 24 * 3600, endless


class Ended:
    """Stands for a rank's `PostMortem`."""

    def __init__(self) -> None:
        self.hangs: list[Hang] = []

    def end(self, hang: Hang) -> None:
        self.hangs.append(hang)


def stuck_ranks(count: int, store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[int]]:
    """What the ranks of a job that hangs as a whole are told, and the ranks that read the signs of all."""
    monkeypatch.setattr("megagpt.train.hang_detector.TICK_SECONDS", 0.05)
    readers, last_beats = [], Heartbeat.last_beats
    monkeypatch.setattr(Heartbeat, "last_beats", lambda self: readers.append(self.rank) or last_beats(self))
    config, detectors, ended = ReliabilityConfig(forward_timeout=0.2), [], []
    for rank in range(count):
        progress = Progress(step=3, section="forward", entered=5, first_step=False)
        ended.append(Ended())
        heartbeat = Heartbeat(progress, rank, count, store)
        detectors.append(HangDetector(config, progress, heartbeat, ended[-1], Path("stacks")))
    for detector in detectors:
        detector.start()
    deadline = time.monotonic() + 60
    while not all(post_mortem.hangs for post_mortem in ended):
        assert time.monotonic() < deadline, "not all ranks were told"
        time.sleep(0.02)
    seen = list(readers)
    for detector in detectors:
        detector.stop(10)
    return [post_mortem.hangs[0].text for post_mortem in ended], seen


def test_one_rank_finds_out_for_all_what_hangs(monkeypatch):
    texts, readers = stuck_ranks(12, dist.HashStore(), monkeypatch)
    assert len(set(texts)) == 1
    assert "step 3: no progress in forward for" in texts[0]
    assert len(set(readers)) == 1


def test_where_that_rank_is_gone_another_does(monkeypatch):
    store = dist.HashStore()
    store.set("reporter0", "99")
    texts, readers = stuck_ranks(3, store, monkeypatch)
    assert len(set(texts)) == 1
    assert len(set(readers)) == 1


@pytest.mark.parametrize(("ranks", "seconds"), [(1, 0.5), (1024, 0.5), (16_384, 2.0)])
def test_many_ranks_look_less_often(ranks, seconds):
    assert tick_seconds(ranks) == seconds
