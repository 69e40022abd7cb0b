"""A checkpoint is of the state that was given, whatever training does meanwhile."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from precisionlm.config import CheckpointConfig
from precisionlm.errors import CannotWriteError, PreemptedError, UserError
from precisionlm.storage.checkpoint import Checkpoints, DamagedError, newest_position, restore_params


@pytest.mark.parametrize(("axes", "spec"), [((8,), P("a")), ((8,), P()), ((2, 4), P("b"))])
def test_the_state_may_be_donated_while_it_is_written(tmp_path, axes, spec):
    mesh = Mesh(np.array(jax.devices()).reshape(axes), ("a", "b")[: len(axes)])
    sharding = NamedSharding(mesh, spec)
    state = {"w": jax.device_put(jnp.arange(2**20, dtype=jnp.float32).reshape(1024, -1), sharding)}
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: -x - 1, s), donate_argnums=0, out_shardings={"w": sharding})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        for step in range(3):
            kept = np.asarray(state["w"]).copy()
            checkpoints.save(step, state, {"data": step})
            for _ in range(3):
                state = overwrite(state)
            checkpoints.wait()
            found = checkpoints.restore(abstract)
            assert found is not None and found[0] == step and found[2] == {"data": step}
            np.testing.assert_array_equal(found[1]["w"], kept)
            assert found[1]["w"].sharding == sharding


def test_a_step_that_is_there_is_not_written_again(tmp_path, monkeypatch):
    state = {"w": jnp.ones((4, 4))}
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints, "_save", partial(pytest.fail, "written again"))
        checkpoints.save(1, state, {})
        checkpoints.wait()


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("UNAVAILABLE: the bucket does not answer", PreemptedError, "step 2 cannot be reached .UNAVAILABLE"),
        ("PERMISSION_DENIED: credentials ran out", UserError, "step 2 may not be read .PERMISSION_DENIED"),
    ],
)
def test_storage_that_is_away_or_refuses_is_no_damage(tmp_path, monkeypatch, said, kind, message):
    def fail(*_, **__):
        raise ValueError(said)

    state, folder = {"params": {"w": jnp.ones((4, 4))}}, tmp_path / "checkpoints"
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {"data": step})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(kind, match=message):  # and no older one, and no beginning anew
            checkpoints.restore(state)
        monkeypatch.undo()
        assert checkpoints.restore(state)[0] == 2 and not checkpoints._damaged
    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    with pytest.raises(kind, match=message) as caught:
        restore_params(folder, state["params"])
    assert not isinstance(caught.value, DamagedError)
    with pytest.raises(kind, match=message):
        newest_position(folder)
    monkeypatch.undo()
    assert newest_position(folder) == (2, {"data": 2})


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError("no room"), CannotWriteError, "no room; the one before it is kept$"),
        (ValueError("UNAVAILABLE: no answer"), PreemptedError, "is kept, and the same command goes on from it$"),
        (ValueError("PERMISSION_DENIED: write"), CannotWriteError, "PERMISSION_DENIED: write; the one before it"),
    ],
)
def test_a_write_that_failed_is_heard_of_at_once(tmp_path, monkeypatch, error, kind, message):
    def refuse(*_):
        raise error

    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        monkeypatch.setattr(checkpoints, "_save", refuse)
        checkpoints.check()
        checkpoints.save(1, {"w": jnp.ones((4, 4))}, {})
        with pytest.raises(kind, match=f"a checkpoint cannot be written: .*{message}"):
            for _ in range(500):
                checkpoints.check()
                time.sleep(0.01)


def test_a_state_may_be_donated_once_its_memory_is_got(tmp_path, monkeypatch):
    asked, real = [], jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda *given: asked.append(given) or real(*given))
    first = {"w": jnp.ones((4, 4))}
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        checkpoints.prepare(first)
        checkpoints.wait()
        assert len(asked) == 1 and checkpoints.restore(first) is None
        state = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(first)
        assert first["w"].is_deleted()
        checkpoints.save(1, state, {})
        checkpoints.wait()
        found = checkpoints.restore(state)
        assert found is not None and found[0] == 1
        np.testing.assert_array_equal(found[1]["w"], 2)


def test_memory_that_is_not_there_is_one_line_before_training(tmp_path, monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of host memory")

    state = {"w": jnp.ones((5000, 5000))}
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        monkeypatch.setattr(jax, "device_put", refuse)
        checkpoints.prepare(state)
        with pytest.raises(UserError, match=r"no room for 0\.1 GB; on GPUs XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB says"):
            checkpoints.wait()
