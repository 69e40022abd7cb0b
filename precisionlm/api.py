"""The Python API: what `precisionlm fit`, `compare` and `plan` do, as functions. The command line calls these."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from pandas import DataFrame

from precisionlm.analysis.decisions.plan import Options, Plan
from precisionlm.analysis.decisions.plan import plan as _plan
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.compare import compare as _compare
from precisionlm.analysis.fitting.comparison import Comparison
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.analysis.fitting.words import LEAST_ROWS
from precisionlm.analysis.table.files import read
from precisionlm.errors import check_count

__all__ = ["Analysis", "Comparison", "Plan", "Runs", "compare", "fit", "plan"]

Runs: TypeAlias = str | Path | DataFrame
"""A runs table: a data frame, a file, or the name of a published one, such as study-2026."""
Ends: TypeAlias = float | tuple[float, float]
"""A number, or the lower and upper end of a range."""


def fit(
    runs: Runs,
    law: str,
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    drop_duplicates: bool = False,
    objective: str = "huber:1e-3",
    starts: int = 500,
    bootstrap: int = 0,
    over: str = "auto",
    weights: bool = False,
    staged: bool = False,
    fix: Mapping[str, float] | None = None,
    bound: Mapping[str, tuple[float, float]] | None = None,
    start: Mapping[str, Ends] | None = None,
    reference: str = "",
) -> Analysis:
    """Fit a law to a runs table: constants with 95 % intervals, a status, and the rows they rest on.

    law: its name, such as chinchilla or kumar (docs/laws.md), or FILE.py:NAME. columns: what the law's symbols read,
    where the table has other names: a column or an expression over columns. where: rows to use, a boolean column or an
    expression. drop_duplicates: leave out rows that repeat an earlier one. objective: huber:DELTA or squares of log
    residuals, relative or nats. starts: starting points. bootstrap: refits for intervals; 0 for linearised ones. over:
    rows that share their noise: auto, row, run, seed or cell. weights: by the loss's standard error. staged: the base
    on unquantized runs first. fix, bound, start: values, bounds and starting ranges of constants. reference: the level
    that the others are measured against, for laws with constants of each. Raises UserError.
    """
    check_count("--starts", starts, 1, 1_000_000)
    check_count("--bootstrap", bootstrap, 0, 1_000_000)
    found = analyze(
        _frame(runs), law, columns, where, parse_objective(objective), starts, bootstrap, over,
        choices=choices(fix, bound, start, reference), staged=staged, weighted=weights,
        drop_duplicates=drop_duplicates,
    )  # fmt: skip
    return found if isinstance(runs, DataFrame) else replace(found, source=str(runs))


def compare(
    runs: Runs,
    laws: Iterable[str],
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    drop_duplicates: bool = False,
    objective: str = "huber:1e-3",
    starts: int = 200,
    folds: int = 10,
    held_out: int = LEAST_ROWS,
    fix: Mapping[str, float] | None = None,
    bound: Mapping[str, tuple[float, float]] | None = None,
    start: Mapping[str, Ends] | None = None,
    reference: str = "",
) -> Comparison:
    """Compare laws on the same rows by their errors on rows left out, the best first.

    laws: two names or more. folds: over (N, D) pairs. held_out: rows to leave out at the largest N and D at least; the
    next largest are added. The other options are those of `fit`; a law takes what concerns it. Raises UserError.
    """
    check_count("--starts", starts, 1, 1_000_000)
    return _compare(
        _frame(runs), tuple(laws), columns, where, parse_objective(objective), starts, folds,
        choices=choices(fix, bound, start, reference), least=held_out, drop_duplicates=drop_duplicates,
    )  # fmt: skip


def plan(
    law: str | Analysis,
    *,
    compute: float | None = None,
    size: float | None = None,
    tokens: float | None = None,
    bits: float | None = None,
    format: str = "",
    block: float | None = None,
    at: Mapping[str, str | float] | None = None,
    cost: str = "linear",
    inference_tokens: float = 0.0,
    offsets: bool = True,
    critical: bool = False,
    iso_loss: float | None = None,
    next: int | None = None,
    quantity: str = "P",
) -> Plan:
    """Decide, by your own fit with intervals, or by the constants that a law's paper prints.

    law: what `fit` returned (with bootstrap=500, as the command line has it), or a name. One question is asked:

    - compute: size, tokens and bits of least loss for this many 16-bit-equivalent FLOPs, (6 N D + 2 N T) P/16;
    - size and tokens: the loss there;
    - critical: the tokens beyond which more training hurts a model of `size`;
    - iso_loss: sizes that reach this loss with `tokens`;
    - next: which runs to add to those of the fit, that many, to narrow `quantity`: a constant, or P, the best bits.

    size, tokens, bits and format (e4m3, fp4, int4, mxfp4, bf16, or a level of the law's) are kept where they are given.
    block: elements that share a scale. at: values of the law's other symbols. cost: linear, linear:OFFSET, or a file
    with columns bits and seconds. inference_tokens: to be served later, T. offsets: False for the law without offsets
    of its factors. Raises UserError.
    """
    options = Options(
        compute, size, tokens, bits, format, block, at or {}, cost, inference_tokens, offsets, critical, iso_loss,
        next, quantity,
    )  # fmt: skip
    return _plan(law, options)


def choices(
    fix: Mapping[str, float] | None,
    bound: Mapping[str, tuple[float, float]] | None,
    start: Mapping[str, Ends] | None,
    reference: str,
) -> Choices:
    """What a user decides about a law's constants; a starting range that is one number begins there."""
    begin = {name: (ends, ends) if isinstance(ends, int | float) else ends for name, ends in (start or {}).items()}
    return Choices(bounds=bound or {}, starts=begin, fixed=fix or {}, reference=reference)


def _frame(runs: Runs) -> DataFrame:
    return runs if isinstance(runs, DataFrame) else read(runs)
