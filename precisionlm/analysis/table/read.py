"""Turn a runs table into a law's columns. Every row is used or counted with the reason why not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from precisionlm.analysis.laws.base import Law, Symbol
from precisionlm.analysis.table import units
from precisionlm.analysis.table.cells import Columns, numbers, texts
from precisionlm.analysis.table.derive import intermediate, paired_gaps
from precisionlm.analysis.table.exclusions import Exclusions
from precisionlm.analysis.table.files import is_table, read
from precisionlm.analysis.table.precision import after_training, mixture, scale_elements
from precisionlm.analysis.table.symbols import SPELLED, name_it, resolve
from precisionlm.errors import UserError
from precisionlm.expressions import evaluate, truth

__all__ = ["Table", "is_table", "on_fewer_tokens", "prepare", "read", "where_mask"]

CHANNEL_LOG2_BLOCK = 13.1567  # Sun et al. 2025, arXiv:2501.02423: a scale per channel counts as log2 B = 13.1567


@dataclass(frozen=True)
class Table:
    """The rows a law is fitted on.

    columns: symbol -> (n,) float64. observed: (n,) loss or gap in nats/token. error: (n,) its standard error or NaN.
    rows: positions in the frame that was read. cell: (n,) number of the row's (N, D) pair. cluster: (n,) number of the
    row's run. excluded: reason -> count. warnings: doubts in plain words. frame: the used rows as read, with columns
    that were computed. names: symbol -> column of `frame`.
    """

    law: Law
    columns: dict[str, np.ndarray]
    observed: np.ndarray
    error: np.ndarray
    rows: np.ndarray
    cell: np.ndarray
    cluster: np.ndarray
    excluded: dict[str, int]
    warnings: tuple[str, ...]
    frame: pd.DataFrame = field(repr=False, compare=False)
    names: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def target(self) -> str:
        """The column that the law predicts."""
        return self.names["gap" if self.law.is_gap else "loss"]

    def take(self, index: np.ndarray, reason: str = "") -> "Table":
        """The rows of a boolean mask or of positions; those left out are counted under `reason`."""
        keep = np.arange(len(self))[index]
        excluded = dict(self.excluded)
        if reason and len(keep) < len(self):
            excluded[reason] = excluded.get(reason, 0) + len(self) - len(keep)
        return replace(
            self, columns={k: v[keep] for k, v in self.columns.items()}, observed=self.observed[keep],
            error=self.error[keep], rows=self.rows[keep], cell=self.cell[keep], cluster=self.cluster[keep],
            excluded=excluded, frame=self.frame.iloc[keep],
        )  # fmt: skip


def where_mask(frame: pd.DataFrame, where: str) -> np.ndarray:
    """(rows,) bool: where a boolean column, or an expression over columns such as `w_bits >= 4`, is true."""
    columns = Columns(frame)
    values = columns[where] if where in columns else evaluate(where, columns, "--where", SPELLED)
    mask = truth(values)
    if mask is None:
        raise UserError(f"--where '{where}' gives no true or false per row")
    return np.broadcast_to(mask, (len(frame),))


def prepare(
    law: Law,
    frame: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    drop_duplicates: bool = False,
) -> Table:
    """Validate a runs table and select the rows that a law can use.

    columns: see `symbols.computed`. drop_duplicates: leave out rows that repeat an earlier one; they are kept
    otherwise, with a warning. Raises UserError for missing columns, units that cannot be counts, a mixed convention of
    N, or no usable row; each message names rows and columns.
    """
    given = frame
    frame, names = resolve(law, frame, columns)
    target = names["gap" if law.is_gap else "loss"]
    # Damage done after training cannot be read off a table that says nothing of it.
    optional = {s.name for s in law.symbols if s.default is not None and not (law.is_gap and s.kind == "ptq_bits")}
    needed = {s.name: names[s.name] for s in law.symbols if s.name not in optional} | {"loss": target}
    missing = {name: column for name, column in needed.items() if column not in frame.columns}
    if missing:
        lacking = ", ".join(f"{column} ({name})" for name, column in missing.items())
        raise UserError(f"law {law.name} needs column {lacking}; {name_it(given, next(iter(missing)), columns or {})}")
    out = Exclusions(len(frame))
    _exclude_rows(law, frame, where, out)
    values: dict[str, np.ndarray] = {}
    for symbol in law.symbols:
        column = names[symbol.name]
        if column not in frame.columns:
            assert symbol.default is not None
            values[symbol.name] = np.full(len(frame), symbol.default)
        else:
            remedy = f"mixed precision, of which --columns {symbol.name}=COLUMN may name a mean"
            out.mark(mixture(frame, column), f"{column} describes only a share of its values: {remedy}")
            values[symbol.name] = _read_symbol(symbol, column, frame, out)
    observed = _read_symbol(law.target, target, frame, out)
    for symbol in law.symbols if law.is_gap else ():
        none = {"ptq_bits": np.inf, "group": 1.0}.get(symbol.kind)
        if none is not None:
            out.mark(values[symbol.name] == none, f"{names[symbol.name]} says that nothing is quantized: no gap")
    for restriction in law.restrictions:
        out.mark(restriction.excludes(values), restriction.reason)
    repeated = _repeated(frame, target, out.keep)
    if drop_duplicates:
        out.mark(repeated, "duplicate of an earlier row")
    keep = out.keep
    if not keep.any():
        counted = "; ".join(f"{count} x {reason}" for reason, count in out.counts().items())
        raise UserError(f"law {law.name}: no row of {len(frame)} can be used: {counted}")
    warnings = units.check(names, frame, keep, observed) + units.check_size_convention(names, frame, keep)
    if repeated.any() and not drop_duplicates:
        warnings.append(f"{int(repeated.sum())} rows repeat an earlier one exactly and count as runs of their own; "
                        "--drop-duplicates leaves them out")  # fmt: skip
    used = frame if keep.all() else frame[keep]
    table = Table(
        law=law,
        columns={k: v[keep] for k, v in values.items()},
        observed=observed[keep],
        error=_errors(used, target, law.is_gap),
        rows=np.flatnonzero(keep),
        cell=_groups([values[k][keep] for k in ("N", "D") if k in values], int(keep.sum())),
        cluster=_clusters(used),
        excluded=out.counts(),
        warnings=tuple(warnings),
        frame=used,
        names=names,
    )
    return replace(table, warnings=(*table.warnings, *_too_few_cells(table)))


def _exclude_rows(law: Law, frame: pd.DataFrame, where: str | None, out: Exclusions) -> None:
    """Leave out rows before their values are looked at."""
    if where:
        out.mark(~where_mask(frame, where), f"--where {where} is not true")
    if "status" in frame.columns:
        status = texts(frame, "status")
        for state in sorted({str(s) for s in set(status) - {"done", None}}):
            out.mark(status == state, f"status is {state}")
        out.mark(np.array([s is None for s in status], bool), "status is missing")
    reads_ptq = any(s.kind == "ptq_bits" for s in law.symbols)
    if "evaluation" in frame.columns:
        evaluation = texts(frame, "evaluation")
        for other in ("bf16", "recipe"):
            out.mark(evaluation == other, f"evaluation is {other}: not at the precision trained at")
        out.mark(evaluation == "checkpoint", "evaluation is checkpoint: the run goes on after it")
        if not law.is_gap:
            out.mark(intermediate(frame), f"of an intermediate checkpoint: law {law.name} is of whole runs")
        trained = (evaluation == "trained") & out.keep
        out.mark(on_fewer_tokens(frame, trained), "the same run was evaluated on more tokens")
        if not reads_ptq:
            out.mark(evaluation == "ptq", f"evaluation is ptq: law {law.name} has no post-training term")
    if not reads_ptq and "ptq_bits" in frame.columns:
        out.mark(~np.isposinf(after_training(frame)), f"quantized after training: law {law.name} has no term for it")


def on_fewer_tokens(frame: pd.DataFrame, trained: np.ndarray) -> np.ndarray:
    """(rows,) whether another of the rows `trained` evaluates the same run on more tokens: a run counts once."""
    if not {"run_id", "val_tokens"} <= set(frame.columns):
        return np.zeros(len(frame), bool)
    tokens = pd.Series(np.where(trained, numbers(frame, "val_tokens"), np.nan))
    return (tokens < tokens.groupby(frame["run_id"].to_numpy()).transform("max")).to_numpy()


def _read_symbol(symbol: Symbol, column: str, frame: pd.DataFrame, out: Exclusions) -> np.ndarray:
    """(rows,) float64 values; leaves out rows whose value is missing or one that the symbol cannot take."""
    if symbol.kind == "category":
        text = texts(frame, column)
        codes = {level: float(i) for i, level in enumerate(symbol.levels)}
        out.mark(np.array([t is None for t in text], bool), f"{column} is missing")
        values = pd.Series(text).map(codes).to_numpy(float)
        out.mark(np.isnan(values), f"{column} is not one of {', '.join(symbol.levels)}")
        return values
    if symbol.kind in ("block", "group"):
        return _read_elements(symbol.kind, column, frame, out)
    values = after_training(frame, column) if symbol.kind == "ptq_bits" else numbers(frame, column)
    out.mark(np.isnan(values), f"{column} is missing")
    if symbol.kind != "ptq_bits":
        out.mark(np.isinf(values), f"{column} is not finite")
    low = -1e-12 if symbol.kind == "field" else 0.0
    out.mark(values <= low, f"{column} is {'negative' if symbol.kind == 'field' else 'not positive'}")
    usable = (values > low) & (np.isfinite(values) | (symbol.kind == "ptq_bits"))
    return np.where(usable, values, 1.0)


def _read_elements(kind: str, column: str, frame: pd.DataFrame, out: Exclusions) -> np.ndarray:
    """Elements that share a scale: themselves (`group`) or as their logarithm to base 2 (`block`)."""
    values, idle = scale_elements(frame, column)
    out.mark(np.isnan(values), f"{column} is missing, and nothing says that the row is unquantized")
    out.mark(idle, f"{column} is of an unquantized operand while others are quantized: name theirs with --columns")
    out.mark(values < 1, f"{column} is below 1: 1 for no scale, inf for one a channel")
    values = np.where(values >= 1, values, 1.0)
    if kind == "block":
        return np.where(np.isinf(values), CHANNEL_LOG2_BLOCK, np.log2(np.where(np.isinf(values), 1.0, values)))
    width = numbers(frame, "width") if "width" in frame.columns else np.full(len(frame), np.nan)
    values = np.where(np.isinf(values), width, values)
    out.mark(np.isnan(values), f"{column} is inf (one scale per channel) and there is no column width")
    return np.where(np.isnan(values), 1.0, values)


def _repeated(frame: pd.DataFrame, target: str, keep: np.ndarray) -> np.ndarray:
    """(rows,) whether a kept row equals an earlier kept one: in all that was read, or as the same evaluation of a run
    with the same result. The number that pandas writes in front of rows is no part of them."""
    identity = [c for c in ("run_id", "evaluation", "ptq_method", "ptq_bits", "ptq_group") if c in frame.columns]
    everything = [c for c in frame.columns if not str(c).startswith("Unnamed:")]
    identity = [*identity, target] if "run_id" in identity else everything
    repeated = np.zeros(len(frame), bool)
    repeated[keep] = frame.loc[keep, identity].duplicated().to_numpy()
    return repeated


def _errors(frame: pd.DataFrame, target: str, is_gap: bool) -> np.ndarray:
    """(rows,) standard error of the loss or gap, NaN where unknown."""
    column = target + "_se"
    return numbers(frame, column) if column in frame.columns else (
        paired_gaps(frame, "delta_se") if is_gap and target == "gap" else np.full(len(frame), np.nan))  # fmt: skip


def _groups(keys: list[np.ndarray], size: int) -> np.ndarray:
    """(rows,) number of each row's combination of values, in their order."""
    if not keys:
        return np.zeros(size, int)
    code = np.zeros(size, np.int64)
    for values in keys:
        found, position = np.unique(values, return_inverse=True)
        code = code * len(found) + position
    return np.unique(code, return_inverse=True)[1].reshape(-1)


def _clusters(frame: pd.DataFrame) -> np.ndarray:
    """Rows of one trained run belong together: its post-training rows share its weights."""
    if "run_id" in frame.columns and frame["run_id"].notna().all():
        return pd.factorize(frame["run_id"])[0]
    return np.arange(len(frame))


def _too_few_cells(table: Table) -> list[str]:
    if "N" not in table.columns or "D" not in table.columns:
        return []
    sizes, budgets = len(np.unique(table.columns["N"])), len(np.unique(table.columns["D"]))
    cells = int(table.cell.max()) + 1
    if cells == 1:
        return ["all rows share one (N, D): no exponent of N or D can be told from them"]
    few = [f"{n} {what}" for n, what in ((sizes, "model sizes"), (budgets, "token budgets")) if n < 3]
    return [f"only {' and '.join(few)}: exponents and E cannot be told apart"] if few else []
