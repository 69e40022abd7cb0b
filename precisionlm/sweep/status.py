"""Where every run of a sweep stands, from its run directory alone: nothing is written, no device is asked, and workers
may train meanwhile."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from precisionlm.config import Experiment
from precisionlm.errors import UserError
from precisionlm.model.presets import non_embedding_parameters
from precisionlm.progress import clock
from precisionlm.storage.claim import holder
from precisionlm.storage.failure import read_failure
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory, last_metrics
from precisionlm.training.flops import training_flops_per_token

State = Literal["done", "diverged", "running", "failed", "begun", "new"]
STATES: dict[State, str] = {
    "done": "done",
    "diverged": "diverged",
    "running": "running",
    "failed": "failed",
    "begun": "begun, nobody holds them",
    "new": "to do",
}
_RECENT = 100  # steps whose median time is the speed


@dataclass(frozen=True)
class Standing:
    """One run. reason: why it failed or diverged; step: the last one recorded, of `steps`; tokens_per_second: of the
    run, by its last steps; holder: host, pid and since (s since 1970) of who trains it, as far as they were written."""

    run_id: str
    state: State
    non_embedding: int
    tokens: int
    recipe: str
    seed: int
    steps: int
    flops: float
    step: int = 0
    reason: str = ""
    tokens_per_second: float | None = None
    holder: dict[str, Any] | None = None

    @property
    def flops_left(self) -> float:
        """What is still to be computed; nothing for what has ended."""
        return 0.0 if self.state in ("done", "diverged", "failed") else self.flops * (1 - self.step / self.steps)

    @property
    def seconds_left(self) -> float | None:
        """At its speed; None where that is not known."""
        left = self.tokens * (1 - self.step / self.steps)
        return left / self.tokens_per_second if self.tokens_per_second else None

    @property
    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run_id": self.run_id,
            "status": self.state,
            "N_params": self.non_embedding,
            "D_tokens": self.tokens,
            "recipe": self.recipe,
            "seed": self.seed,
            "flops": self.flops,
            "step": self.step,
            "steps": self.steps,
            "reason": self.reason,
            "tokens_per_second": self.tokens_per_second,
            "seconds_left": self.seconds_left if self.state == "running" else None,
            "holder": self.holder,
        }


def standings(experiments: Sequence[Experiment], out: Path) -> list[Standing]:
    """Every run of a sweep, once. Raises UserError where data or a result cannot be read."""
    from precisionlm.training.run import identified  # with JAX, which a look at one run does not need

    found: dict[str, Standing] = {}
    for experiment in experiments:
        run_id, e = identified(experiment)
        if run_id not in found:
            found[run_id] = standing_of(run_id, e, RunDirectory(out, run_id))
    return list(found.values())


def standing_of(run_id: str, e: Experiment, directory: RunDirectory) -> Standing:
    """One run, from its directory; e: with its vocabulary's size. Raises UserError where a result cannot be read."""
    n = non_embedding_parameters(e.model)
    flops = e.tokens * training_flops_per_token(e.model, n, e.data.sequence_length)

    def standing(state: State, **details: Any) -> Standing:
        seed, steps = e.training.seed, e.training.steps
        return Standing(run_id, state, n, e.tokens, e.precision.recipe, seed, steps, flops, **details)

    held = None
    try:
        if (result := Result.read(directory)) is None:
            held = holder(directory)  # asked before the result is looked for again: who finishes writes first
            result = Result.read(directory)
        reason = read_failure(directory)
    except UserError as error:  # a damaged file is of this run alone
        return standing("failed", reason=str(error))
    if result is not None:
        steps_done = result.row.get("steps")
        return standing(result.status, step=steps_done if isinstance(steps_done, int) else 0, reason=result.reason)
    metrics = [line for line in last_metrics(directory.metrics) if "loss" in line]
    step = metrics[-1]["step"] if metrics else 0
    if held is not None:
        seconds = [line["seconds"] for line in metrics[-_RECENT:] if line.get("seconds")]
        rate = e.batch_tokens / statistics.median(seconds) if seconds else None
        return standing("running", step=step, tokens_per_second=rate, holder=held)
    if reason is not None:
        return standing("failed", step=step, reason=reason)
    return standing("begun" if directory.path.exists() else "new", step=step)


@dataclass(frozen=True)
class Summary:
    """Of all runs. flops, flops_left: of training, by formula; tokens_per_second: of those that run now, together;
    seconds_left: if as many FLOPs a second go on being computed as now; None where that is not known."""

    runs: int
    counts: dict[State, int]
    flops: float
    flops_left: float
    tokens_per_second: float
    seconds_left: float | None


def summary(found: Sequence[Standing]) -> Summary:
    """What the runs come to."""
    counts = Counter(one.state for one in found)
    left = sum(one.flops_left for one in found)
    measured = [(one.tokens_per_second, one.flops / one.tokens) for one in found if one.tokens_per_second]
    pace = sum(rate * flops for rate, flops in measured)
    return Summary(
        len(found),
        {state: counts[state] for state in STATES},
        sum(one.flops for one in found),
        left,
        sum(rate for rate, _ in measured),
        0.0 if not left else left / pace if pace else None,
    )


def lines(found: Sequence[Standing]) -> list[str]:
    """In words: what runs, what ended badly and what was left, a line each; then the totals."""
    told = [_line(one) for state in ("running", "begun", "failed", "diverged") for one in found if one.state == state]
    total = summary(found)
    counts = ", ".join(f"{total.counts[state]} {words}" for state, words in STATES.items() if total.counts[state])
    pace = f"; {total.tokens_per_second:,.0f} tokens/s now" if total.tokens_per_second else ""
    time_left = "unknown, nothing runs" if total.seconds_left is None else clock(total.seconds_left)
    left = f", time left at this speed {time_left}" if total.flops_left else ""
    return [
        *told,
        f"{total.runs} runs: {counts}",
        f"{total.flops_left:.3g} of {total.flops:.3g} FLOPs left{pace}{left}",
    ]


def _line(one: Standing) -> str:
    what = f"{one.run_id}  {one.state:8}  N {one.non_embedding:,}  D {one.tokens:,}  {one.recipe}  seed {one.seed}"
    parts = [f"step {one.step:,} of {one.steps:,}"]
    if one.state == "running":
        held = one.holder or {}
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(held["since"])) if "since" in held else "?"
        parts.insert(0, f"{held.get('host', '?')} pid {held.get('pid', '?')} since {since}")
    if one.tokens_per_second and one.seconds_left is not None:
        parts += [f"{one.tokens_per_second:,.0f} tokens/s", f"{clock(one.seconds_left)} left"]
    return f"{what}: {', '.join([*parts, *filter(None, [one.reason])])}"
