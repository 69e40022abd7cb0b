"""State and data position in one atomic checkpoint. The only file that imports orbax."""

import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from precisionlm.config import CheckpointConfig
from precisionlm.errors import UserError


class Checkpoints:
    """The checkpoints of one run: written in the background, complete or absent, the newest `keep` kept."""

    def __init__(self, folder: epath.PathLike, config: CheckpointConfig):
        self._manager = ocp.CheckpointManager(
            epath.Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep, enable_async_checkpointing=True),
            item_names=("state", "position"),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()},
        )

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Start saving after `step` optimizer steps; no-op if that step is there already."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)),
            force=True,
        )

    def restore(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, position) of the newest readable checkpoint, placed as `abstract_state` says; None if there is
        none. A damaged one is passed over with a warning. Raises UserError where shapes or dtypes differ."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                metadata = self._manager.item_metadata(step)["state"]
                if metadata is None:
                    raise OSError("its metadata cannot be read")
                _check_same(metadata.tree, abstract_state)
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state), position=ocp.args.JsonRestore()
                    ),
                )
                return step, restored["state"], restored["position"]
            except UserError:
                raise
            except Exception as error:
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                warnings.warn(f"checkpoint of step {step} is damaged ({reason}); trying an older one", stacklevel=2)
        return None

    def wait(self) -> None:
        """Until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_params(folder: Path, abstract_params: Any) -> tuple[int, Any]:
    """(step, weights) of a run's newest readable checkpoint, without its optimizer state. Raises UserError if none."""
    root = epath.Path(folder).absolute()
    steps = sorted((int(p.name) for p in root.iterdir() if p.name.isdigit()), reverse=True) if root.exists() else []
    if not steps:
        raise UserError(f"{folder} holds no checkpoint")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        target = {"params": abstract_params}
        restored = checkpointer.restore(
            root / str(steps[0]) / "state",
            args=ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
    return steps[0], restored["params"]


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
