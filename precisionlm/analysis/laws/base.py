"""What a scaling law is: parameters, the columns it reads, a formula, published constants and their source."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from precisionlm.analysis.table.derive import gaps

if TYPE_CHECKING:
    import jax

Formula = Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any]
Fields = tuple[float, float] | None  # exponent and mantissa bits of a format; None where only its width is known

INF = float("inf")


@dataclass(frozen=True)
class Parameter:
    """One constant of a law.

    `start`: range of plausible values, that starting values are spread over (natural units); `begin`: where a user has
    them begin instead. `bounds`: values a fit may reach; a fit that
    ends on one says so. `log`: searched as its logarithm. `linear`: the law is linear in it, so that starts are
    projected onto the data instead of being spread. `held`: the value a fit keeps because the data cannot tell it
    apart from another constant (None: fitted).
    """

    name: str
    start: tuple[float, float] = field(default=(0.1, 1.0), compare=False)
    bounds: tuple[float, float] = field(default=(0.0, INF), compare=False)
    log: bool = False
    linear: bool = field(default=False, compare=False)
    held: float | None = field(default=None, compare=False)
    meaning: str = field(default="", compare=False)
    begin: tuple[float, float] | None = field(default=None, compare=False)

    @property
    def projected(self) -> bool:
        """Whether starting values are computed from the data rather than spread."""
        return self.linear and self.held is None and self.begin is None

    def to_search(self, value: ArrayLike) -> np.ndarray:
        """Natural value -> search coordinate."""
        return np.log(value) if self.log else np.asarray(value, float)

    def search_bounds(self) -> tuple[float, float]:
        """Bounds in the search coordinate."""
        low, high = self.bounds
        if not self.log:
            return low, high
        return (float(np.log(low)) if low > 0 else -80.0), (float(np.log(high)) if np.isfinite(high) else 80.0)


def coefficient(name: str, meaning: str = "") -> Parameter:
    """A positive factor of any size that the law is linear in."""
    return Parameter(name, bounds=(0.0, INF), log=True, linear=True, meaning=meaning)


def exponent(name: str, start: tuple[float, float] = (0.05, 1.5), meaning: str = "") -> Parameter:
    """A non-negative power: more of it never hurts."""
    return Parameter(name, start=start, bounds=(0.0, 20.0), meaning=meaning)


def signed_exponent(name: str, start: tuple[float, float], meaning: str = "") -> Parameter:
    """A power whose sign the runs decide: formats and gaps have been measured on either side of 0."""
    return Parameter(name, start=start, bounds=(-20.0, 20.0), meaning=meaning)


@dataclass(frozen=True)
class Symbol:
    """A letter of the formula and the column of the runs table that it reads by default.

    Kinds: `count` (positive), `bits` (positive), `ptq_bits` (missing means: not quantized, read as inf), `field`
    (exponent or mantissa bits, or a share; may be 0), `block` (elements per scale, read as log2; 0 for no scale),
    `group` (elements per scale, 1 for no scale), `category` (text, read as the position in `levels`), `positive`. Of
    every kind but `ptq_bits` a missing value leaves its row out, counted: it never stands for a value.
    `derive(frame, names)` computes the column (rows,) from others of the table where it is absent; `sources` are the
    symbols that this reads, whose columns a user may rename too.
    """

    name: str
    column: str
    kind: str = "count"
    meaning: str = ""
    default: float | None = None
    levels: tuple[str, ...] = ()
    derive: Callable[[Any, Mapping[str, str]], Any] | None = field(default=None, compare=False)
    sources: tuple["Symbol", ...] = field(default=(), compare=False)


N = Symbol("N", "N_params", meaning="non-embedding parameters (count)")
D = Symbol("D", "D_tokens", meaning="training tokens (count)")
LOSS = Symbol("loss", "val_loss", "positive", "cross entropy (nats/token)")
GAP = Symbol("gap", "gap", "positive", "loss above the same run without quantization (nats/token)", derive=gaps,
             sources=(LOSS,))  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Constants as a paper prints them."""

    constants: tuple[tuple[str, float], ...]
    source: str
    note: str = ""

    def as_dict(self) -> dict[str, float]:
        """Name -> value."""
        return dict(self.constants)


def published(source: str, note: str = "", **constants: float) -> Published:
    """Constants given by name."""
    return Published(tuple(constants.items()), source, note)


@dataclass(frozen=True)
class Stage:
    """One step of a staged fit: which parameters are free, on which rows (a condition on the law's symbols)."""

    free: tuple[str, ...]
    rows: str
    where: Callable[[Mapping[str, np.ndarray]], np.ndarray] = field(compare=False)


@dataclass(frozen=True)
class Restriction:
    """Rows a law says nothing about: `excludes(columns)` marks them (bool per row), `reason` says why."""

    reason: str
    excludes: Callable[[Mapping[str, np.ndarray]], np.ndarray] = field(compare=False)


Columns = Mapping[str, np.ndarray]
References = Mapping[str, str]


