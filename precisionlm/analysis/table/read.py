"""Read a runs table and turn it into a law's columns. Every row is used or counted with the reason why not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from precisionlm.analysis.laws.base import INF, Law, Symbol
from precisionlm.analysis.table.mixture import mixed
from precisionlm.errors import UserError, nearest

CHANNEL_LOG2_BLOCK = 13.1567  # Sun et al. 2025, arXiv:2501.02423: a scale per channel counts as log2 B = 13.1567


@dataclass(frozen=True)
class Table:
    """The rows a law is fitted on.

    columns: symbol -> (n,) float64. observed: (n,) loss or gap in nats/token. error: (n,) its standard error or NaN.
    rows: positions in the frame that was read. cell: (n,) number of the row's (N, D) pair. cluster: (n,) number of the
    row's run. excluded: reason -> count. warnings: doubts in plain words. frame: the used rows as read.
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

    def __len__(self) -> int:
        return len(self.observed)

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


def read(path: str | Path) -> pd.DataFrame:
    """A .csv or .parquet runs table. Raises UserError if it is missing, empty or unreadable."""
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path}: a runs table ends in .csv or .parquet")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        frame = pd.read_csv(path, low_memory=False) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as problem:  # pandas and pyarrow raise many kinds for broken files
        raise UserError(f"{path}: not a readable runs table ({str(problem).splitlines()[0]})") from problem
    if frame.empty:
        raise UserError(f"{path}: the table has no rows")
    return frame.reset_index(drop=True)


def parse_columns(text: str | None) -> dict[str, str]:
    """`N=N_params,loss=val_loss` -> {symbol: column}."""
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    for symbol, equals, column in pairs:
        if not (equals and symbol.strip() and column.strip()):
            raise UserError(f"--columns '{text}': expected SYMBOL=COLUMN pairs such as N=N_params,loss=val_loss")
    return {symbol.strip(): column.strip() for symbol, _, column in pairs}


def where_mask(frame: pd.DataFrame, where: str) -> np.ndarray:
    """Rows for which a boolean column, or an expression over columns such as `w_bits >= 4`, is true."""
    try:
        values = frame[where] if where in frame.columns else frame.eval(where, local_dict={}, global_dict={})
        mask = np.asarray(values)
        if mask.shape == (len(frame),) and mask.dtype == object:
            mask = np.array([str(v).lower() in ("true", "1") for v in mask])
    except Exception as problem:  # the expression is the user's: whatever it raises is about it
        raise UserError(f"--where '{where}': {str(problem).splitlines()[0]}; columns: {_some(frame)}") from problem
    if mask.shape != (len(frame),) or mask.dtype.kind not in "bui":
        raise UserError(f"--where '{where}' gives no true or false per row")
    return mask.astype(bool)


def prepare(law: Law, frame: pd.DataFrame, columns: Mapping[str, str] | None = None, where: str | None = None) -> Table:
    """Validate a runs table and select the rows that a law can use.

    columns: symbol -> column name where it differs from the default. Raises UserError for missing columns, units that
    cannot be counts, a mixed convention of N, or no usable row; each message names rows and columns.
    """
    # A column named as the symbol itself stands in for a missing default column.
    names = {
        s.name: s.name if s.column not in frame.columns and s.name in frame.columns else s.column for s in law.readable
    }
    unknown = [s for s in columns or {} if s not in names]
    for name in unknown:
        raise UserError(f"--columns: law {law.name} has no symbol '{name}'; {nearest(name, list(names))}")
    names.update(columns or {})
    asked = set(columns or {})  # a column that the user names is read, never computed
    read = (*law.symbols, law.target)
    derived = {names[s.name]: s.derive for s in read if s.derive is not None and s.name not in asked}
    frame = frame.assign(**{c: f(frame, names) for c, f in derived.items() if c not in frame.columns})
    needed = {s.name for s in read if s.default is None}
    missing = [f"{n} ({s})" for s, n in names.items() if n not in frame.columns and s in needed | asked]
    if missing:
        raise UserError(f"law {law.name} needs column {', '.join(missing)}; the table has {_some(frame)}")
    target = names[law.target.name]
    reasons = _excluded_rows(law, frame, where, names)
    values: dict[str, np.ndarray] = {}
    for symbol in law.symbols:
        column = names[symbol.name]
        if column not in frame.columns:
            assert symbol.default is not None
            values[symbol.name] = np.full(len(frame), symbol.default)
        else:
            values[symbol.name] = _read_symbol(symbol, column, frame, reasons)
            _mark(reasons, mixed(frame, column), f"{column} describes only part of the values: a mixture of precisions")
    observed = _read_symbol(law.target, target, frame, reasons)
    for restriction in law.restrictions:
        _mark(reasons, restriction.excludes(values), restriction.reason)
    keep = reasons == ""
    if not keep.any():
        raise UserError(f"no row of {len(frame)} can be used: {_counts(reasons)}")
    warnings = [*_check_units(names, frame, keep), *_check_size_convention(names, frame, keep)]
    _check_loss(target, observed, keep)
    error_column = target + "_se"
    error = _numbers(frame, error_column) if error_column in frame.columns else np.full(len(frame), np.nan)
    table = Table(
        law=law,
        columns={k: v[keep] for k, v in values.items()},
        observed=observed[keep],
        error=error[keep],
        rows=np.flatnonzero(keep),
        cell=_groups([values[k][keep] for k in ("N", "D") if k in values], int(keep.sum())),
        cluster=_clusters(frame[keep]),
        excluded=_counts(reasons),
        warnings=tuple(warnings),
        frame=frame[keep],
    )
    return replace(table, warnings=(*table.warnings, *_too_few_cells(table)))


