"""State and data position in one atomic checkpoint. The only file that imports orbax; what orbax leaves
behind after a failure is in `orbax_quirks`.

Training goes on while a checkpoint is written: `save` only sets off copies of the state into the hosts' memory, which
the devices make between two steps; a thread waits for them and writes.
"""

import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from precisionlm.cluster.processes import gather, is_first, on_first
from precisionlm.config import CheckpointConfig
from precisionlm.errors import CannotWriteError, PreemptedError, UserError
from precisionlm.outages import outage_of, raise_outage
from precisionlm.storage.host_memory import get_memory, on_hosts
from precisionlm.storage.orbax_quirks import Quiet, collect_given_up, let_go
from precisionlm.storage.run_directory import RunDirectory

# Orbax's saves tell each other by a count that is the process's: of two at once, one waits for the other's signals.
_ONE_AT_A_TIME = threading.Lock()


class DamagedError(UserError):
    """A checkpoint that cannot be read."""


class _Manager(ocp.CheckpointManager):
    """Orbax asks JAX's preemption service at every save under the step's number; the service takes one sequence of
    numbers alone, and that is `processes.agreed`'s."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run: written in the background by all processes, complete or absent, the newest `keep`
    kept. Where the disk refuses, the next of `check`, `save` and `wait` raises UserError, where a bucket is away
    PreemptedError. Use it as a context."""

    def __init__(self, folder: epath.PathLike, config: CheckpointConfig):
        self._folder = absolute(folder)
        self._damaged: set[int] = set()
        self._failed, self._quiet = False, Quiet()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._write: Future[None] | None = None
        # Named processes meet at JAX's coordinator; unnamed ones in a collective of the devices, which must not come
        # from a thread while the devices train.
        processes = ocp.options.MultiprocessingOptions(active_processes=set(range(jax.process_count())))
        with self._writing():
            on_first(lambda: self._folder.mkdir(parents=True, exist_ok=True))
            self._manager = _Manager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=config.keep,
                    create=False,
                    cleanup_tmp_directories=True,  # of a process killed while it saved
                    multiprocessing_options=processes,
                ),
                item_names=("state", "position"),
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
                    "position": ocp.JsonCheckpointHandler(),
                },
            )

    def prepare(self, state: Any) -> None:
        """Start getting the memory that saves of such a state copy into: page-locked, it takes a second a GB, which
        else training would wait at its first save. The state must not be donated before `wait` returns, which raises
        UserError if there is not enough."""
        self._write = self._thread.submit(get_memory, state)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Start saving after `step` optimizer steps, once the write before is over; no-op if that step is there
        already, readable. The state may be donated as soon as this returns."""
        self.wait()
        if step not in self._manager.all_steps() or step in self._damaged:
            self._write = self._thread.submit(self._save, step, on_hosts(state), position)

    def _save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        with _ONE_AT_A_TIME:
            if step in self._damaged:
                self._manager.delete(step)
                self._damaged.discard(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)),
                force=True,
            )
            self._manager.wait_until_finished()

    def restore(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, position) of the newest checkpoint readable by all processes, placed as `abstract_state` says;
        None if there is none. A damaged one is passed over with a warning. Raises UserError where shapes or dtypes
        differ or the storage refuses, PreemptedError where it is away."""
        for step in sorted(on_first(lambda: list(self._manager.all_steps())), reverse=True):
            restored, reason = None, None
            try:
                restored = self._read(step, abstract_state)
            except UserError:
                raise
            except Exception as error:
                reason = [outage_of(error, self._folder), _first_line(error)]
            reasons = [found for found in gather(reason) if found]
            if restored is not None and not reasons:
                return step, restored["state"], restored["position"]
            collect_given_up()
            for outage, said in reasons:
                raise_outage(outage, f"{self._folder}: the checkpoint of step {step}", said)
            self._damaged.add(step)
            told = reasons[0][1]
            warnings.warn(f"checkpoint of step {step} is damaged ({told}); trying an older one", stacklevel=2)
        return None

    def _read(self, step: int, abstract_state: Any) -> Any:
        metadata = self._manager.item_metadata(step)["state"]
        if metadata is None:
            raise OSError("its metadata cannot be read")
        _check_same(metadata.tree, abstract_state)
        return self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), position=ocp.args.JsonRestore()),
        )

    def check(self) -> None:
        """Raises UserError if the write that goes on has failed, as soon as it has; waits for nothing."""
        if self._write is not None and self._write.done():
            self.wait()

    def wait(self) -> None:
        """Until everything is on disk."""
        write, self._write = self._write, None
        if write is not None:
            with self._writing():
                write.result()

    def __enter__(self) -> "Checkpoints":
        """While entered, a failed read or write is heard of through its own error alone."""
        self._quiet.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait and release; what a failed write left behind is removed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            try:
                with self._writing():
                    self._manager.close()
            finally:
                self._leave()

    def _leave(self) -> None:
        if self._failed:
            del self._manager  # it holds the errors, and they what was given up
            collect_given_up()
        self._quiet.__exit__()
        if self._failed and is_first():
            for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
                partial.rmtree(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            self._failed = True
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = os.strerror(int(code[1])) if code else " ".join(str(error).split())[:300]
            let_go(error)
            said = f"{self._folder}: a checkpoint cannot be written: {reason}; the one before it is kept"
            if outage_of(error, self._folder) == "away":
                raise PreemptedError(f"{said}, and the same command goes on from it") from None
            raise CannotWriteError(said) from None


def folder_of(directory: RunDirectory, config: CheckpointConfig, name: str = "checkpoints") -> epath.Path:
    """Where a run's checkpoints are: in its directory, or under its id in `checkpoint.folder`, here or in a bucket."""
    own = epath.Path(config.folder) / directory.path.name if config.folder else epath.Path(directory.path)
    return own / name


_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # of the buckets that etils reads


def check_folder(config: CheckpointConfig) -> None:
    """Raises UserError where `checkpoint.folder` is in a kind of storage that is unknown here, or whose package is
    missing; asks no network."""
    scheme, bucket, _ = (config.folder or "").partition("://")
    if not bucket:
        return
    if scheme not in _PACKAGES:
        raise UserError(f"checkpoint.folder {config.folder}: must be a folder here or begin with gs:// or s3://")
    if find_spec(_PACKAGES[scheme]) is None:
        package = _PACKAGES[scheme]
        raise UserError(f"checkpoint.folder {config.folder}: needs the package {package}: pip install {package}")


def absolute(folder: epath.PathLike) -> epath.Path:
    """Tensorstore takes no relative path; a bucket's has nothing to be relative to."""
    path = epath.Path(folder)
    return path if "://" in os.fspath(path) else path.absolute()


def restore_state(folder: epath.PathLike, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """`Checkpoints.restore` of a folder that nothing is written to."""
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        return checkpoints.restore(abstract_state)


def restore_params(folder: epath.PathLike, abstract_params: Any, step: int | None = None) -> tuple[int, Any]:
    """(step, weights) of a run's newest checkpoint, or of that after `step` steps, those that `abstract_params` names,
    without optimizer state. Raises UserError if there is none, where shapes or dtypes differ or the storage refuses,
    DamagedError where it cannot be read, PreemptedError where the storage is away."""
    root, steps = absolute(folder), steps_in(folder)
    if not steps or step not in (None, *steps):
        raise UserError(f"{folder} holds no checkpoint" + (f" of step {step}" if steps else ""))
    chosen = steps[0] if step is None else step
    with Quiet():
        try:
            return chosen, _read_params(root, chosen, {"params": abstract_params})
        except (UserError, MemoryError):
            raise
        except Exception as error:  # of many kinds: what orbax and tensorstore say of files that are cut short
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason, outage = _first_line(error), outage_of(error, root)
            let_go(error)
        collect_given_up()
    raise_outage(outage, f"{root}: the checkpoint of step {chosen}", reason)
    before = [str(other) for other in steps if other < chosen]
    there = f"those before it: {', '.join(before)}" if before else "there is none before it"
    raise DamagedError(f"{root}: the checkpoint of step {chosen} is damaged ({reason}); {there}")


def restore_newest(folder: epath.PathLike, abstract_params: Any) -> tuple[int, Any]:
    """`restore_params` of the newest checkpoint that can be read; damaged ones are named on standard error, as they are
    passed over in training. Raises UserError, DamagedError where none can be read."""
    for step in steps_in(folder)[:-1]:
        try:
            return restore_params(folder, abstract_params, step)
        except DamagedError as error:
            print(f"left out: {error}", file=sys.stderr)
    return restore_params(folder, abstract_params, min(steps_in(folder), default=None))


def _read_params(root: epath.Path, step: int, target: dict[str, Any]) -> Any:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        state = root / str(step) / "state"
        _check_same(_common(checkpointer.metadata(state).item_metadata.tree, target), target)
        restored = checkpointer.restore(
            state,
            args=ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
    return restored["params"]


def newest_position(folder: epath.PathLike) -> tuple[int, dict[str, Any]] | None:
    """(step, position) of a run's newest checkpoint, without its state; None if there is none that can be read."""
    for step in steps_in(folder):
        try:
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                return step, checkpointer.restore(absolute(folder) / str(step) / "position")
        except (OSError, ValueError) as error:
            raise_outage(outage_of(error, folder), f"{folder}: the checkpoint of step {step}", _first_line(error))
    return None


def steps_in(folder: epath.PathLike) -> list[int]:
    """Of the checkpoints there, the newest first."""
    root = absolute(folder)
    return sorted((int(p.name) for p in root.iterdir() if p.name.isdigit()), reverse=True) if root.exists() else []


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _common(found: Any, wanted: Any) -> Any:
    """The part of a tree of dicts that another one names too."""
    if not isinstance(wanted, Mapping):
        return found
    return {name: _common(found[name], part) for name, part in wanted.items() if name in found}


def _check_same(found: Any, wanted: Any) -> None:
    """Orbax casts silently to the dtype asked for; a mismatch must be an error."""

    def entries(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}

    have, want = entries(found), entries(wanted)
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise UserError(f"checkpoint: '{name}' is {have.get(name)} there and {want.get(name)} in this run")


def _name(path: Any) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
