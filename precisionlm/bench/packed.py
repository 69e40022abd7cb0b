"""`precisionlm bench sweep --steps-only`: tokens/s of packed steps alone, through what packs themselves are made of."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from precisionlm.bench.grid import batch_tokens, run_tree, vocabulary_of
from precisionlm.bench.tokens import learned, random_dataset
from precisionlm.config import build
from precisionlm.errors import UserError
from precisionlm.packing.corpus import Order
from precisionlm.packing.prepare import Prepared
from precisionlm.packing.program import PackShape, blank_stack, put, run_mesh
from precisionlm.packing.size import choose, with_remat
from precisionlm.training.run import Run, prepare_run
from precisionlm.training.step import initial_state

_DISPATCHES = 4  # of a round


def bench_packed(
    sizes: Sequence[str],
    runs: int,
    steps: int,
    remat: str | None,
    rounds: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rows {size, runs, steps, remat, ms, tokens_per_second, low, high, compile_seconds, temporary, loss, error}:
    medians over rounds of four dispatches of `steps` steps of so many runs, over all devices; low and high are of
    single rounds. ms: of a step of all runs; compile_seconds: until step, audit and evaluation are compiled, side by
    side; temporary: memory of the step beside its arguments (bytes a device); loss: the lowest mean of a run in a
    round (nats/token); error: why there are no figures, or why they are not to be trusted.

    remat: None for what a sweep would choose. Every step of every run has tokens of its own. Raises UserError for an
    unknown size, and for runs that do not divide over the devices.
    """
    vocabulary, devices = vocabulary_of(sizes), jax.local_devices()
    if runs < 1 or runs % len(devices):
        raise UserError(f"--runs {runs}: a positive multiple of the {len(devices)} devices")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        made = steps * (1 + rounds * _DISPATCHES)  # by a run
        data = random_dataset(Path(folder), vocabulary, made * max(map(batch_tokens, sizes)))
        for size in sizes:
            rows.append(_measured(size, runs, steps, remat, rounds, data))
            row = rows[-1]
            say(row["error"] or f"{size} x {runs} runs: {row['tokens_per_second'] / 1e6:.3f} M tokens/s")
    return rows


def _measured(size: str, runs: int, steps: int, remat: str | None, rounds: int, data: Path) -> dict[str, Any]:
    devices = jax.local_devices()
    row: dict[str, Any] = {"size": size, "runs": runs, "steps": steps, "error": ""}
    tokens = steps * (1 + rounds * _DISPATCHES) * batch_tokens(size)
    members = [prepare_run(build(run_tree(size, r, tokens, data), "bench"), devices[:1]) for r in range(runs)]
    row["remat"] = remat or choose(members[0], runs // len(devices), runs // len(devices)).remat
    members = [with_remat(run, row["remat"]) for run in members]
    e = members[0].experiment
    shape = PackShape(members[0].program, run_mesh(devices), runs, steps, e.training.batch_size, e.data.sequence_length)
    try:
        began = time.perf_counter()
        prepared = Prepared(shape, members[0])
        prepared.compile()
        row["compile_seconds"] = time.perf_counter() - began
        row["temporary"] = prepared.advance.memory_analysis().temp_size_in_bytes
        seconds, loss = _advanced(prepared, members, rounds)
    except Exception as error:  # a pack that does not fit the memory, above all
        return row | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    rates = [runs * e.batch_tokens / each for each in seconds]
    return row | {
        "ms": statistics.median(seconds) * 1e3,
        "tokens_per_second": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "loss": loss,
        "error": learned(loss, e.model.vocab_size or 2),
    }


def _advanced(prepared: Prepared, members: Sequence[Run], rounds: int) -> tuple[list[float], float]:
    """Seconds a step of all runs, of each round, and the lowest mean loss of a run in a round."""
    shape = prepared.shape
    state = blank_stack(shape)()
    for slot, run in enumerate(members):
        beginning = initial_state(run.program, run.experiment.training.seed, run.grids)
        state = put(shape.alone())(state, jax.device_put(beginning, shape.shared), slot)
    orders = [Order(run.train_batches()) for run in members]
    numbers, all_of_them = prepared.numbers(list(members)), prepared.counts([shape.steps] * shape.runs)
    seconds, lowest, done = [], float("nan"), 0
    for turn in range(rounds + 1):  # the first one warms up
        batches = []
        for _ in range(_DISPATCHES if turn else 1):
            batches.append(prepared.place(prepared.corpus.batches([(order, done) for order in orders])))
            done += shape.steps
        jax.block_until_ready((state, batches))
        losses = []
        began = time.perf_counter()
        for batch in batches:
            state, metrics = prepared.advance(state, prepared.corpus.on_device, batch, *numbers, all_of_them)
            losses.append(metrics["loss"])
        jax.block_until_ready(losses)
        if turn:
            seconds.append((time.perf_counter() - began) / (len(batches) * shape.steps))
        lowest = float(np.fmin(lowest, np.concatenate([np.asarray(each) for each in losses]).mean(0).min()))
    return seconds, lowest


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table; the devices and the jax version above it."""
    lines = [
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, jax {jax.__version__}; packed steps",
        "",
        "| size | runs | steps a dispatch | remat | ms/step | M tokens/s | rounds | compiled in | temporary memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        head = f"| {r['size']} | {r['runs']} | {r['steps']} | {r['remat']} |"
        if r["error"]:
            lines.append(f"{head} {r['error']} | | | | |")
            continue
        lines.append(
            f"{head} {r['ms']:.3f} | {r['tokens_per_second'] / 1e6:.3f} | {r['low'] / 1e6:.3f}–{r['high'] / 1e6:.3f} | "
            f"{r['compile_seconds']:.1f} s | {r['temporary'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)
