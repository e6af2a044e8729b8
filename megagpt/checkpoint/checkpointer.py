"""Saves and restores a run: atomic publication, verified loading, retention, and a lock against other writers."""

import json
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from megagpt import __version__
from megagpt.checkpoint import loading
from megagpt.checkpoint.best import find_best, write_best
from megagpt.checkpoint.files import check_size, explain, remove, replace_text, sync_folder, write_text
from megagpt.checkpoint.format import (
    FORMAT,
    INDEX,
    MANIFEST,
    STATE,
    STEP,
    Checkpoint,
    StoredShard,
    check_coverage,
    dump_index,
    dump_manifest,
    step_folder,
)
from megagpt.checkpoint.run_lock import RunLock
from megagpt.checkpoint.world import World, current_world
from megagpt.checkpoint.writer import RankWriter
from megagpt.config.schema import CheckpointConfig
from megagpt.errors import CheckpointError
from megagpt.parallel.shards import Shard

log = logging.getLogger(__name__)

FAILED, WRITING, DONE = range(3)
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 5.0  # how long a failed rank waits for its writer, because the disk may hang
OWN_KEYS = {"format", "step", "world_size", "versions", "threads", "time", "files", "digest"}
DEBRIS = ("step_*.tmp-*", ".trash-*", "latest.tmp-*", "best.tmp-*")


@dataclass
class Pending:
    """A save that is not committed yet."""

    step: int
    folder: Path
    writer: RankWriter
    state: str
    manifest: dict[str, Any]
    started: float
    best: bool = False
    """Whether it becomes the best checkpoint when it is committed."""


