"""`precisionlm bench training`: what surrounds the steps, by the command as a user types it, on random tokens: seconds
to the first loss with a cold and a warm compilation cache, and what a checkpoint every so many steps costs."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from precisionlm.bench.steps import experiment_of
from precisionlm.bench.tokens import learned, random_dataset
from precisionlm.cluster.children import parental
from precisionlm.config import Experiment, to_yaml
from precisionlm.errors import UserError
from precisionlm.storage.run_directory import read_metrics

_WARM_UP = 20  # steps left out of every comparison


def bench_training(
    size: str, recipe: str, steps: int, every: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """{first_loss_cold_s, first_loss_warm_s, saving_ratio, …}: wall seconds from the command to its first loss, and
    the median over rounds of (wall time of the steps with a checkpoint every `every` steps) / (without any), the two
    taking turns; loss, the lowest mean over the last steps of a run (nats/token), and error, which says where it shows
    that tokens were known. Raises UserError for an unknown size, too few steps, or a run that fails."""
    if steps < _WARM_UP + every:
        raise UserError(f"--steps {steps}: at least {_WARM_UP + every}, so that a checkpoint is among those compared")
    plain = experiment_of(size, recipe, steps=steps, eval_tokens=1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        say("random tokens")
        vocabulary = plain.model.vocab_size or 2
        path = random_dataset(root, vocabulary, plain.tokens)  # so many that no batch comes twice
        data = plain.data.model_copy(update={"path": str(path)})
        plain = plain.model_copy(update={"data": data})
        cold = _run(plain, root, "cold", None)
        say(f"first loss after {cold[0]:.1f} s with a cold cache")
        firsts, ratios, seconds, losses = [], [], [], [cold[2]]
        for turn in range(rounds):
            without = _run(plain, root, f"without-{turn}", None)
            saving = _run(plain, root, f"saving-{turn}", every)
            firsts += [without[0], saving[0]]
            ratios.append(saving[1] / without[1])
            seconds.append(without[1])
            losses += [without[2], saving[2]]
            say(f"round {turn + 1} of {rounds}: saving / not saving {ratios[-1]:.4f}")
    return {
        "size": size,
        "recipe": recipe,
        "steps": steps,
        "save_every": every,
        "first_loss_cold_s": cold[0],
        "first_loss_warm_s": statistics.median(firsts),
        "saving_ratio": statistics.median(ratios),
        "saving_ratios": ratios,
        "step_ms": 1e3 * statistics.median(seconds) / (steps - _WARM_UP),
        "loss": min(losses),
        "error": learned(min(losses), vocabulary),
    }


def _run(experiment: Experiment, root: Path, name: str, every: int | None) -> tuple[float, float, float]:
    """(seconds from the command to its first loss, wall seconds of the steps after the first ones with the waits for
    checkpoints between them, mean loss of the last steps) of one whole run."""
    changes = {"every_steps": every, "every_seconds": None}
    checkpoint = experiment.checkpoint.model_copy(update=changes)
    config, out = root / f"{name}.yaml", root / name
    config.write_text(to_yaml(experiment.model_copy(update={"checkpoint": checkpoint})))
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(root / "cache")}
    command = [sys.executable, "-m", "precisionlm", "train", str(config), "--out", str(out), "--json"]
    began, first, said = time.perf_counter(), None, []
    with (
        parental() as (variables, pass_fds),
        subprocess.Popen(
            command,
            env=environment | variables,
            pass_fds=pass_fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr is not None and process.stdout is not None
        for line in process.stderr:
            said.append(line)
            if first is None and " loss " in line:
                first = time.perf_counter() - began
        answer = process.stdout.read()
    if process.returncode or first is None:
        raise UserError(f"bench training: the run ended with {process.returncode}: {' '.join(said[-1:]).strip()[:300]}")
    lines = list(read_metrics(Path(json.loads(answer)["run_dir"]) / "metrics.jsonl"))
    ends = [line["wall_seconds"] for line in lines if line["step"] >= _WARM_UP]
    losses = [line["loss"] for line in lines if "loss" in line]
    return first, ends[-1] - ends[0], statistics.mean(losses[-_WARM_UP // 2 :])


def as_text(found: dict[str, Any]) -> str:
    """What was found, in words."""
    rounds = ", ".join(f"{100 * (ratio - 1):+.1f}" for ratio in found["saving_ratios"])
    return (
        f"{found['size']} {found['recipe']}: first loss {found['first_loss_cold_s']:.1f} s after the command with a "
        f"cold compilation cache, {found['first_loss_warm_s']:.1f} s with a warm one; "
        f"{found['step_ms']:.1f} ms a step; "
        f"a checkpoint every {found['save_every']} steps takes {100 * (found['saving_ratio'] - 1):+.1f} % "
        f"(rounds {rounds})" + (f"\nerror: {found['error']}" if found["error"] else "")
    )