@dataclass(frozen=True)
class Law:
    """A scaling law. Hashable: two laws with one formula share one compiled fit, whatever bounds or values they have.

    `formula(params, columns, xp)` maps name -> scalar and symbol -> array of rows to the predicted loss (or gap) per
    row, with the array functions of `xp`: jax.numpy inside fits, numpy for predictions, which then compile nothing.
    Beside every count X and every parameter X searched as its logarithm stands `log_X`. It returns +inf where the law
    is undefined; `undefined` says in words where that is.

    Hooks for what only this law knows of its precision; `laws.precision` asks them and has the answers that hold for
    most laws. `label(columns)`: the format at a point (symbol -> number) in words. `at_bits(params, bits, fields)`: the
    columns at a width, or at the format of these exponent and mantissa bits. `kept_share(p, c)`: N_eff/N of
    what the formula reads, in NumPy, NaN where it is undefined.
    `arms`: what differs between the runs of one (N, D), symbol -> number: grids are simulated with them.
    `figures`: module whose `draw(law, params)`, and `of_runs(frame, analysis)` if it has one, draw what the law's paper
    shows. `without_offsets`: name of the same law without the offsets that decide where its best width lies.

    `adapt(columns, references)`: the member of the law's family that these
    rows can determine. columns: symbol -> (rows,) numbers, or text for a category, of those that the table has;
    references: category symbol -> the level that a user chose to measure the others by. Only the member, which has none
    of its own then, is fitted: the family has constants that no rows may tell.
    """

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    symbols: tuple[Symbol, ...]
    formula: Formula
    source: str
    target: Symbol = LOSS
    published: tuple[Published, ...] = field(default=(), compare=False)
    undefined: str = field(default="nowhere", compare=False)
    label: Callable[[Mapping[str, Any]], str] | None = field(default=None, compare=False)
    at_bits: Callable[[Mapping[str, Any], Any, Fields], dict[str, Any]] | None = field(default=None, compare=False)
    kept_share: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = field(default=None, compare=False)
    arms: tuple[Mapping[str, float], ...] = field(default=(), compare=False)
    figures: str = field(default="", compare=False)
    without_offsets: str = field(default="", compare=False)
    stages: tuple[Stage, ...] = field(default=(), compare=False)
    restrictions: tuple[Restriction, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    adapt: Callable[[Columns, References], "Law"] | None = field(default=None, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names, in order."""
        return tuple(p.name for p in self.parameters)

    @property
    def is_gap(self) -> bool:
        """True if the law predicts the loss gap to the unquantized run rather than the loss."""
        return self.target.name == GAP.name

    @property
    def readable(self) -> tuple[Symbol, ...]:
        """Every symbol whose column a user may name: the formula's, the target and what they are derived from."""
        own = (*self.symbols, self.target)
        return (*own, *(source for symbol in own for source in symbol.sources if source not in own))

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name."""
        return self.parameters[self.names.index(name)]

    def hold(self, **values: float) -> "Law":
        """The same law with these parameters held at these values in a fit."""
        return replace(
            self, parameters=tuple(replace(p, held=values[p.name]) if p.name in values else p for p in self.parameters)
        )

    def complete(self, columns: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        """Symbol -> float64 array (rows,), missing symbols at their default. Raises KeyError for one without."""
        given = {s.name: columns.get(s.name, s.default) for s in self.symbols}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise KeyError(f"law {self.name} needs {', '.join(missing)}")
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, float)) for v in given.values()))
        return self.with_logs({name: np.ascontiguousarray(a) for name, a in zip(given, arrays, strict=True)})

    def with_logs(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns and `log_X` of every count X: taken once, not in every step of a fit."""
        return {**columns, **{f"log_{s.name}": np.log(columns[s.name]) for s in self.symbols if s.kind == "count"}}

    def predict(self, params: Mapping[str, float], columns: Mapping[str, ArrayLike]) -> np.ndarray:
        """Predicted loss (nats/token), float64, one value a row; +inf where the law is undefined."""
        return self.evaluate([float(params[k]) for k in self.names], self.complete(columns))

    def evaluate(self, values: Sequence[Any], columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The formula in NumPy for constants in order: scalars, or (S, 1) arrays for S sets of them at once."""
        with np.errstate(all="ignore"):
            return np.asarray(self.formula(self.constants(values), columns, np))

    def constants(self, values: Sequence[Any]) -> dict[str, Any]:
        """Natural values in order -> what `formula` reads: `X`, and `log_X` for every X searched as its logarithm."""
        named = dict(zip(self.names, values, strict=True))
        return named | {f"log_{p.name}": np.log(named[p.name]) for p in self.parameters if p.log}

    def constants_at(self, point: "jax.Array") -> dict[str, Any]:
        """The same from a point (p,) in search space, where the logarithms are the coordinates."""
        import jax.numpy as jnp  # here: a question about a law waits for no JAX

        named: dict[str, Any] = {}
        for i, p in enumerate(self.parameters):
            named |= {p.name: jnp.exp(point[i]), f"log_{p.name}": point[i]} if p.log else {p.name: point[i]}
        return named
