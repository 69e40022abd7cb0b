"""The verb that shows configurations: one to begin with, every key, or what a file and its overrides come to."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE, UserError

TEMPLATE = """\
# precisionlm data prepare TEXT.jsonl --out data/text      (or: stdlib, the source of Python's own library)
# precisionlm train run.yaml --out runs
name: first
model: {layers: 3, width: 96, heads: 3, mlp_width: 256}
data: {path: data/text, sequence_length: 128}    # tokens
optimizer: {learning_rate: 4.0e-3, schedule: cosine, warmup_fraction: 0.1}
precision: {recipe: W4A8}                        # bf16: nothing quantized; precisionlm precision explain W4A8
training:
  steps: 400
  batch_size: 16                                 # sequences a step
  dtype: bfloat16                                # float32 on CPUs is quicker
  eval_tokens: 100000                            # of validation
"""


def add_config(verbs: Any) -> None:
    """Register config."""
    config = add_verb(
        verbs,
        "config",
        _config,
        "Print a configuration as YAML: with a file, every key as it is read, with overrides; --template, twelve lines "
        "to begin with; --all, every\nkey with its meaning, range and default.",
        "precisionlm config configs/demo.yaml --training.steps 50",
        overrides=True,
    )
    config.add_argument("config", type=Path, nargs="?", help="experiment YAML")
    config.add_argument("--template", action="store_true", help="twelve lines to begin with, for `train` and `sweep`")
    config.add_argument("--all", action="store_true", help="every key: meaning, range, default or required")


def _config(args: argparse.Namespace) -> int:
    from precisionlm.config import load, to_yaml

    if sum((args.config is not None, args.template, args.all)) != 1:
        raise UserError("config: give one of a file, --template and --all; see precisionlm config --help")
    if args.config is not None:
        print(to_yaml(load(args.config, args.rest)), end="")
        return DONE
    if args.rest:
        raise UserError(f"config: {args.rest[0]} is for a file's keys")
    print(TEMPLATE if args.template else "\n".join(every_key()), end="" if args.template else "\n")
    return DONE


def every_key() -> Iterator[str]:
    """YAML with every key at its default, or empty where it is required, and what it means beside it."""
    from precisionlm.config import Experiment

    yield "# Every key of an experiment. Keys without a value are required; null is 'absent'."
    yield from _keys(Experiment, "")


def _keys(section: Any, indent: str) -> Iterator[str]:
    from precisionlm import yaml_text
    from precisionlm.sections import section_of

    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None and (field.is_required() or field.default is not None):
            yield f"{indent}{name}:" + (f"  # {_line(inner.__doc__)}" if inner.__doc__ else "")
            yield from _keys(inner, f"{indent}  ")
            continue
        value = "" if field.is_required() else yaml_text.dump({name: field.default}).partition(":")[2].strip()
        said = "; ".join(part for part in (_kind(field), field.description) if part)
        yield f"{indent}{name}: {value}".rstrip().ljust(36) + f"  # {said}"
        if inner is not None:
            yield from (f"{indent}  # {line.strip()}" for line in _keys(inner, ""))


def _line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".")


def _kind(field: Any) -> str:
    """Its range, or the words it may be."""
    kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
    if get_origin(field.annotation) is Literal or (kinds and get_origin(kinds[0]) is Literal):
        words = kinds if get_origin(field.annotation) is Literal else get_args(kinds[0])
        return " | ".join(map(str, words))
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(data, limit):,}"
        for limit, sign in limits.items()
        for data in field.metadata
        if getattr(data, limit, None) is not None and getattr(data, limit) != 2**31 - 1
    ]
    required = ["required"] if field.is_required() else []
    return ", ".join([*required, *bounds])
