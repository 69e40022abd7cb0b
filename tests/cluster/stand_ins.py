"""Stand-ins for srun, gcloud, kubectl and sky: each runs the command that it is given for real, as several processes of
this machine, and kills one of them the first time. `python stand_ins.py TOOL ARGUMENTS…`, in STAND_IN_FOLDER.

The processes find each other through Slurm's variables where a real cluster has its own (TPU metadata, GKE).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

PROCESSES = 2
FOLDER = Path(os.environ.get("STAND_IN_FOLDER", "."))


def told_apart(process: int) -> dict[str, str]:
    """The variables by which JAX finds the other processes, with a port of their own for every start."""
    return {
        "SLURM_JOB_ID": os.environ.get("SLURM_JOB_ID", "1"),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(PROCESSES),
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
    }


def run_all(words: list[list[str]], variables: list[dict[str, str]]) -> list[int]:
    """Exit codes of all processes, as shells see them. One is killed the first time, once there is a checkpoint; so is
    its shell, if it has one."""
    processes = [
        subprocess.Popen(one, env=os.environ | more, start_new_session=True)
        for one, more in zip(words, variables, strict=True)
    ]
    mark = FOLDER / "killed"
    saved = os.environ.get("STAND_IN_KILLS_AFTER")  # a pattern below the folder
    while saved and not mark.exists() and all(process.poll() is None for process in processes):
        if list(FOLDER.glob(saved)):
            mark.write_text("")
            os.killpg(processes[-1].pid, signal.SIGKILL)
        time.sleep(0.02)
    codes = [process.wait() for process in processes]
    return [code if code >= 0 else 128 - code for code in codes]


def noted(line: str) -> None:
    with (FOLDER / "calls").open("a") as file:
        file.write(line + "\n")


def srun(arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("--kill-on-bad-exit")]
    return max(run_all([words] * PROCESSES, [told_apart(i) for i in range(PROCESSES)]))


def scontrol(arguments: list[str]) -> int:
    noted(" ".join(arguments))
    return 0


def gcloud(arguments: list[str]) -> int:
    """A slice that is taken away the first time that one of its workers is killed."""
    service, verb, *rest = arguments[2:]
    state = FOLDER / "state"
    noted(f"{service} {verb}")
    if (service, verb) == ("queued-resources", "describe"):
        if not state.exists():
            return 1
        print(state.read_text())
    elif (service, verb) == ("queued-resources", "create"):
        state.write_text("ACTIVE")
    elif (service, verb) == ("queued-resources", "delete"):
        state.unlink()
    elif (service, verb) == ("tpu-vm", "ssh"):
        (command,) = [word.removeprefix("--command=") for word in rest if word.startswith("--command=")]
        before = (FOLDER / "killed").exists()
        homes = [FOLDER / f"worker{i}" for i in range(PROCESSES)]
        for home in homes:
            home.mkdir(exist_ok=True)
        words = [["bash", "-c", f"cd {home} && {command}"] for home in homes]
        codes = run_all(words, [told_apart(i) | {"HOME": str(home)} for i, home in enumerate(homes)])
        if (FOLDER / "killed").exists() and not before and os.environ.get("STAND_IN_TAKES_AWAY"):
            state.write_text("SUSPENDED")
        return 1 if any(codes) else 0  # as gcloud does, whatever the codes
    elif (service, verb) == ("tpu-vm", "scp"):
        sources = [
            word for word in rest if not word.startswith("--") and ":" not in word and word != os.environ["TPU_ZONE"]
        ]
        for home in FOLDER.glob("worker*"):
            subprocess.run(["cp", "-r", *sources, str(home / "precisionlm")], check=True)
    return 0


def kubectl(arguments: list[str]) -> int:
    """`apply -f FILE`, until the JobSet or Job has ended, by its own rules for pods that fail."""
    for manifest in yaml.safe_load_all(Path(arguments[2]).read_text()):
        if manifest["kind"] == "JobSet":
            return _jobset(manifest["spec"])
        if manifest["kind"] == "Job":
            return _job(manifest["spec"])
    return 1


def _pods(job: dict, count: int) -> list[int]:
    (container,) = job["template"]["spec"]["containers"]
    codes = run_all([container["command"]] * count, [told_apart(i) for i in range(count)])
    noted(f"pods ended with {codes}")
    return codes


def _matches(rule: dict, code: int) -> bool:
    on = rule.get("onExitCodes")
    return bool(on) and code != 0 and (code in on["values"]) == (on["operator"] == "In")


def _jobset(spec: dict) -> int:
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    for _ in range(spec["failurePolicy"]["maxRestarts"]):
        codes = _pods(job, replicated["replicas"] * job["completions"])
        if not any(codes):
            return 0
        failed = any(_matches(rule, code) for rule in job["podFailurePolicy"]["rules"] for code in codes)
        reason = "PodFailurePolicy" if failed else "BackoffLimitExceeded"
        if any(reason in rule["onJobFailureReasons"] for rule in spec["failurePolicy"]["rules"]):
            return 1
    return 1


def _job(spec: dict) -> int:
    """Pods that have succeeded are not made again; the others are, all at once here."""
    failures = 0
    while failures <= spec["backoffLimit"]:
        codes = _pods(spec, spec["completions"])
        failures += sum(map(bool, codes))
        if not any(codes):
            return 0
        for code in codes:
            action = next((r["action"] for r in spec["podFailurePolicy"]["rules"] if _matches(r, code)), "Count")
            if action == "FailJob":
                return 1
    return 1


def sky(arguments: list[str]) -> int:
    """`jobs launch FILE`: the task's `run` on every node, again after the codes that it recovers from."""
    task = yaml.safe_load(Path(arguments[2]).read_text())
    nodes, recovered = task["num_nodes"], task["resources"]["job_recovery"]["recover_on_exit_codes"]
    variables = [
        {
            "SKYPILOT_NODE_RANK": str(i),
            "SKYPILOT_NUM_NODES": str(nodes),
            "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * nodes),
        }
        for i in range(nodes)
    ]
    given = dict(word.split("=", 1) for word in arguments[3:] if "=" in word)
    while True:
        codes = run_all([["bash", "-c", task["run"]]] * nodes, [task["envs"] | given | more for more in variables])
        noted(f"nodes ended with {codes}")
        if not any(codes):
            return 0
        if not all(code in (0, *recovered) for code in codes):
            return 1


if __name__ == "__main__":
    tool = Path(sys.argv[1]).name
    sys.exit({"srun": srun, "scontrol": scontrol, "gcloud": gcloud, "kubectl": kubectl, "sky": sky}[tool](sys.argv[2:]))
