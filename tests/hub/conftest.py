"""Finished runs with weights that no two layers share, made without training: small, and written like any other."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from precisionlm.config import build, to_yaml
from precisionlm.storage.checkpoint import Checkpoints, folder_of
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.run import prepare_run, result_row
from precisionlm.training.step import initial_state

from ..conftest import tiny_tree

ONE = jax.devices()[:1]
MODELS = {
    "plain": {"kv_heads": None},
    "grouped_tied": {"tie_embeddings": True},
    "qk_norm": {"qk_norm": True, "head_size": 32},
    "projection_norm": {"projection_norm": True},
}


def finished_run(tokens_folder: Path, root: Path, recipe: str = "bf16", **model) -> Path:
    """The directory of a run that has finished."""
    tree = tiny_tree(tokens_folder)
    tree["precision"] = {"recipe": recipe}
    tree["model"] |= {"width": 64, "mlp_width": 96, "init_std": 0.06} | model
    run = prepare_run(build(tree, "test"), ONE)
    params = initial_state(run.program, 3, run.grids)["params"]
    keys = iter(jax.random.split(jax.random.key(5), 100))
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x * jnp.exp(0.3 * jax.random.normal(next(keys), x.shape)) if path[-1].key == "scale" else x,
        params,
    )
    directory = RunDirectory(root, run.run_id)
    directory.create()
    directory.write_text("config.yaml", to_yaml(run.experiment))
    checkpoint = run.experiment.checkpoint
    with Checkpoints(folder_of(directory, checkpoint), checkpoint) as checkpoints:
        checkpoints.save(run.experiment.training.steps, {"params": params}, {})
    row = result_row(run, {"operands": [], "products": 0}, [{"loss": 4.0, "seconds": 1.0}] * 12, 1.0, {}, 0, [])
    Result(status="done", reason="", row=row, evaluations=[]).write(directory)
    return directory.path


@pytest.fixture
def make_run(tokens_folder, tmp_path):
    """Model keys and a recipe → the directory of a run that has finished."""
    return partial(finished_run, tokens_folder, tmp_path / "runs")
