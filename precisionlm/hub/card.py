"""The model card of an exported run: what a reader needs to know, and what `precisionlm import` reads back."""

import re
from pathlib import Path
from typing import Any

import yaml

from precisionlm.columns import COLUMNS
from precisionlm.errors import UserError
from precisionlm.json_text import dumps
from precisionlm.training.run import Run

FILE = "README.md"
SECTION = "precisionlm"  # of the card's front matter
# What the card says of the run, under the names and in the units of the runs table.
_NUMBERS = (
    *("run_id", "name", "N_params", "N_total", "D_tokens", "D_unique", "epochs", "schedule", "learning_rate"),
    *("final_lr_fraction", "decay_share", "warmup_steps", "weight_decay", "batch_tokens", "sequence_length", "steps"),
    *("seed", "layers", "width", "vocab_size", "recipe", "execution", "backward", "train_loss", "flops", "device"),
    *("jax_version", "package_version", "dataset", "validation", "tokenizer", "stated_by_others"),
)
_EVALUATION = ("evaluation", "val_loss", "val_loss_se", "val_tokens", "ptq_method", "ptq_format", "ptq_damping",
               "ptq_fallbacks", "ptq_calibration", "ptq_calibration_sequences", "ptq_calibration_seed")  # fmt: skip


def card(
    run: Run,
    row: dict[str, Any],
    evaluations: list[dict[str, Any]],
    weights: str,
    notes: list[str],
    license: str | None,
    tags: list[str],
) -> str:
    """Markdown under a YAML front matter. row, evaluations: columns of the runs table; weights: how they are stored;
    notes: what a reader of the files does otherwise than the run did."""
    numbers = _chosen(row, _NUMBERS)
    losses = [_chosen(evaluation, _EVALUATION) for evaluation in evaluations]
    meta = run.dataset.meta
    front: dict[str, Any] = {
        "license": license or "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["precisionlm", *tags],
        SECTION: numbers | {"evaluations": losses},
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {_inline(str(row.get('name') or row['run_id']))}",
        "",
        f"A language model of {row['N_params']:,} non-embedding parameters, trained on {row['D_tokens']:,} tokens at "
        f"precision recipe `{row['recipe']}` by precisionlm. {weights}",
        "",
        *(f"- {note}" for note in notes),
        *([""] if notes else []),
        "## Numbers",
        "",
        *_table([(name, numbers[name]) for name in numbers]),
        "",
        "## Loss",
        "",
        *_losses(losses),
        "",
        "## Data",
        "",
        *_table(
            [
                ("source", meta.source),
                ("split", meta.split_rule),
                ("training tokens", meta.train.tokens),
                ("training documents", meta.train.documents),
                ("validation tokens", meta.validation.tokens),
                ("validation documents", meta.validation.documents),
                ("vocabulary", meta.vocab_size),
                ("sha256 of the training tokens", meta.train.sha256),
                ("sha256 of the validation tokens", meta.validation.sha256),
                ("sha256 of tokenizer.json", meta.tokenizer_sha256),
            ]
        ),
        "",
        "## License",
        "",
        license or "Not stated by who exported this model.",
        "",
    ]
    return "\n".join(lines)


def stated(folder: Path) -> dict[str, Any]:
    """What the card in a folder says under our section: columns of the runs table; empty without one. Raises UserError
    where the front matter is no YAML."""
    path = folder / FILE
    if not path.is_file():
        return {}
    text = path.read_text(errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        front = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its front matter is no YAML: {' '.join(str(error).split())}") from None
    found = front.get(SECTION) if isinstance(front, dict) else None
    return found if isinstance(found, dict) else {}


def _chosen(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) not in (None, "")}


def _losses(losses: list[dict[str, Any]]) -> list[str]:
    if not losses:
        return ["Not evaluated as it is stored here."]
    lines = ["| what was evaluated | loss (nats/token) | standard error | tokens |", "|---|---|---|---|"]
    for one in losses:
        what = " ".join(str(one[name]) for name in ("evaluation", "ptq_method", "ptq_format") if name in one)
        lines.append(f"| {what} | {one.get('val_loss')} | {one.get('val_loss_se')} | {one.get('val_tokens')} |")
    return lines


def _table(entries: list[tuple[str, Any]]) -> list[str]:
    meanings = {column.name: column.meaning for column in COLUMNS}
    lines = ["| | | |", "|---|---|---|"] if any(name in meanings for name, _ in entries) else ["| | |", "|---|---|"]
    for name, value in entries:
        text = value if isinstance(value, str) else dumps(value)
        cells = [name, text, *([meanings[name]] if name in meanings else [])]
        lines.append("| " + " | ".join(map(_inline, cells)) + " |")
    return lines


def _inline(text: str) -> str:
    """Text from names and sources within a line of Markdown: no other line, cell, tag or link."""
    return re.sub(r"([\\|\[\]`])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
