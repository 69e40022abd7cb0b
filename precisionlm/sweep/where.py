"""Which points of a sweep are meant: an expression over what is known of a run before it is trained."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from precisionlm.config import Experiment
from precisionlm.errors import UserError
from precisionlm.expressions import evaluate, truth
from precisionlm.model.presets import non_embedding_parameters
from precisionlm.model.transformer import axis_sizes
from precisionlm.precision.describe import precision_columns
from precisionlm.precision.recipe import parse_recipe
from precisionlm.training.step import bound

# Strict, unlike that of tables, which others have made: what is no recipe would select nothing in silence.
_SPELLED = dict.fromkeys(("recipe", "precision.recipe"), lambda text: str(parse_recipe(text)))


def meant(experiment: Experiment, expressions: tuple[str, ...], source: str) -> bool:
    """Whether all expressions hold for an experiment. Raises UserError that begins with `source`."""
    names = Names(experiment)
    for text in expressions:
        holds = truth(evaluate(text, names, source, _SPELLED))
        if holds is None:
            raise UserError(f"{source} '{text}': is no true or false; such as D/N < 500")
        if not holds:
            return False
    return True


class Names(Mapping[str, Any]):
    """N, D, tokens (both D), steps, batch_tokens; the columns of the runs table that a recipe decides (w_bits, …) and
    some of the others; every key path of the configuration."""

    def __init__(self, experiment: Experiment):
        self._experiment, e = experiment, experiment
        n = non_embedding_parameters(e.model)
        self._plain: dict[str, Any] = {
            "N": n,
            "D": e.tokens,
            "tokens": e.tokens,
            "steps": e.training.steps,
            "batch_tokens": e.batch_tokens,
            "N_params": n,
            "D_tokens": e.tokens,
            "recipe": e.precision.recipe,
            "layers": e.model.layers,
            "width": e.model.width,
            "seed": e.training.seed,
            "learning_rate": e.optimizer.learning_rate,
            "sequence_length": e.data.sequence_length,
            **_key_paths(e.model_dump()),
        }

    def __getitem__(self, name: str) -> Any:
        return self._plain[name] if name in self._plain else self._precision[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._plain, **self._precision})

    def __len__(self) -> int:
        return len({**self._plain, **self._precision})

    @cached_property
    def _precision(self) -> dict[str, Any]:
        """Only where it is asked for: binding a recipe takes longer than all else of a point."""
        simulated = self._experiment.precision.model_copy(update={"execution": "simulated"})
        e = self._experiment.model_copy(update={"precision": simulated})
        structure, _ = bound(e, "cpu")
        sizes = axis_sizes(e.model, e.data.sequence_length)
        return precision_columns(parse_recipe(e.precision.recipe), structure, sizes, e.model.layers)


def _key_paths(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _key_paths(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found
