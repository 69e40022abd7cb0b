"""What is done to weights after training, in words: by `rtn`, `gptq+qep`, …, to `W4-g128`, after which steps."""

import re
from dataclasses import dataclass
from typing import Literal

from precisionlm.errors import UserError, nearest
from precisionlm.precision.recipe import Quantization, parse_recipe
from precisionlm.precision.scaling import LEARNED

Steps = Literal["last", "all"] | tuple[int, ...]  # or after how many steps
NAMES = {
    "rtn": "round to nearest",
    "gptq": "Frantar et al. 2022, arXiv:2210.17323",
    "awq": "Lin et al. 2023, arXiv:2306.00978",
}
WORDS = {
    "mse": "scales are those of least squared error of the weights, found by search, not by the largest magnitude",
    "qep": "weights first make up for what earlier layers did to their inputs (arXiv:2504.09629)",
    "seq": "within a block too, a matrix sees the inputs that quantized ones before it give (true-sequential)",
}


@dataclass(frozen=True)
class Method:
    """name: one of NAMES; searched, corrected, sequential: with the words mse, qep and seq. `str` prints the canonical
    spelling, `parse_method` reads it back."""

    name: str
    searched: bool = False
    corrected: bool = False
    sequential: bool = False

    def __str__(self) -> str:
        chosen = zip(WORDS, (self.searched, self.corrected, self.sequential), strict=True)
        return "+".join([self.name, *(word for word, on in chosen if on)])

    @property
    def calibrates(self) -> bool:
        """Whether it looks at inputs of the layers."""
        return self.name != "rtn" or self.corrected

    def check_fits(self, quantization: Quantization) -> None:
        """Raises UserError for a format that the method cannot give."""
        if self.name == "awq" and quantization.scaling.rotate:
            raise UserError(f"{self}: awq scales single channels, which {quantization} mixes; leave one of them away")


def parse_method(text: str) -> Method:
    """Read a method. Raises UserError for words that are none, come twice or say nothing of it."""
    name, *words = text.split("+")
    if name not in NAMES:
        raise UserError(f"no method '{name}'; {nearest(name, list(NAMES))}")
    for i, word in enumerate(words):
        if word not in WORDS:
            raise UserError(f"{text}: no word '{word}'; {nearest(word, list(WORDS))}")
        if word in words[:i]:
            raise UserError(f"{text}: '{word}' comes twice")
    method = Method(name, "mse" in words, "qep" in words, "seq" in words)
    if method.sequential and not method.calibrates:
        raise UserError(f"{text}: rounding to nearest sees no inputs; leave away seq, or add qep")
    if method.sequential and name == "awq":
        raise UserError(f"{text}: awq scales a block as a whole; leave away seq")
    return method


def weight_quantization(text: str) -> Quantization:
    """`4`, `int4`, `int4/g128`, `mxfp4`, … as a recipe writes a weight's format, or `W4`, `W4-g128` as it writes one
    of weights alone. Raises UserError, also for what only training has: stochastic rounding, random signs before a
    rotation, trained scales."""
    if short := re.fullmatch(r"W([0-9]+)(-g[0-9]+)?", text):
        return weight_quantization(f"int{short[1]}{(short[2] or '').replace('-', '/')}")
    if alien := re.search(r"[@:,=-]", text):
        raise UserError(f"'{text}': '{alien[0]}' is for recipes; give bits such as 4 or a format such as int4/g128")
    word = f"int{text}" if re.fullmatch("[0-9]+", text) else text
    quantization = parse_recipe(f"W={word}").commonest("w")
    if quantization is None:
        raise UserError(f"'{text}' leaves the weights unquantized; give bits such as 4 or a format such as int4/g128")
    if alien_words := [word for word in quantization.words() if _of_training(word)]:
        raise UserError(
            f"'{text}': weights are rounded to nearest under fixed scales after training; leave away "
            f"{', '.join(alien_words)}"
        )
    return quantization


def _of_training(word: str) -> bool:
    """Whether only training has what a word says: noise, random signs, trained scales, a gradient's rule."""
    return word in ("sr", "trust", *LEARNED) or word.startswith("rhad")


def parse_steps(text: str) -> Steps:
    """`last`, `all` or numbers of steps such as `1000,2000`. Raises UserError."""
    if text == "last":
        return "last"
    if text == "all":
        return "all"
    words = text.split(",")
    if not all(re.fullmatch("0*[1-9][0-9]{0,11}", word) for word in words):
        raise UserError(f"--steps {text}: last, all, or numbers of steps such as 1000,2000")
    return tuple(sorted({int(word) for word in words}))