class Checkpointer:
    """The checkpoints of one run, in `directory`. Every method is collective unless it says otherwise.

    As a context manager it commits a pending save at the end, or cancels it after an exception.

    Args:
        directory: folder that all ranks share; rank 0's value is used.
        config: retention, and whether saving is asynchronous.
        world: the ranks; by default those of torch.distributed, or this process alone.

    Raises: CheckpointError when another live run writes into the directory, or when it is not writable.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, world: World | None = None):
        self.config = config
        self.world = world or current_world()
        self.directory = Path(self.world.broadcast(str(directory.resolve())))
        self._lock: RunLock | None = None
        self._pending: Pending | None = None
        self._trusted: dict[Path, Checkpoint] = {}
        self._committed: set[str] = set()
        self._refused: set[str] = set()
        with self.world.raise_on_all_ranks():
            if self.world.rank == 0:
                try:
                    self.directory.mkdir(parents=True, exist_ok=True)
                    self._lock = RunLock(self.directory)
                except OSError as error:
                    reason = explain(error, self.directory, 0)
                    raise CheckpointError(f"cannot write in {self.directory}: {reason}") from error
                self._sweep()

    def save(
        self,
        step: int,
        shards: Iterable[Shard],
        rank_tensors: dict[str, torch.Tensor],
        state: dict[str, Any],
        manifest: dict[str, Any],
    ) -> None:
        """Saves a step; when asynchronous, copies the tensors and leaves the rest to `poll`.

        It first waits for a save that is still pending. A step that this object saved or restored is not saved again.

        Args:
            step: number of finished optimizer steps.
            shards: this rank's shards; together the ranks must give every element of every tensor exactly once.
            rank_tensors: tensors of this rank only, such as states of random number generators.
            state: JSON values that the training loop needs to resume; rank 0's are stored.
            manifest: JSON values for the manifest (run, configuration, layout); rank 0's are stored.

        Raises: CheckpointError on all ranks; the previous checkpoint is intact, and the partial folder is removed.
        """
        self.poll(wait=True)
        started = time.monotonic()
        with self.world.raise_on_all_ranks():
            begun = self._begin(step) if self.world.rank == 0 else None
        name = self.world.broadcast(begun)
        if name is None:
            return
        folder, writer = self.directory / name, None
        try:
            with self.world.raise_on_all_ranks():
                if not folder.is_dir():
                    raise CheckpointError(f"rank 0 made {folder}, but it does not exist here: is the disk shared?")
                if clash := set(manifest) & OWN_KEYS:
                    raise CheckpointError(f"the manifest's keys {sorted(clash)} are set by the checkpointer")
                text = json.dumps(state)
                writer = RankWriter(folder, self.world.rank, shards, rank_tensors, copy=self.config.asynchronous)
        except CheckpointError:
            self._abandon(folder, writer)
            raise
        self._pending = Pending(step, folder, writer, text, manifest, started)
        if not self.config.asynchronous:
            self.poll(wait=True)

    def poll(self, wait: bool = False) -> Path | None:
        """Commits the pending save once every rank's file is complete. Call it in every step.

        Args:
            wait: whether to wait until the pending save is committed.

        Returns: the folder that this call committed, if any.
        Raises: CheckpointError on all ranks when any rank failed; the previous checkpoint is intact.
        """
        if self._pending is None:
            return None
        pending, patience = self._pending, POLL_SECONDS
        while (status := self._status(pending.writer)) == WRITING and wait:
            pending.writer.wait(patience)
            patience = min(2 * patience, 1.0)
        if status == WRITING:
            return None
        self._pending = None
        try:
            self.world.fail_together(pending.writer.error, pending.writer.error_time)
            return self._commit(pending)
        except CheckpointError:
            self._abandon(pending.folder, pending.writer)
            raise

    def find_newest(self) -> Path | None:
        """The checkpoint to resume from: the one that `latest` names or, if it is not valid, the newest valid one.

        Returns: its folder, verified by SHA-256; None when nothing was ever committed here.
        Raises: CheckpointError when there are checkpoints but none is valid.
        """
        found, refused = loading.search(self.directory, self.world)
        self._refused |= refused
        if found is None:
            return None
        self._trusted[found.path] = found
        return found.path

    def rewind(self, step: int) -> Path | None:
        """Goes back to the newest valid checkpoint up to `step`, and removes later ones, which will be trained anew.

        Returns: that checkpoint, verified; None when there is none, and then nothing is removed.
        Raises: CheckpointError when there are some but none is valid, or when a pending save failed.
        """
        self.poll(wait=True)
        found, refused = loading.search(self.directory, self.world, at_most=step)
        self._refused |= refused
        if found is None:
            return None
        later = [path for path in self.directory.iterdir() if _step_of(path) > _step_of(found.path)]
        self._committed -= {path.name for path in later}
        self._trusted = {found.path: found}
        with self.world.raise_on_all_ranks():
            if self.world.rank == 0:
                replace_text(self.directory / loading.LATEST, f"{found.path.name}\n", secrets.token_hex(4))
                for path in later:
                    self._remove(path)
        return found.path

    def name_best(self, step: int | None) -> bool:
        """Marks the checkpoint of `step` as the best, which `find` returns for this run; None: none is the best.

        A checkpoint that is still pending is marked when it is committed. Returns whether there is such a checkpoint.
        """
        if self._pending is not None and self._pending.step == step:
            self._pending.best = True
            return True
        with self.world.raise_on_all_ranks():
            name = None
            if self.world.rank == 0:
                name = step_folder(step) if step is not None and (self.directory / step_folder(step)).is_dir() else None
                write_best(self.directory, name)
        return self.world.broadcast(name) is not None

    def load(self, path: Path, shards: Iterable[Shard], strict: bool = True, cast: bool = False) -> dict[str, Any]:
        """Fills every shard's data in place from a checkpoint of any layout, and returns the saved state.

        Verifies the checkpoint first, unless `find_newest` has done so. See `loading.fill` for arguments and errors.
        """
        return loading.fill(self._open(path), shards, strict, cast, self.world)

    def rank_tensors(self, path: Path, rank: int) -> dict[str, torch.Tensor]:
        """The rank tensors that `rank` saved, on the CPU; {} when it saved none. Raises CheckpointError."""
        checkpoint = self._open(path)
        with self.world.raise_on_all_ranks():
            tensors = loading.rank_tensors(checkpoint, rank)
        return tensors

    def close(self) -> None:
        """Commits a pending save and releases the lock. Raises CheckpointError when the save failed."""
        try:
            self.poll(wait=True)
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        if self._pending is not None:  # no collective, because other ranks may have ended; the next start removes it
            self._pending.writer.cancel(PATIENCE_SECONDS)
            self._pending = None
        self._release()

    def _open(self, path: Path) -> Checkpoint:
        """The checkpoint in a folder, verified."""
        path = path.parent.resolve() / path.name
        if path not in self._trusted:
            self._trusted[path] = loading.verify(path, self.world)
        return self._trusted[path]

    def _begin(self, step: int) -> str | None:
        """Makes the temporary folder of a save; returns its name, or None if the step is saved already. Rank 0 only."""
        final = self.directory / step_folder(step)
        if final in self._trusted or final.name in self._committed:
            log.info("step %d is saved already in %s", step, final)
            return None
        folder = final.with_name(f"{final.name}.tmp-{secrets.token_hex(4)}")
        try:
            folder.mkdir()
        except OSError as error:
            raise CheckpointError(f"cannot make {folder}: {explain(error, self.directory, 0)}") from error
        return folder.name

    def _status(self, writer: RankWriter) -> int:
        """Status of the pending save over all ranks: FAILED, WRITING or DONE."""
        mine = WRITING if not writer.done else FAILED if writer.error else DONE
        return self.world.lowest(mine)

    def _abandon(self, folder: Path, writer: RankWriter | None) -> None:
        """Removes the files of a failed save, after all ranks have stopped writing."""
        if writer is not None:
            writer.cancel()
        self.world.gather(None)
        if self.world.rank == 0:
            self._remove(folder)

    def _commit(self, pending: Pending) -> Path:
        """Publishes a save whose rank files are complete, then removes checkpoints that need not be kept."""
        writer, final = pending.writer, self.directory / step_folder(pending.step)
        report = {"entries": [asdict(entry) for entry in writer.entries]}
        if writer.info is not None:
            report |= {"file": writer.path.name, "info": asdict(writer.info)}
        reports = [report for report in self.world.gather(report) if report["entries"]]
        with self.world.raise_on_all_ranks():
            if self.world.rank == 0:
                self._publish(pending, final, reports)
                if pending.best:
                    write_best(self.directory, final.name)
        self._committed.add(final.name)
        self._refused.discard(final.name)
        if self.world.rank == 0:
            size = sum(report["info"]["size"] for report in reports) / 1e6
            log.info("saved %s (%.1f MB in %.1f s)", final, size, time.monotonic() - pending.started)
            self._retain(pending.step)
        return final

    def _publish(self, pending: Pending, final: Path, reports: list[dict[str, Any]]) -> None:
        """Writes index, state and manifest, and turns the folder into a checkpoint by one rename. Rank 0 only."""
        folder = pending.folder
        index = {report["file"]: [StoredShard.parse(entry) for entry in report["entries"]] for report in reports}
        try:
            check_coverage(entry for entries in index.values() for entry in entries)
        except ValueError as error:
            raise CheckpointError(f"step {pending.step} was not saved: {error}") from error
        files = {report["file"]: report["info"] for report in reports}
        files[INDEX] = asdict(write_text(folder / INDEX, dump_index(index)))
        files[STATE] = asdict(write_text(folder / STATE, pending.state))
        own = {
            "format": FORMAT,
            "step": pending.step,
            "world_size": self.world.size,
            "versions": {"megagpt": __version__, "torch": str(torch.__version__)},
            "threads": torch.get_num_threads(),
            "time": time.time(),
            "files": files,
        }
        write_text(folder / MANIFEST, dump_manifest({**pending.manifest, **own}))
        token = secrets.token_hex(4)
        try:
            for name, info in files.items():
                check_size(folder / name, (folder / name).stat().st_size, info["size"])
            sync_folder(folder)
            if final.exists():  # from an attempt that was rolled back, or refused as not valid
                final.rename(self.directory / f".trash-{final.name}-{token}")
            folder.rename(final)
            sync_folder(self.directory)
        except OSError as error:
            raise CheckpointError(f"cannot publish {final}: {explain(error, self.directory, 0)}") from error
        replace_text(self.directory / loading.LATEST, f"{final.name}\n", token)

    def _retain(self, newest: int) -> None:
        """Removes the checkpoints up to step `newest` that need not be kept. Rank 0 only.

        Checkpoints of later steps come from an attempt that was rolled back; they stay until their step is saved again.
        """
        steps = sorted(int(match[1]) for path in self.directory.iterdir() if (match := STEP.fullmatch(path.name)))
        valid = [step for step in steps if step <= newest and step_folder(step) not in self._refused]
        kept = {newest, *valid[-self.config.keep_last :]} if self.config.keep_last else {newest}
        if every := self.config.keep_every:
            kept |= {step for step in valid if step % every == 0}
        if best := find_best(self.directory):
            kept.add(_step_of(best))
        for path in self.directory.iterdir():
            match = STEP.fullmatch(path.name)
            if match and int(match[1]) <= newest and int(match[1]) not in kept:
                self._remove(path)
        for path in self.directory.glob(".trash-*"):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Removes a folder, after a rename that makes it disappear at once for readers. A failure is only logged."""
        trash = path
        try:
            if STEP.fullmatch(path.name):
                trash = path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}")
                path.rename(trash)
            remove(trash)
        except OSError as error:
            log.warning("cannot remove %s: %s", trash, error.strerror)

    def _sweep(self) -> None:
        """Removes temporary files of attempts that were killed. Rank 0 only."""
        for pattern in DEBRIS:
            for path in self.directory.glob(pattern):
                log.warning("removing %s, which an attempt that died left behind", path)
                self._remove(path)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _step_of(path: Path) -> int:
    """The step of a checkpoint's folder; -1 for any other path."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else -1
