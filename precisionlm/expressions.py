"""Expressions over columns, such as `w_bits >= 4 and recipe != 'bf16'` or `D_tokens / N_params < 500`.

    expression   or, and, not (also |, &, ~); == != < <= > >=, chained as in 4 <= w_bits < 8; in [..], not in [..];
                 is missing, is not missing; + - * / ** between numbers
    operand      a column, a number, 'text', True, False, inf; names with spaces or commas stand in backticks: `N (M)`

Nothing else: no calls, no attributes, no indices. A missing value equals nothing, is unequal to everything, is neither
less nor greater than anything, and counts as false.
"""

import ast
import keyword
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np

from precisionlm.errors import UserError, nearest

LONGEST = 2000  # characters: far beyond what a person types, far below what the parser can nest
_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`[^`]*`|[&|]""")
_WORDS = {"&": " and ", "|": " or "}  # in pandas they bind as the words do, in Python tighter than a comparison
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.Pow: np.power,
}  # fmt: skip
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_ALLOWED = "allowed are columns, numbers, 'text', comparisons, and/or/not, in [..], is missing, + - * / **"


def evaluate(
    text: str,
    columns: Mapping[str, Any],
    source: str = "expression",
    spelled: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
) -> np.ndarray:
    """The value of an expression for every row: bool, number or text.

    columns: name -> (rows,) array of numbers, booleans or text. spelled: how a text is spelled in these columns; one
    that is compared with them equals what it says there too, however it was written. The result is (rows,), or a scalar
    array () where the expression names no column. Raises UserError, beginning with `source`, for what is no expression
    of this language, an unknown column, operands that do not fit together, or a text that `spelled` refuses.
    """
    return _Evaluation(text, columns, source, spelled).value()


def truth(values: np.ndarray) -> np.ndarray | None:
    """Values as booleans of the same shape: numbers 0 and 1 and the words true and false count, missing is false.
    None if they are no truth values."""
    if values.dtype.kind == "b":
        return values
    lost = missing(values)
    if values.dtype.kind in "iuf":
        return np.where(lost, False, values == 1) if np.isin(values[~lost], (0, 1)).all() else None
    words = np.array([str(v).strip().lower() for v in values[~lost].ravel()], dtype=object)
    if not np.isin(words, ("true", "false", "1", "0", "1.0", "0.0")).all():
        return None
    result = np.zeros(values.shape, bool)
    result[~lost] = np.isin(words, ("true", "1", "1.0"))
    return result


def missing(values: np.ndarray) -> np.ndarray:
    """Where a value is NaN, None or blank text; bool, same shape."""
    if values.dtype.kind in "fc":
        return np.isnan(values)
    if values.dtype.kind in "biu":
        return np.zeros(values.shape, bool)
    return np.array([_lost(v) for v in values.ravel()], bool).reshape(values.shape)


def _lost(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return not (value and value.strip())
    try:
        return not value == value  # noqa: SIM201  NaN is unequal to itself
    except TypeError:  # pandas' NA has no truth value
        return True


def quoted(name: str) -> str:
    """A column's name as it is written in an expression."""
    return name if _plain(name) else f"`{name}`"


def _plain(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


class _Evaluation:
    """One walk over the tree of one expression."""

    def __init__(
        self, text: str, columns: Mapping[str, Any], source: str, spelled: Mapping[str, Callable[[str], str]]
    ) -> None:
        self.text, self.columns, self.source, self.spelled = text, columns, source, spelled
        self.quoted: dict[str, str] = {}  # placeholder -> the name that stood in backticks

    def wrong(self, what: str) -> UserError:
        shown = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        return UserError(f"{self.source} '{shown}': {what}")

    def value(self) -> np.ndarray:
        if len(self.text) > LONGEST:
            raise self.wrong(f"longer than {LONGEST} characters")
        try:
            with warnings.catch_warnings():  # of Python's own syntax, as in 16inf: the walk says what is wrong here
                warnings.simplefilter("ignore")
                tree = ast.parse(_TOKEN.sub(self._token, self.text.strip()), mode="eval")
            with np.errstate(all="ignore"):
                return np.asarray(self.walk(tree.body))
        except SyntaxError as problem:
            raise self.refused("cannot be read") from problem
        except (RecursionError, MemoryError, ValueError, OverflowError) as problem:
            raise self.wrong("cannot be read") from problem  # nested too deeply, a null byte, hundreds of digits

    def _token(self, found: re.Match[str]) -> str:
        token = found[0]
        if token[0] != "`":
            return _WORDS.get(token, token)
        placeholder = f"_quoted_{len(self.quoted)}_"
        self.quoted[placeholder] = token[1:-1]
        return placeholder

    def refused(self, what: str) -> UserError:
        """What is no expression of this language, with what was probably meant."""
        odd = [c for c in self.columns if not _plain(c) and c in self.text and f"`{c}`" not in self.text]
        if odd:
            return self.wrong(f"the column '{odd[0]}' is written in backticks: `{odd[0]}`")
        if re.search(r"(?<![=!<>:])=(?!=)", _TOKEN.sub("", self.text)):
            return self.wrong("equality is written ==")
        return self.wrong(f"{what}; {_ALLOWED}")

    def walk(self, node: ast.expr) -> Any:
        """The value of a node: an array over the rows, or a scalar."""
        match node:
            case ast.Constant(value=bool() | float() | str() as value):
                return value
            case ast.Constant(value=int() as value):
                return value if abs(value) < 2**63 else float(value)
            case ast.Name(id=name):
                return self.column(self.quoted.get(name, name))
            case ast.BoolOp(op=op, values=parts):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return reduce(join, (self.boolean(part) for part in parts))
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=part):
                return np.logical_not(self.boolean(part))
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return -self.number(part)
            case ast.UnaryOp(op=ast.UAdd(), operand=part):
                return self.number(part)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
                return _ARITHMETIC[type(op)](self.number(left), self.number(right))
            case ast.Compare():
                return reduce(np.logical_and, self.comparisons(node))
        raise self.refused(f"'{self.said(node)}' is not allowed")

    def said(self, node: ast.AST) -> str:
        """The node as the user wrote it, backticks included."""
        text = ast.unparse(node)
        for placeholder, name in self.quoted.items():
            text = text.replace(placeholder, f"`{name}`")
        return text

    def column(self, name: str) -> Any:
        if name in self.columns:
            return np.asarray(self.columns[name])
        if name in ("inf", "Inf", "infinity"):
            return np.inf
        hint = nearest(name, list(self.columns))
        raise self.wrong(f"no column '{name}'; {hint if len(hint) <= 300 else hint[:297] + '...'}")

    def boolean(self, node: ast.expr) -> np.ndarray:
        found = truth(np.asarray(self.walk(node)))
        if found is None:
            raise self.wrong(f"'{self.said(node)}' is no true or false")
        return found

    def number(self, node: ast.expr) -> np.ndarray:
        """float64, so that no power of integers grows without bound."""
        values = np.asarray(self.walk(node))
        if values.dtype.kind in "biuf":
            return values.astype(float)
        try:
            return np.where(missing(values), np.nan, values).astype(float)
        except (TypeError, ValueError, OverflowError) as problem:
            raise self.wrong(f"'{self.said(node)}' is no number") from problem

    def comparisons(self, node: ast.Compare) -> Iterator[np.ndarray]:
        """One boolean array a link of the chain."""
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            match op, right:
                case ((ast.Is() | ast.IsNot()), ast.Name(id="missing")):
                    lost = missing(np.asarray(self.walk(left)))
                    yield lost if isinstance(op, ast.Is) else ~lost
                case ((ast.In() | ast.NotIn()), (ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items))):
                    among = np.zeros(np.shape(self.walk(left)), bool)
                    for item in items:
                        among = among | self.compare(left, ast.Eq(), item)
                    yield among if isinstance(op, ast.In) else ~among
                case _ if type(op) in _COMPARISONS:
                    yield self.compare(left, op, right)
                case _:
                    raise self.refused(f"'{self.said(node)}' is not allowed")
            left = right

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> np.ndarray:
        """One comparison. A text is equal to a column's where it is so as it stands, or in the column's spelling."""
        found = self.compared(left, op, right)
        other = self.respelled(left, right), self.respelled(right, left)
        if any(other) and isinstance(op, ast.Eq | ast.NotEq):
            again = self.compared(other[1] or left, op, other[0] or right)
            return found | again if isinstance(op, ast.Eq) else found & again
        return found

    def respelled(self, column: ast.expr, text: ast.expr) -> ast.expr | None:
        """The text in the column's spelling; None if there is none, or if it is written so."""
        match column, text:
            case ast.Name(id=name), ast.Constant(value=str(value)):
                if (spell := self.spelled.get(self.quoted.get(name, name))) is None:
                    return None
                try:
                    said = spell(value)
                except UserError as problem:
                    raise self.wrong(str(problem)) from problem
                return ast.Constant(said) if said != value else None
        return None

    def compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> np.ndarray:
        a, b = np.asarray(self.walk(left)), np.asarray(self.walk(right))
        numeric = [x.dtype.kind in "biuf" for x in (a, b)]
        known = ~missing(a) & ~missing(b)
        if all(numeric):
            return np.asarray(_COMPARISONS[type(op)](a, b)) & (known | isinstance(op, ast.NotEq))
        if any(numeric):
            text, number = (right, left) if numeric[0] else (left, right)
            raise self.wrong(f"{self.said(text)} is text and {self.said(number)} a number; text is written '4'")
        a, b = np.broadcast_arrays(a, b)
        result = np.full(known.shape, isinstance(op, ast.NotEq))
        result[known] = _COMPARISONS[type(op)](a[known].astype(object), b[known].astype(object))
        return result