def _excluded_rows(law: Law, frame: pd.DataFrame, where: str | None, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) the reason a row is left out before its values are looked at, or ''."""
    reasons = np.full(len(frame), "", dtype=object)
    if where:
        _mark(reasons, ~where_mask(frame, where), f"--where {where} is not true")
    if "status" in frame.columns:
        status = frame["status"].astype(str)
        for state in sorted(set(status) - {"done"}):
            _mark(reasons, (status == state).to_numpy(), f"status is {state}")
    if "evaluation" in frame.columns:
        evaluation = frame["evaluation"].astype(str).to_numpy()
        for other in ("bf16", "recipe"):
            _mark(reasons, evaluation == other, f"evaluation is {other}: not at the precision trained at")
        _mark(
            reasons,
            _on_fewer_tokens(frame, (evaluation == "trained") & (reasons == "")),
            "the same run was evaluated on more tokens",
        )
        reads_ptq = any(s.kind == "ptq_bits" for s in law.symbols)
        if not reads_ptq:
            _mark(reasons, evaluation == "ptq", f"evaluation is ptq: law {law.name} has no post-training term")
    identity = [c for c in ("run_id", "evaluation", "ptq_method", "ptq_bits", "ptq_group") if c in frame.columns]
    identity = [*identity, names[law.target.name]] if "run_id" in identity else list(frame.columns)
    _mark(reasons, frame.duplicated(identity).to_numpy(), "duplicate of an earlier row")
    return reasons


def _on_fewer_tokens(frame: pd.DataFrame, trained: np.ndarray) -> np.ndarray:
    """(rows,) whether another of the rows `trained` evaluates the same run on more tokens: a run counts once."""
    if not {"run_id", "val_tokens"} <= set(frame.columns):
        return np.zeros(len(frame), bool)
    tokens = pd.Series(np.where(trained, _numbers(frame, "val_tokens"), np.nan))
    return (tokens < tokens.groupby(frame["run_id"].to_numpy()).transform("max")).to_numpy()


def _read_symbol(symbol: Symbol, column: str, frame: pd.DataFrame, reasons: np.ndarray) -> np.ndarray:
    """(rows,) float64 values; marks rows whose value the symbol cannot take."""
    if symbol.kind == "category":
        text = frame[column].map(level).to_numpy()
        codes = {level: float(i) for i, level in enumerate(symbol.levels)}
        values = np.array([codes.get(t, np.nan) for t in text])
        _mark(reasons, np.isnan(values), f"{column} is not one of {', '.join(symbol.levels)}")
        return values
    values = _numbers(frame, column)
    if symbol.kind == "ptq_bits":
        bad = ~np.isnan(values) & ~(values > 0)
        _mark(reasons, bad, f"{column} is not positive")
        return np.where(np.isnan(values), INF, values)
    if symbol.kind == "block":
        values = np.where(np.isnan(values) | (values <= 1), 1.0, values)
        return np.where(np.isinf(values), CHANNEL_LOG2_BLOCK, np.log2(np.where(np.isinf(values), 1.0, values)))
    if symbol.kind == "group":
        width = _numbers(frame, "width") if "width" in frame.columns else np.full(len(frame), np.nan)
        values = np.where(np.isinf(values), width, np.where(np.isnan(values) | (values < 1), 1.0, values))
        _mark(reasons, np.isnan(values), f"{column} is inf (one scale per channel) and there is no column width")
        return np.where(np.isnan(values), 1.0, values)
    _mark(reasons, np.isnan(values), f"{column} is missing")
    _mark(reasons, np.isinf(values), f"{column} is not finite")
    low = -1e-12 if symbol.kind == "field" else 0.0
    _mark(reasons, ~(values > low) & np.isfinite(values), f"{column} is not positive")
    return np.where(np.isfinite(values) & (values > low), values, 1.0)


def level(value: object) -> str:
    """A category as text; 16.0 and '16' are the same level."""
    text = str(value)
    return text[:-2] if text.endswith(".0") else text


def _numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    values = pd.to_numeric(frame[column], errors="coerce")
    wrong = values.isna() & frame[column].notna() & (frame[column].astype(str).str.lower() != "nan")
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(f"column {column}, row {row + 1}: '{frame[column].iloc[row]}' is not a number")
    return values.to_numpy(float)


def _mark(reasons: np.ndarray, rows: np.ndarray, reason: str) -> None:
    """The first reason found for a row stands."""
    reasons[np.asarray(rows, bool) & (reasons == "")] = reason


def _counts(reasons: np.ndarray) -> dict[str, int]:
    marked, counts = np.unique([r for r in reasons if r], return_counts=True)
    return {str(k): int(v) for k, v in zip(marked, counts, strict=True)}


def _some(frame: pd.DataFrame, most: int = 12) -> str:
    names = [str(c) for c in frame.columns]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _rows(index: np.ndarray) -> str:
    shown = ", ".join(str(i + 1) for i in index[:5])
    return f"row{'s' if len(index) > 1 else ''} {shown}" + (f" and {len(index) - 5} more" if len(index) > 5 else "")


def _check_units(names: Mapping[str, str], frame: pd.DataFrame, keep: np.ndarray) -> list[str]:
    """N and D must be counts: a column of 30, 60, 220 is in millions."""
    for symbol, limit, unit in (("N", 1e3, "parameters"), ("D", 1e4, "tokens")):
        if symbol not in names:
            continue
        values = _numbers(frame, names[symbol])
        small = np.flatnonzero(keep & (values < limit))
        if len(small):
            example = values[small[0]]
            raise UserError(
                f"column {names[symbol]}, {_rows(small)}: {example:g} {unit} cannot be a count; give {symbol} in "
                f"{unit} (30e6, not 30)"
            )
    return []


def _check_size_convention(names: Mapping[str, str], frame: pd.DataFrame, keep: np.ndarray) -> list[str]:
    """N is counted without embeddings, in every row alike."""
    if names.get("N") == "N_params" and "N_total" in frame.columns:
        size, total = _numbers(frame, "N_params"), _numbers(frame, "N_total")
        wrong = np.flatnonzero(keep & (size > total))
        if len(wrong):
            raise UserError(f"{_rows(wrong)}: N_params is larger than N_total; N_params counts without embeddings")
        equal = np.flatnonzero(keep & (size == total))
        if 0 < len(equal) < int(keep.sum()):
            raise UserError(
                f"{_rows(equal)}: N_params equals N_total there and not elsewhere: two conventions of N in one table; "
                "count N without embeddings in every row"
            )
    if "model" in frame.columns and "N" in names:
        spread = frame[keep].groupby("model")[names["N"]].nunique()
        mixed = spread[spread > 1]
        if len(mixed):
            return [f"model {mixed.index[0]} has {mixed.iloc[0]} different values of {names['N']}: mixed conventions?"]
    return []


def _check_loss(column: str, observed: np.ndarray, keep: np.ndarray) -> None:
    high = np.flatnonzero(keep & (observed > 20))
    if len(high):
        raise UserError(
            f"column {column}, {_rows(high)}: {observed[high[0]]:g} nats/token is above any vocabulary's uniform loss; "
            "is it a perplexity? give its logarithm"
        )


def _groups(keys: list[np.ndarray], size: int) -> np.ndarray:
    if not keys:
        return np.zeros(size, int)
    return np.unique(np.stack(keys, 1), axis=0, return_inverse=True)[1].reshape(-1)


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
