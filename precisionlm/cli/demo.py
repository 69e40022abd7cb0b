"""The whole way in miniature, on text that every machine with Python has: the source of its standard library."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from precisionlm.analysis.decisions.summary import decisions
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.laws import USUAL
from precisionlm.analysis.report.report import write_report
from precisionlm.cluster.preemption import Interruption
from precisionlm.config import Experiment, build
from precisionlm.data.prepare import prepare
from precisionlm.data.request import Request
from precisionlm.model.presets import non_embedding_parameters
from precisionlm.progress import Reporter, clock, reporting
from precisionlm.ptq.evaluate import quantize_run
from precisionlm.ptq.method import weight_quantization
from precisionlm.storage.result import finished_runs
from precisionlm.sweep.collect import collect, write
from precisionlm.sweep.rows import plan
from precisionlm.sweep.scheduler import run_sweep
from precisionlm.training.flops import training_flops_per_token

VOCABULARY = 1024
SIZES = (
    {"layers": 2, "width": 32, "heads": 2, "mlp_width": 96, "init_std": 0.04},
    {"layers": 3, "width": 96, "heads": 3, "mlp_width": 256, "init_std": 0.04},
)
TOKENS = (100_000, 320_000)
RECIPES = ("bf16", "W4A8", "W3A8")
PTQ_BITS = (3, 4, 6)

# Shares of the whole job, for the progress bar; training takes nearly all of it.
_PREPARED, _TRAINED, _QUANTIZED = 0.08, 0.90, 0.95


def experiments(data: Path, scale: float) -> list[Experiment]:
    """The grid: every size at every token budget and precision. scale: times every budget."""
    batch_size, sequence_length = 4, 128
    steps = [max(20, round(scale * tokens / (batch_size * sequence_length))) for tokens in TOKENS]
    return [
        build(
            {
                "name": "demo",
                "model": size,
                "data": {"path": str(data), "sequence_length": sequence_length},
                # Wider models want smaller steps, and runs of a few hundred steps a long warm-up: at one rate and a
                # short warm-up the larger model loses to the smaller one.
                "optimizer": {"learning_rate": 0.06 / size["width"] ** 0.5, "warmup_fraction": 0.4},
                "precision": {"recipe": recipe},
                "training": {
                    "steps": count,
                    "batch_size": batch_size,
                    "dtype": "float32",
                    "remat": "none",
                    "eval_tokens": 50_000,
                },
            },
            "demo",
        )
        for size in SIZES
        for recipe in RECIPES
        for count in steps
    ]


def preview(scale: float) -> list[dict[str, Any]]:
    """The grid's runs with sizes (N, count), tokens (D, count), recipe and training FLOPs; nothing is read."""
    rows = []
    for e in experiments(Path("data"), scale):
        model = e.model.model_copy(update={"vocab_size": VOCABULARY})
        n, recipe = non_embedding_parameters(model), e.precision.recipe
        flops = e.tokens * training_flops_per_token(model, n, e.data.sequence_length)
        rows.append({"N_params": n, "D_tokens": e.tokens, "recipe": recipe, "flops": flops})
    return rows


def run_demo(out: Path, scale: float) -> dict[str, Any]:
    """Prepare data, train the grid, quantize after training, collect, fit, report, all under `out`; what is there from
    an earlier call is kept. scale: times every token budget. Returns report and table (paths), counts of runs and
    compiled training steps, the fit's status and `lines`: all of it in words."""
    began = time.monotonic()
    with reporting("demo") as report, Interruption() as interrupted:
        prepare(
            Request("stdlib", vocab_size=VOCABULARY, validation_every=32),
            out / "data",
            lambda stage, done, total: report(_PREPARED * (done / total if total else 0.0), stage),
        )
        rows = plan(experiments(out / "data", scale), out / "runs")
        outcome = run_sweep(rows, out / "runs", _between(report, _PREPARED, _TRAINED), interrupted)
        _quantize(out / "runs", _between(report, _TRAINED, _QUANTIZED), interrupted)
        report(_QUANTIZED, "collect, fit, report")
        table, _ = collect(out / "runs")
        paths = write(table, out / "runs.parquet")
        analysis = analyze(table, USUAL, starts=200, resamples=400)
        summary = write_report(
            table, [analysis], out / "report.html", "Precision scaling laws: the demo", decisions=decisions(analysis),
            metrics=out / "runs",
        )  # fmt: skip
        report(1.0, "done")
    structures = len({row.run.program for row in rows})
    lines = [
        f"{len(rows)} runs in {clock(time.monotonic() - began)}: {len(outcome.done)} trained, {len(outcome.skipped)} "
        f"finished before, {len(outcome.diverged)} diverged; {outcome.compilations} training steps compiled for "
        f"{structures} combinations of size and scale structure",
        f"table: {len(table)} rows in {paths[0]} and {paths[1].name}",
        *summary.lines,
        _verdict(analysis),
        f"report: {summary.path}",
    ]
    return {
        "report": str(summary.path),
        "table": str(paths[0]),
        "rows": len(table),
        "runs": len(rows),
        "trained": len(outcome.done),
        "diverged": len(outcome.diverged),
        "compilations": outcome.compilations,
        "status": analysis.result.status.value,
        "lines": lines,
    }


def _between(report: Reporter, low: float, high: float) -> Reporter:
    return lambda share, text: report(low + (high - low) * share, text)


def _quantize(runs: Path, report: Reporter, interrupted: Callable[[], bool]) -> None:
    """Round the weights of the bf16 runs to nearest."""
    quantizations = [weight_quantization(str(bits)) for bits in PTQ_BITS]
    folders = finished_runs(runs, "bf16")
    for i, folder in enumerate(folders):
        quantize_run(folder, "rtn", quantizations, partial(report, i / len(folders)), interrupted)


def _verdict(analysis: Analysis) -> str:
    spans = [
        f"{name} {low:.3g} to {high:.3g}"
        for name, (low, high) in analysis.intervals.items()
        if name.startswith("gamma")
    ]
    return (
        f"This grid shows that everything works; it is too small to trust ({analysis.result.status.value}, 95 % "
        f"intervals: {', '.join(spans)})."
    )
