"""Two processes of four devices are one trainer: equal to one process of eight; stopped, resumed, failing alike."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from precisionlm.cluster import processes
from precisionlm.config import build
from precisionlm.errors import PreemptedError, UserError
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.run_directory import RunDirectory, read_metrics
from precisionlm.training.execute import train

from ..compiled_fast import COMPILED_FAST
from ..conftest import StopAt, tiny_tree

STEPS = 24


@pytest.fixture(scope="module")
def tree(tokens_folder):
    tree = tiny_tree(tokens_folder)
    tree["model"] |= {"layers": 1}
    tree["precision"] = {"recipe": "bf16"}
    tree["training"] |= {"steps": STEPS, "eval_every": 10, "eval_tokens": 1000}
    return tree


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """The run by one process of eight devices."""
    return train(build(tree, "test"), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {COMPILED_FAST}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start_pair(environment, *words, program=("-m", "precisionlm")):
    """Both processes of one command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, *program, *map(str, words), "--coordinator", coordinator, "--processes", "2"]
    return [
        subprocess.Popen(
            [*command, "--process", str(i)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in range(2)
    ]


def ends(pair):
    """(exit code, standard output, standard error) of both."""
    try:
        outputs = [process.communicate(timeout=120) for process in pair]
    finally:
        for process in pair:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(pair, outputs, strict=True)]


def losses(folder, key="loss"):
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if key in line]
    return [line["step"] for line in lines], np.array([line[key] for line in lines])


def assert_same_run(folder, whole):
    for key in ("loss", "val_loss"):
        (steps, ours), (expected, theirs) = losses(folder, key), losses(whole.path, key)
        assert steps == expected
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    result = json.loads((folder / "result.json").read_text())
    assert result["row"]["D_tokens"] == STEPS * 8 * 32
    assert result["evaluations"][0]["val_loss"] == pytest.approx(whole.result.evaluations[0]["val_loss"], abs=1e-5)
    assert result["evaluations"][0]["val_tokens"] == whole.result.evaluations[0]["val_tokens"]
    sequences, expected = (Evaluation.read(RunDirectory.at(f), "evaluations/trained.npz") for f in (folder, whole.path))
    assert sequences.pairs_with(expected)
    np.testing.assert_allclose(sequences.sums, expected.sums, rtol=1e-5)


def test_sigterm_to_one_stops_both_and_one_process_continues(tree, whole, environment, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    out = tmp_path / "runs"
    pair = start_pair(environment, "train", config, "--out", out, "--checkpoint.every_steps", 1)
    while not list(out.glob("*/checkpoints/[0-9]*")):
        assert pair[0].poll() is None, ends(pair)
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    found = ends(pair)
    assert [code for code, _, _ in found] == [75, 75], found
    said = [line for _, _, errors in found for line in errors.splitlines() if line.startswith("preempted: ")]
    assert len(said) == 2 and len(set(said)) == 1 and f"of {STEPS}; the same command continues it" in said[0]
    (folder,) = out.iterdir()
    stopped = max(losses(folder)[0])
    assert 1 <= stopped < STEPS and f"saved at step {stopped} of" in said[0]
    assert train(build(tree, "test"), out).status == "done"
    assert_same_run(folder, whole)


@pytest.mark.long
def test_two_processes_continue_what_one_began(tree, whole, environment, tmp_path):
    out = tmp_path / "runs"
    with pytest.raises(PreemptedError):
        train(build(tree, "test"), out, interrupted=StopAt(5))
    (begun,) = out.iterdir()
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump({"experiment": tree, "grid": {"training.seed": [1, 0]}}))
    found = ends(start_pair(environment, "sweep", sweep, "--out", out, "--json"))
    assert [code for code, _, _ in found] == [0, 0], found
    assert len(json.loads(found[0][1])["done"]) == 2 and found[1][1] == ""  # process 0 alone prints
    assert_same_run(begun, whole)
    (other,) = set(out.iterdir()) - {begun}
    seeded = tree | {"training": tree["training"] | {"seed": 1}}
    unbroken = train(build(seeded, "test"), tmp_path / "unbroken")
    assert unbroken.path.name == other.name
    assert_same_run(other, unbroken)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", 2, None, False), "belong together"),
        ((None, None, 0, False), "belong together"),
        (("host:1", 2, 2, False), "--process 2: must be at least 0 and below --processes 2"),
        (("host", 2, 0, False), "must be HOST:PORT"),
        (("host:99999", 2, 0, False), "must be HOST:PORT"),
        (("host:1", None, None, True), "--distributed finds everything out"),
        ((None, None, None, True), "--distributed: no Slurm, GKE, TPU pod or Open MPI is found here"),
    ],
)
def test_half_of_the_arguments_is_an_error(given, message):
    with pytest.raises(UserError, match=message):
        processes.address(*given, 300.0)


def test_a_shared_clock_is_asked_at_doubling_distances_then_closer(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        processes.multihost_utils, "broadcast_one_to_all", lambda share: asked.append(round(now[0])) or share
    )
    clock, due = processes.SharedClock(1000.0), []
    for step in range(1, 2001):
        now[0] = float(step)
        if clock.passed():
            due.append(step)
            clock.restart()
    assert due[0] in range(1001, 1010)
    assert asked[:5] == [1, 2, 4, 8, 16] and len([at for at in asked if at <= 1001]) < 25
    assert not processes.SharedClock(None).passed()


def test_a_row_of_the_batch_belongs_to_one_process(monkeypatch):
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)

    def mesh(*shape):
        devices = np.array([SimpleNamespace(process_index=i // 4) for i in range(8)]).reshape(shape)
        return SimpleNamespace(devices=devices, shape=dict(zip(("replica", "fsdp", "tensor"), shape, strict=True)))

    processes.check_rows(mesh(2, 2, 2))
    processes.check_rows(mesh(1, 2, 4))
    with pytest.raises(UserError, match="tensor 8 spreads one row of a batch over several processes"):
        processes.check_rows(mesh(1, 1, 8))
