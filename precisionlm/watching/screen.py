"""Runs on a terminal: one with its loss curve, several as a table with a line each."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from precisionlm.progress import clock
from precisionlm.terminal import harmless
from precisionlm.watching.follow import Record
from precisionlm.watching.reading import Reading
from precisionlm.watching.spikes import Spike

_COLORS = {"running": "green", "done": "cyan", "diverged": "red", "failed": "red", "begun": "yellow"}
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 72, 8  # of the loss curve, in characters
_SHOWN = 5  # latest spikes of each kind


def screen(found: Sequence[tuple[Reading, Record]], left_out: Sequence[str] = ()) -> RenderableType:
    """One run in detail, or a table of several; then what could not be read."""
    if not found:
        body: RenderableType = Text("no run yet")
    elif len(found) == 1:
        body = _one(*found[0])
    else:
        body = _table([reading for reading, _ in found])
    return Group(body, *(_text(f"left out: {line}", "yellow") for line in left_out))


def _table(found: Sequence[Reading]) -> Table:
    table = Table(header_style="bold", pad_edge=False, box=None)
    for title in ("run", "state", "recipe"):
        table.add_column(title, no_wrap=title != "recipe")
    for title in ("step", "loss", "val", "tokens/s", "MFU", "goodput", "left", "checkpoint"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("marks")
    for r in found:
        table.add_row(
            r.run_id,
            _state(r),
            _text(r.recipe),
            f"{r.step:,}/{r.steps:,}",
            _number(r.smoothed, ".4f"),
            _number(r.val_loss, ".4f"),
            _number(r.tokens_per_second, ",.0f"),
            _number(r.mfu, ".0%"),
            _number(r.goodput, ".0%"),
            _time(r.seconds_left),
            _number(r.checkpoint_step, ",d"),
            Text(", ".join(_marks(r)), style="red"),
        )
    return table


def _one(r: Reading, record: Record) -> Panel:
    grid = Table.grid(padding=(0, 2))
    for _ in range(2):
        grid.add_column(style="bold")
        grid.add_column()
    val = f"{_number(r.val_loss, '.4f')} at step {r.val_step:,}" if r.val_step is not None else "–"
    saved = f"step {r.checkpoint_step:,}, {_time(r.checkpoint_age)} ago" if r.checkpoint_step is not None else "–"
    worst = "–"
    if r.worst_site is not None:
        worst = f"{_number(r.worst_error, '.2g')} at {r.worst_site} (first {_number(r.worst_error_at_first, '.2g')})"
    grid.add_row("state", _state(r), "recipe", _text(r.recipe))
    grid.add_row("step", f"{r.step:,} of {r.steps:,} ({r.step / r.steps:.0%})", "time left", _time(r.seconds_left))
    grid.add_row(
        "loss", f"{_number(r.loss, '.4f')}, mean of the last 100 {_number(r.smoothed, '.4f')}", "val loss", val
    )
    grid.add_row("tokens/s", _number(r.tokens_per_second, ",.0f"), "MFU", _number(r.mfu, ".1%"))
    grid.add_row("goodput", _number(r.goodput, ".1%"), "checkpoint", saved)
    grid.add_row("device", _text(r.device or "–"), "starts", str(r.starts))
    grid.add_row("worst quantization error", _text(worst), "skipped steps", f"{r.skipped_steps:,}")
    parts: list[RenderableType] = [grid, Text()]
    if len(record.losses) > 1:
        parts += [_curve(record, r.loss_spikes), Text()]
    parts += [Text(line, style="red") for line in _told("loss spike", r.loss_spikes)]
    parts += [Text(line, style="magenta") for line in _told("gradient norm", r.gradient_outliers)]
    if not (r.loss_spikes or r.gradient_outliers):
        parts.append(Text("no loss spikes, no gradient-norm outliers", style="dim"))
    title = _text(f"{r.run_id} {r.name}".strip())
    return Panel(Group(*parts), title=title, title_align="left")


def _state(r: Reading) -> Text:
    text = Text(r.state, style=_COLORS.get(r.state, ""))
    if r.is_quiet:
        text.append(f", quiet for {_time(r.quiet_seconds)}", style="yellow")
    if r.reason:
        text.append_text(_text(f": {r.reason}"))
    return text


def _marks(r: Reading) -> list[str]:
    """In a few words."""
    words = [(r.loss_spikes, "spike"), (r.gradient_outliers, "gradient outlier")]
    marks = [f"{len(s)} {what}{'s' * (len(s) > 1)} (last {s[-1].last:,})" for s, what in words if s]
    return marks + ([f"{r.skipped_steps:,} skipped"] if r.skipped_steps else [])


def _told(what: str, spikes: Sequence[Spike]) -> list[str]:
    lines = [
        f"{what} at step {s.first:,}"
        + (f"–{s.last:,}" if s.last > s.first else "")
        + f": {s.peak:.4g}, usual {s.usual:.4g}"
        for s in spikes[-_SHOWN:]
    ]
    earlier = len(spikes) - len(lines)
    return [f"{what}: {earlier} earlier", *lines] if earlier else lines


def _curve(record: Record, spikes: Sequence[Spike]) -> Text:
    """Training loss over steps, the largest of each column, clipped above; columns with a spike are red."""
    steps, losses = np.asarray(record.steps), np.asarray(record.losses)
    finite = np.isfinite(losses)
    steps, losses = steps[finite], losses[finite]
    if len(losses) < 2:
        return Text()
    columns = min(_WIDTH, len(losses))
    parts = np.array_split(np.arange(len(losses)), columns)
    tops = np.array([losses[part].max() for part in parts])
    low, high = float(losses.min()), float(np.quantile(tops, 0.9))
    eighths = np.clip((tops - low) / max(high - low, 1e-9), 0, 1) * 8 * _HEIGHT
    red = [any(s.first <= steps[part[-1]] and s.last >= steps[part[0]] for s in spikes) for part in parts]
    text = Text()
    for row in reversed(range(_HEIGHT)):
        label = high if row == _HEIGHT - 1 else low if row == 0 else math.nan
        text.append(f"{label:8.3f} " if math.isfinite(label) else " " * 9, style="dim")
        bars = [_BARS[int(np.clip(round(value) - 8 * row, 0, 8))] for value in eighths]
        for is_red, group in itertools.groupby(zip(red, bars, strict=True), key=lambda pair: pair[0]):
            text.append("".join(bar for _, bar in group), style="red" if is_red else "green")
        text.append("\n")
    return text.append(f"{'step':>8} {steps[0]:<{columns - 12},}{steps[-1]:>12,}", style="dim")


def _text(words: str, style: str = "") -> Text:
    """Words of a run, which may be anybody's: no markup, nothing that a terminal obeys."""
    return Text(harmless(words), style=style)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else clock(seconds)
