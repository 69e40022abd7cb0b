"""What came of a campaign, as a table of (kind × moment)."""

from collections import Counter

from .campaign import History
from .jobs import MOMENTS
from .strikes import KINDS


def table_of(histories: list[History], planned: int, options: str) -> str:
    """A line a moment, a column a kind: faults that struck; then the same by command; then what was lost, and every
    problem with how to see it again."""
    struck = [(history.job, fault.moment, fault.kind) for history in histories for fault, _ in _struck(history)]
    lines = _crossed("moment", MOMENTS, Counter((moment, kind) for _, moment, kind in struck))
    lines += ["", *_crossed("command", sorted({job for job, _, _ in struck}), Counter((j, k) for j, _, k in struck))]
    runs, steps = sum(h.lost_runs for h in histories), sum(h.lost_steps for h in histories)
    unequal = sum(history.unequal for history in histories)
    losses = "all losses bitwise equal" if not unequal else f"{unequal} results NOT equal"
    problems = [(history, problem) for history in histories for problem in history.problems]
    lines += [
        "",
        f"{len(struck)} of {planned} faults in {len(histories)} histories: {runs} lost runs, {steps} lost steps beyond "
        f"the last checkpoint, {losses}; {len(problems)} problems; "
        f"{sum(history.wall_seconds for history in histories) / max(1, len(struck)):.1f} s a fault",
    ]
    for history, problem in problems:
        lines.append(f"python -m tests.faults {options} --history {history.number}  ({history.job}): {problem}")
    return "\n".join(lines)


def _struck(history: History) -> list[tuple]:  # type: ignore[type-arg]
    return list(zip(history.faults, history.struck, strict=False))


def _crossed(name: str, rows: list[str], counts: Counter[tuple[str, str]]) -> list[str]:
    """Counts by row and kind, with sums."""
    wide = max(map(len, [name, *rows, "all"]))
    lines = [f"{name:{wide}} " + " ".join(f"{kind:>{max(6, len(kind))}}" for kind in (*KINDS, "all"))]
    for row in [*rows, "all"]:
        of = [sum(counts[r, kind] for r in (rows if row == "all" else [row])) for kind in KINDS]
        shown = [*of, sum(of)]
        if any(of):
            cells = " ".join(f"{n:>{max(6, len(kind))}}" for n, kind in zip(shown, (*KINDS, "all"), strict=True))
            lines.append(f"{row:{wide}} {cells}")
    return lines
