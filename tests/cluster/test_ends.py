"""Commands that end hard: a peer that does not come, is killed or fails alone; SIGTERM while the compiler works."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from precisionlm.cluster.children import parental
from precisionlm.config import build
from precisionlm.errors import PreemptedError
from precisionlm.storage.run_directory import read_metrics
from precisionlm.training.execute import train

from ..compiled_fast import COMPILED_FAST
from ..conftest import StopAt, tiny_tree
from .test_processes import ends, start_pair


@pytest.fixture
def tree(tokens_folder):
    tree = tiny_tree(tokens_folder)
    tree["model"] |= {"layers": 1}
    tree["precision"] = {"recipe": "bf16"}
    tree["training"] |= {"steps": 5000, "eval_tokens": 1000}
    return tree


@pytest.fixture
def config(tree, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {COMPILED_FAST}",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def started(environment, *words, program=("-m", "precisionlm")):
    command = [sys.executable, *program, *map(str, words)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_peer_that_never_comes_is_one_line_and_may_be_tried_again(config, environment, tmp_path):
    words = ("train", config, "--out", tmp_path / "runs", "--start-timeout", 0.5, "--processes", 2)
    alone = [started(environment, *words, "--coordinator", f"127.0.0.1:{9}{i}11", "--process", i) for i in range(2)]
    found = ends(alone)
    assert [code for code, _, _ in found] == [75, 75], found
    assert [errors.strip() for _, _, errors in found] == [
        "preempted: 1 of 2 processes did not come within 0.5 s: 1",
        "preempted: process 0 was not reached at 127.0.0.1:9111 within 0.5 s: Connection refused",
    ]


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_killed_process_ends_the_other_with_the_code_of_a_retry(config, environment, tmp_path, killed):
    out = tmp_path / "runs"
    pair = start_pair(environment, "train", config, "--out", out, "--checkpoint.every_steps", 10)
    until(lambda: list(out.glob("*/checkpoints/[0-9]*")), pair[0])
    pair[killed].kill()
    found = ends(pair)
    assert found[killed][0] == -signal.SIGKILL
    # 134: JAX aborts where its service, in process 0, is gone before our line is said; launchers retry that too.
    assert found[1 - killed][0] in ((75,) if killed else (75, 134)), found
    assert not killed or f"preempted: process {killed} of 2 is gone; the same command" in found[0][2]


# A command whose process 1 fails at its third step, as where a disk of its own is full.
_FAILS_ALONE = """
import sys
from precisionlm.errors import UserError
from precisionlm.storage.checkpoint import Checkpoints

def check(self, calls=[]):
    calls.append(1)
    if len(calls) == 3:
        raise UserError("a checkpoint cannot be written: No space left on device")

if sys.argv[-1] == "1":
    Checkpoints.check = check
from precisionlm.cli.main import main
sys.exit(main())
"""


@pytest.mark.long  # its protocol is tested in test_lifeline
def test_a_process_that_fails_alone_ends_all_with_the_code_of_a_retry(config, environment, tmp_path):
    pair = start_pair(environment, "train", config, "--out", tmp_path / "runs", program=("-c", _FAILS_ALONE))
    found = ends(pair)
    assert [code for code, _, _ in found] == [75, 75], found
    reason = "preempted: process 1 of 2 failed alone: a checkpoint cannot be written: No space left on device"
    assert all(reason in errors for _, _, errors in found)


@pytest.mark.long
def test_sigterm_in_a_compilation_goes_at_once_and_loses_nothing(tree, environment, tmp_path):
    tree["model"] |= {"layers": 12}
    tree["training"] |= {"steps": 6}
    config, out = tmp_path / "run.yaml", tmp_path / "runs"
    config.write_text(yaml.safe_dump(tree))
    with pytest.raises(PreemptedError):
        train(build(tree, "test"), out, interrupted=StopAt(3))
    (run,) = out.iterdir()
    (saved,) = (run / "checkpoints").glob("[0-9]*")
    before = (run / "metrics.jsonl").read_text()
    # Its layers one by one take the compiler long; JAX says when it begins and when it has ended.
    talking = environment | {"JAX_LOG_COMPILES": "1", "PYTHONUNBUFFERED": "1"}
    process = started(talking, "train", config, "--out", out, "--training.unroll", 12, "--training.remat", "none")
    assert process.stderr is not None
    said = ""
    while "Compiling jit(update)" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    assert "Finished XLA compilation of jit(update)" not in said
    assert f"preempted: run {run.name} stopped after step {saved.name}; the same command continues it" in said
    assert (run / "metrics.jsonl").read_text() == before and saved.exists()
    assert train(build(tree, "test"), out).status == "done"
    whole = train(build(tree, "test"), tmp_path / "whole")
    losses = [[line["loss"] for line in read_metrics(f / "metrics.jsonl")] for f in (run, whole.path)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_command_that_is_terminated_leaves_no_compiler_behind(tmp_path, how):
    """The real `compile_for`, with a libtpu whose compiler never ends."""
    stand_in = tmp_path / "libtpu"
    stand_in.mkdir()
    (stand_in / "__init__.py").write_text("")
    program = (
        "import sys, json, pathlib, time\n"
        "from precisionlm.compiling import ahead_of_time\n"
        f"pathlib.Path({str(tmp_path / 'hang.py')!r}).write_text('''import os, pathlib, time\n"
        "from precisionlm.cluster.children import end_with_parent\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "end_with_parent()\n"
        "time.sleep(600)\n''')\n"
        "ahead_of_time.__name__ = 'hang'\n"
        "from precisionlm.cli.main import main\n"
        "sys.exit(main())\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), os.getcwd()])
    words = ("compile", "configs/demo.yaml", "--topology", "v5e:2x2", "--model.vocab_size", 1024)
    process = started(os.environ | {"PYTHONPATH": path}, *words, program=("-c", program))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), process)
    process.send_signal(how)
    assert process.wait(60) == -how
    assert_gone(int((tmp_path / "pid").read_text()))
    process.communicate()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent_however_it_ends(how):
    child = "from precisionlm.cluster.children import *; end_with_parent(); import time; time.sleep(600)"
    parent = (
        "import os, subprocess, sys, time\nfrom precisionlm.cluster.children import parental\n"
        "with parental() as (variables, pass_fds):\n"
        f"    p = subprocess.Popen([sys.executable, '-c', {child!r}], env=os.environ | variables, pass_fds=pass_fds)\n"
        "    print(p.pid, flush=True)\n    time.sleep(600)\n"
    )
    process = started(os.environ, program=("-c", parent))
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(how)
    process.communicate(timeout=60)
    assert_gone(pid)


def assert_gone(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} outlived its parent")


def test_the_pipe_to_a_child_is_closed_behind_it():
    with parental() as (variables, (theirs,)):
        assert json.loads(next(iter(variables.values()))) == theirs
        os.fstat(theirs)
    with pytest.raises(OSError):
        os.fstat(theirs)
