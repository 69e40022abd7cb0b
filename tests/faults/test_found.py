"""What campaigns have found, each once more as a test of its own."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from precisionlm.cli.verbs import surviving
from precisionlm.data import journal
from precisionlm.data import prepare as preparation
from precisionlm.data.dataset import Dataset
from precisionlm.data.meta import Meta
from precisionlm.data.prepare import prepare
from precisionlm.data.request import Request
from precisionlm.data.writer import SplitWriter
from precisionlm.errors import CannotWriteError, UserError
from precisionlm.storage.claim import claim
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.workers import work
from precisionlm.whole_file import written

from ..cluster.test_ends import assert_gone


@contextmanager
def full_disk():
    """No file takes another byte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def request_of_text(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for i in range(30):
        (text / f"{i}.txt").write_text(f"{i} " + "some words that come again and again, " * 20)
    return Request(text, vocab_size=270, validation_every=3)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("where", ["meta", "traces"])
def test_a_preparation_that_ends_at_its_end_goes_on(request_of_text, tmp_path, monkeypatch, where):
    prepare(request_of_text, tmp_path / "whole")
    monkeypatch.setattr(preparation, "JOURNAL_SECONDS", -1.0)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if where == "meta":  # the files of both splits have their last names
            patched.setattr(Meta, "write", stop)
        else:
            patched.setattr(journal, "remove_traces", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(request_of_text, tmp_path / "broken")
    encoded = []
    monkeypatch.setattr(SplitWriter, "end", lambda self: encoded.append(1))
    prepare(request_of_text, tmp_path / "broken")
    assert not encoded
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_full_disk_under_the_tokenizer_is_one_line(request_of_text, tmp_path):
    with full_disk(), pytest.raises(UserError, match="out cannot be written: File too large; nothing was left"):
        prepare(request_of_text, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


def test_a_full_disk_under_a_claim_names_its_file(tmp_path):
    with (
        full_disk(),
        pytest.raises(UserError, match=r"\.lock: cannot be written: File too large"),
        claim(RunDirectory(tmp_path, "")),
    ):
        pass


def test_a_full_cache_is_no_reason_to_stop(tokens_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset = Dataset.open(tokens_folder)
    with full_disk():
        dataset.verify_once()


def test_a_full_disk_ends_a_batch():
    tried = []

    def attempt(item):
        tried.append(item)
        if item == 2:
            raise CannotWriteError("disk: cannot be written: No space left on device")

    with pytest.raises(CannotWriteError):
        surviving([1, 2, 3], attempt)
    assert tried == [1, 2]


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path):
    left, held = tmp_path / ".runs.1.partial.csv", tmp_path / ".runs.2.partial.csv"
    left.write_text("half")
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom precisionlm.whole_file import written\n"
        "with written(Path(sys.argv[1])) as partial:\n    print(partial, flush=True)\n    time.sleep(600)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "runs.csv")]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    os.rename(other.stdout.readline().strip(), held)
    try:
        with written(tmp_path / "runs.csv") as partial:
            partial.write_text("whole")
        assert not left.exists() and held.exists()
    finally:
        other.kill()
        other.communicate()
    with written(tmp_path / "runs.csv") as partial:
        partial.write_text("whole again")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


def test_a_pack_whose_runs_are_finished_is_removed_by_whoever_comes_next(tmp_path):
    (run, pack) = (tmp_path / "run", tmp_path / "packs" / "run")
    run.mkdir()
    (pack / "checkpoints").mkdir(parents=True)
    result = {"status": "done", "reason": "", "row": {}, "evaluations": []}
    (run / "result.json").write_text(json.dumps(result))
    (pack / "pack.json").write_text(json.dumps({"program": "", "slots": 1, "runs": ["run"]}))
    work([], tmp_path, lambda share, text: None, lambda: False)
    assert not pack.exists()


# --- no process outlives its command ---

_POOL = """
import os, sys, time
from precisionlm.cluster.pool import pool

def begin():
    print(os.getpid(), flush=True)

if __name__ == "__main__":
    with pool(1, begin) as processes:
        processes.submit(time.sleep, 600).result()
"""


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def arguments(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_pool_ends_with_its_parent_and_hears_no_ctrl_c(tmp_path, how):
    (tmp_path / "program.py").write_text(_POOL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, str(tmp_path / "program.py")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    with open(f"/proc/{pid}/status") as file:
        (blocked,) = [int(line.split()[1], 16) for line in file if line.startswith("SigBlk")]
    assert blocked >> (signal.SIGINT - 1) & 1
    process.send_signal(how)
    process.wait(60)
    assert_gone(pid)
    process.stdout.close()


_BENCH = ("bench", "training", "--size", "tiny", "--rounds", "1")


@pytest.mark.parametrize(
    ("verb", "how"),
    [
        ("prepare", signal.SIGKILL),
        pytest.param("prepare", signal.SIGTERM, marks=pytest.mark.long),
        ("bench", signal.SIGKILL),
        pytest.param("bench", signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_no_process_outlives_its_command(tmp_path, verb, how):
    words = list(_BENCH)
    if verb == "prepare":  # long enough for a pool
        (tmp_path / "text").mkdir()
        for i in range(90):
            (tmp_path / "text" / f"{i}.txt").write_text(f"{i} some words that come again and again\n" * 3000)
        words = ["data", "prepare", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--vocab-size", "270"]
        words += ["--validation-every", "3", "--workers", "2"]
    command = [sys.executable, "-m", "precisionlm", *words]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    found: list[int] = []
    while not found:
        assert process.poll() is None, process.communicate()
        found = [
            pid for pid in children(process.pid) if "spawn_main" in arguments(pid) or "precisionlm" in arguments(pid)
        ]
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(60)
    for pid in found:
        assert_gone(pid)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
