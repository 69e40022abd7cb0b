"""Under what each start of a run was trained: kept over resumes, said in the result and the table."""

import json
import subprocess
from datetime import datetime

import jax
import pytest

import precisionlm
from precisionlm.errors import PreemptedError
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.collect import collect
from precisionlm.training import provenance
from precisionlm.training.execute import train
from precisionlm.training.provenance import distinct, package_version

from ..conftest import StopAt

ONE = jax.devices()[:1]


def test_a_resume_on_other_devices_and_another_version_keeps_both(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "package_version", lambda: "0.1.0")
    with pytest.raises(PreemptedError):
        train(experiment, tmp_path, interrupted=StopAt(4), devices=ONE)
    (path,) = tmp_path.glob("*/segments.jsonl")
    path.write_text(path.read_text() + '{"time": "20')  # cut by a kill
    monkeypatch.setattr(provenance, "package_version", lambda: "0.2.0")
    result = train(experiment, tmp_path).result
    first, second = result.segments
    assert [json.loads(line) for line in path.read_text().splitlines()] == result.segments
    assert (first["step"], second["step"]) == (0, 5) and first["time"] <= second["time"]
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0
    assert first["mesh"] == {"replica": 1, "fsdp": 1, "tensor": 1} and second["mesh"]["fsdp"] == 8
    assert (first["processes"], first["attention"]) == (1, "xla: no fused kernel on cpu")
    (row,) = collect(tmp_path)[0].to_dict("records")
    assert (row["segments"], row["device"]) == (2, "cpu x 1; cpu x 8")
    assert (row["package_version"], row["jax_version"]) == ("0.1.0; 0.2.0", jax.__version__)


def test_results_of_before_are_read(tmp_path):
    directory = RunDirectory(tmp_path, "run")
    directory.write_json("result.json", {"status": "done", "reason": "", "row": {}, "evaluations": []})
    assert Result.read(directory).segments == []


def test_distinct_values_in_order():
    assert distinct([{"device": d} for d in ("b x 2", "a x 1", "b x 2")], "device") == "b x 2; a x 1"


@pytest.mark.parametrize(("tracked", "version"), [("__init__.py", "+a1b2c3d-dirty"), ("", ""), (None, "")])
def test_the_commit_is_told_where_git_tracks_the_package(monkeypatch, tracked, version):
    """Not where it is installed inside another project's checkout, nor where there is no git."""

    def run(command, **options):
        if tracked is None:
            raise FileNotFoundError("git")
        said = {"ls-files": tracked, "describe": "a1b2c3d-dirty"}[command[3]]
        return subprocess.CompletedProcess(command, 0, stdout=f"{said}\n")

    monkeypatch.setattr(subprocess, "run", run)
    here = precisionlm.__version__
    assert package_version.__wrapped__() == (here.partition("+")[0] + version if version else here)
