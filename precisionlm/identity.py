"""What is the same run: a hash of what decides training, and of nothing else.

Two experiments are one run where they differ in a label, in where and by which program they run, or in what is
evaluated. What can be said in two ways counts once: a default written out, a preset or its numbers, a recipe in another
spelling, a key that has no effect. SCHEMA is raised by every change that gives the same experiment other numbers (more
than rounding), so that rows of before are told apart and are not continued; docs/identity.md lists the changes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from precisionlm.config import Experiment
from precisionlm.precision.recipe import Quantization, Recipe, parse_recipe
from precisionlm.precision.scaling import LEARNED

SCHEMA = 2

# Label, place, program and evaluation: by more than rounding none of them changes the weights that come out.
_PROGRAM = {"unroll", "deterministic", "remat", "accumulate", "loss_chunks"}
_EVALUATION = {"eval_tokens", "eval_every", "eval_bf16"}
_NOT_IN_IDENTITY: Any = {
    "name": True,
    "mesh": True,
    "checkpoint": True,
    "tracking": True,
    "data": {"path", "mixture", "cache", "cache_gib"},  # its content is
}


def run_id(experiment: Experiment, dataset_hash: str) -> str:
    """12 hex digits: the run directory's name. The data counts by content, not by path."""
    # Without defaults, so that a new key, absent, changes no id; a default that changes raises SCHEMA.
    exclude = _NOT_IN_IDENTITY | {"training": _PROGRAM | _EVALUATION}
    tree = experiment.model_dump(exclude=exclude, exclude_defaults=True)
    tree["schema"] = SCHEMA
    tree["data"]["path"] = dataset_hash
    tree["model"] |= _sizes(experiment)
    tree["optimizer"] = _optimizer(experiment)
    tree["precision"] = _precision(experiment)
    if experiment.training.weights_from is not None:
        tree["training"]["weights_from"] = Path(experiment.training.weights_from).name  # a run id
    if _scales_over_tokens(parse_recipe(experiment.precision.recipe)):
        # These scales are of the tokens that are computed together.
        tree["training"] |= {name: getattr(experiment.training, name) for name in ("accumulate", "loss_chunks")}
    return _hash(tree)


def _hash(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def _sizes(experiment: Experiment) -> dict[str, int]:
    """The model's sizes that follow from others where they are not given."""
    model = experiment.model
    return {"kv_heads": model.kv_heads or model.heads, "head_size": model.head_size or model.width // model.heads}


def _optimizer(experiment: Experiment) -> dict[str, Any]:
    """The optimizer's keys that have an effect, warm-up in steps and depth-muP as the factor that it is."""
    o, recipe = experiment.optimizer, parse_recipe(experiment.precision.recipe)
    tree = o.model_dump(exclude={"warmup_fraction", "depth_scale"}, exclude_defaults=True)
    tree["warmup_steps"] = o.warmup(experiment.training.steps)
    tree["depth_factor"] = (o.depth_scale or experiment.model.layers) / experiment.model.layers
    if o.schedule != "wsd":
        tree.pop("decay_fraction", None)
    if not any(q.scaling.clip in LEARNED for q in _all(recipe)):
        tree.pop("scale_learning_rate", None)
    return tree


def _precision(experiment: Experiment) -> Any:
    """What every operand of every site and layer gets; backward and execution where something is quantized."""
    precision = experiment.precision
    recipe = parse_recipe(precision.recipe)
    if not recipe.quantized():
        return None
    table = {
        site: {operand: [str(q) if q else None for q in cells] for operand, cells in operands.items()}
        for site, operands in recipe.resolve(experiment.model.layers).items()
    }
    return {"table": table, "backward": precision.backward, "execution": precision.execution}


def _all(recipe: Recipe) -> list[Quantization]:
    return [q for rule in recipe.rules for _, q in rule.assignments if q is not None]


def _scales_over_tokens(recipe: Recipe) -> bool:
    """Whether an operand's scale, or its rounding noise, depends on which tokens are computed together."""
    for rule in recipe.rules:
        for operand, q in rule.assignments:
            if q is None or (operand in ("w", "dgrad_w") and not q.scaling.stochastic):
                continue
            whole = q.scaling.sharing == "tensor" or q.scaling.scale_type == "e4m3" or q.scaling.stochastic
            if whole or (operand in ("wgrad_dy", "wgrad_x") and not q.scaling.per_token):
                return True
    return False


def former_id(experiment: Experiment, dataset_hash: str) -> str:
    """The run id of schema 1, by which run directories made before are recognized."""
    later = {
        "training": {"unroll", "deterministic", "imported", "reduce_dtype"},
        "model": {"rope_scaling"},
    }  # keys it did not have
    tree = experiment.model_dump(exclude=_NOT_IN_IDENTITY | later)
    tree["data"]["path"] = dataset_hash
    if experiment.training.weights_from is not None:
        tree["training"]["weights_from"] = Path(experiment.training.weights_from).name
    return _hash(tree)
