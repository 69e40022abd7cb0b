"""`precisionlm bench precision`: what simulated quantization costs in a whole step, against bf16, side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from precisionlm.bench.steps import Measured, experiment_of, measure_steps
from precisionlm.json_text import dumps

RECIPES = (
    "W8A8",
    "W8A8-tensor",
    "W8A8-g128",
    "W8A8-g32",
    "W4A4",
    "W=e4m3,A=e4m3",
    "W=e2m1,A=e2m1",
    "W8A8KV8",
    "W8A8G8",
    "mxfp8",
    "mxfp4",
    "nvfp4",
)


def bench_precision(
    sizes: Sequence[str], recipes: Sequence[str], say: Callable[[str], None], rounds: int = 5
) -> list[dict[str, Any]]:
    """Rows {size, recipe, pass, ms, ratio, low, high, memory, tokens_per_second, loss, error}: the step's median time
    and temporary memory as ratios to bf16 of the same size and pass; low and high are the ratios of single rounds.

    Raises UserError for an unknown size or fewer than one round.
    """
    rows = []
    for size in sizes:
        variants = [(recipe, experiment_of(size, recipe)) for recipe in ("bf16", *recipes)]
        for name, backward in (("forward", False), ("forward+backward", True)):
            say(f"{size} {name}")
            measured = measure_steps(variants, rounds, backward=backward, say=say)
            rows += [_row(size, name, measured[0], one, variants[0][1].batch_tokens) for one in measured]
    return rows


def _row(size: str, name: str, base: Measured, one: Measured, tokens: int) -> dict[str, Any]:
    pairs = [a / b for a, b in zip(one.seconds, base.seconds, strict=False)]
    return {
        "size": size,
        "recipe": one.label,
        "pass": name,
        "ms": one.median * 1e3,
        "ratio": one.median / base.median,
        "low": min(pairs, default=float("nan")),
        "high": max(pairs, default=float("nan")),
        "memory": one.temporary / base.temporary if base.temporary else float("nan"),
        "tokens_per_second": tokens / one.median,
        "loss": one.loss,
        "error": one.error,
    }


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, a line a (size, recipe), both passes in columns; the device and jax version above it."""
    device = jax.devices()[0].device_kind
    lines = [
        f"{device} x {jax.device_count()}, jax {jax.__version__}; step time and temporary memory / bf16",
        "",
        "| size | recipe | forward | memory | forward + backward | rounds | memory | tokens/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    cells = {(row["size"], row["recipe"], row["pass"]): row for row in rows}
    for size, recipe in dict.fromkeys((row["size"], row["recipe"]) for row in rows):
        ahead, both = cells[size, recipe, "forward"], cells[size, recipe, "forward+backward"]
        if both["error"] or ahead["error"]:
            lines.append(f"| {size} | `{recipe}` | {both['error'] or ahead['error']} | | | | | |")
            continue
        lines.append(
            f"| {size} | `{recipe}` | {ahead['ratio']:.3f} | {ahead['memory']:.2f} | {both['ratio']:.3f} | "
            f"{both['low']:.3f}–{both['high']:.3f} | {both['memory']:.2f} | {both['tokens_per_second']:,.0f} |"
        )
    return "\n".join(lines)


def print_bench(sizes: str, recipes: str | None, rounds: int, as_json: bool, say: Callable[[str], None]) -> None:
    """The verb: comma-separated sizes; recipes separated by spaces, the default list if absent."""
    rows = bench_precision(sizes.split(","), recipes.split() if recipes else RECIPES, say, rounds)
    print(dumps(rows) if as_json else as_table(rows))
