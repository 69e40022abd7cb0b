"""The launch files: Slurm's script is run with a stand-in for srun, so that detection is real; GKE's is read."""

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from precisionlm.cli.main import build_parser
from precisionlm.storage.run_directory import read_metrics

from ..conftest import tiny_tree

LAUNCH = Path(__file__).resolve().parents[2] / "launch"

# What Slurm's srun does for two tasks on this machine: the same command twice, told apart by variables.
SRUN = """#!{python}
import os, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
shared = os.environ | {{"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}}
tasks = [
    subprocess.Popen(words, env=shared | {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}}) for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def slurm(tmp_path):
    """Environment of a job, with srun and scontrol in front of PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "srun": SRUN.format(python=sys.executable),
        "scontrol": '#!/bin/sh\necho "$@" >> "$0.log"\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    return os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(random.randrange(4096)),  # the coordinator's port follows from it
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "PRECISIONLM": f"{sys.executable} -m precisionlm",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }


def test_two_tasks_find_each_other_through_slurm(slurm, tokens_folder, tmp_path):
    tree = tiny_tree(tokens_folder)
    tree["model"] |= {"layers": 1}
    tree["training"] |= {"steps": 3, "eval_tokens": 1000}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    words = ["bash", str(LAUNCH / "slurm.sbatch"), "train", "run.yaml", "--out", "runs", "--json"]
    found = subprocess.run(words, env=slurm, text=True, capture_output=True, timeout=240)
    assert found.returncode == 0, found.stderr
    outcome = json.loads(found.stdout)  # printed once
    assert outcome["result"]["row"]["device"] == "cpu x 8"
    assert len(list(read_metrics(tmp_path / outcome["run_dir"] / "metrics.jsonl"))) == 3


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (2, False)])
def test_a_preempted_job_goes_back_into_the_queue(slurm, tmp_path, code, requeued):
    environment = slurm | {"PRECISIONLM": "sh -c"}
    words = ["bash", str(LAUNCH / "slurm.sbatch"), f"exit {code}"]
    assert subprocess.run(words, env=environment, timeout=60).returncode == code
    log = tmp_path / "tools" / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == (f"requeue {slurm['SLURM_JOB_ID']}\n" if requeued else "")


def test_the_job_of_gke_is_what_it_says():
    service, job = yaml.safe_load_all((LAUNCH / "gke_tpu.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert container["resources"]["limits"]["google.com/tpu"] * job["spec"]["completions"] == rows * columns
    name, *words = container["command"]
    args, rest = build_parser().parse_known_args(words)
    assert name == "precisionlm" and args.distributed and rest == []
    assert (LAUNCH.parent / args.config).exists() and str(args.out).startswith("/shared/")
    assert 75 in job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
