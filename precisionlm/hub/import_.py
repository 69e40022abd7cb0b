"""A Hugging Face model as a run directory: evaluated, quantized and trained from like a run of ours.

What its maker says of its training (tokens, schedule, …) comes from flags, or from the card of a model that we
exported, and the runs table marks it as stated by others (`stated_by_others`).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from precisionlm.config import apply_overrides, build, to_yaml
from precisionlm.data.meta import TOKENIZER_FILE, sha256_of
from precisionlm.data.source import Dataset
from precisionlm.errors import UserError
from precisionlm.hub import card
from precisionlm.hub.architectures import model_of
from precisionlm.hub.came import RECORD, Came, layout_named
from precisionlm.hub.layouts import unpack
from precisionlm.hub.names import expected, linear, parameters, shapes
from precisionlm.hub.tensors import read_model
from precisionlm.identity import SCHEMA
from precisionlm.model.transformer import axis_sizes, parameter_counts
from precisionlm.precision.describe import precision_columns
from precisionlm.storage.checkpoint import Checkpoints, folder_of
from precisionlm.storage.claim import claim
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.flops import training_flops_per_token
from precisionlm.training.provenance import package_version
from precisionlm.training.run import Run, prepare_run
from precisionlm.training.step import abstract_state

_LONGEST = 2048  # tokens per sequence where neither flag nor card says how many


@dataclass(frozen=True)
class Stated:
    """What flags say of a model's training; None: what its card says, or nothing. tokens: D (count); decay_share,
    final_lr_fraction: as the table's columns."""

    D_tokens: int | None = None
    schedule: str | None = None
    learning_rate: float | None = None
    final_lr_fraction: float | None = None
    decay_share: float | None = None
    batch_tokens: int | None = None

    def over(self, of_card: dict[str, Any]) -> dict[str, Any]:
        """Column → value of what flags or the card state. Raises UserError where nobody states D."""
        kinds = {"D_tokens": int, "schedule": str, "batch_tokens": int}
        found: dict[str, Any] = {}
        for name, value in asdict(self).items():
            given, kind = of_card.get(name) if value is None else value, kinds.get(name, float)
            if given is None:
                continue
            fits = isinstance(given, str) if kind is str else type(given) in (int, kind) and given >= 0
            if not fits:
                raise UserError(f"{name} is {given!r}: not what the table's column of that name holds")
            found[name] = kind(given)
        if not found.get("D_tokens"):
            raise UserError("neither --tokens nor the card says on how many tokens this model was trained; give it")
        return found


@dataclass(frozen=True)
class Imported:
    """A model's folder, read and checked, no weights loaded. stated: column → value."""

    folder: Path
    run: Run
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    stated: dict[str, Any]

    @property
    def non_embedding(self) -> int:
        return parameter_counts(abstract_state(self.run.program)["params"])[0]

    @property
    def quantization(self) -> dict[str, Any] | None:
        """Of its config.json."""
        return self.config.get("quantization_config")


def plan_import(
    folder: Path,
    data: Path,
    given: Stated,
    sequence_length: int | None = None,
    ignored: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Imported:
    """Check a model's folder against its config, its files and prepared data with its tokenizer. overrides:
    `--section.key value`. Raises UserError."""
    where = folder / "config.json"
    config = _json_object(where)
    with _readable(where):
        model = model_of(config, str(where), ignored)
    dataset, tokenizer = Dataset.open(data), folder / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise UserError(f"{folder} has no {TOKENIZER_FILE}, by which its data is prepared")
    if sha256_of(tokenizer) != dataset.meta.tokenizer_sha256:
        raise UserError(f"{data} was not prepared with the tokenizer of this model; prepare it --tokenizer {tokenizer}")
    of_card = card.stated(folder)
    stated = given.over(of_card)
    with _readable(where):
        longest = config.get("max_position_embeddings") or _LONGEST
        length = sequence_length or of_card.get("sequence_length") or min(longest, _LONGEST)
        if length > longest:
            raise UserError(f"sequences of {length} tokens are longer than max_position_embeddings {longest}")
    tensors = read_model(folder)
    with _readable(where):
        _check_tensors(tensors, model, config.get("quantization_config"), str(folder), ignored)
    tree = {
        "name": of_card.get("name") or folder.resolve().name,
        "model": model.model_dump(),
        "data": {"path": str(data), "sequence_length": length},
        "optimizer": {"learning_rate": stated.get("learning_rate") or 1.0},  # none is made of it
        "training": {"steps": 1, "batch_size": 8, "imported": _hash_of(folder)},
    }
    changed = apply_overrides(tree, list(overrides))
    training = {"steps": 1, "batch_size": 8} | changed["training"]
    training["steps"] = _steps(stated["D_tokens"], training["batch_size"], length)
    run = prepare_run(build(changed | {"training": training}, str(folder)))
    return Imported(folder, run, config, tensors, stated)


def _steps(tokens: float, batch_size: Any, length: int) -> int:
    """Steps of the training that the run's configuration states: its tokens, in batches of this size.

    Raises UserError where a configuration cannot hold so many."""
    if not isinstance(batch_size, int) or batch_size < 1:
        return 1  # what is wrong with it is said of the configuration
    steps = max(1, round(tokens / (batch_size * length)))
    if steps >= 2**31:
        raise UserError(
            f"{tokens:g} tokens are {steps:,} batches of {batch_size} sequences of {length}, and a run has at most "
            f"{2**31 - 1:,} steps: say a larger batch, --training.batch_size {batch_size * -(-steps // 2**30)}"
        )
    return steps


@contextmanager
def _readable(where: Path) -> Iterator[None]:
    """Raises UserError for values of kinds that no model's config has: others wrote them, and anything may be there."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError, re.error) as error:
        what = f"a value is of another kind than it is read as ({type(error).__name__}: {error})"
        raise UserError(f"{where}, or the card beside it: {what}") from None


def import_model(found: Imported, out: Path) -> RunDirectory:
    """Make the run directory `out`/<run id>, or leave it where it is complete. Raises UserError."""
    run, directory = found.run, RunDirectory(out, found.run.run_id)
    if Result.read(directory) is not None:
        return directory
    params, placed = _params(found), abstract_state(run.program)["params"]
    directory.create()
    with claim(directory):
        directory.write_text("config.yaml", to_yaml(run.experiment))
        directory.write_json(RECORD, {"source": str(found.folder.resolve()), "config": found.config})
        if found.quantization:
            Came.keep(directory, found.tensors)
        state = {"params": jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, placed)}
        e = run.experiment
        with Checkpoints(folder_of(directory, e.checkpoint), e.checkpoint) as checkpoints:
            checkpoints.save(e.training.steps, state, {})
        Result(status="done", reason="", row=imported_row(found), evaluations=[]).write(directory)
    return directory


def imported_row(found: Imported) -> dict[str, Any]:
    """The run's columns of the runs table: what its files say, and what its maker says, named in `stated_by_others`.
    All else of its training is not known, and absent."""
    run, e, stated = found.run, found.run.experiment, found.stated
    non_embedding, total = parameter_counts(abstract_state(run.program)["params"])
    sizes, length = axis_sizes(e.model, e.data.sequence_length), e.data.sequence_length
    return {
        "run_id": run.run_id,
        "schema": SCHEMA,
        "name": e.name,
        "N_params": non_embedding,
        "N_total": total,
        "recipe": str(run.recipe),
        "execution": e.precision.execution,
        "leaks_future": False,
        **precision_columns(run.recipe, run.program.structure, sizes, e.model.layers),
        **stated,
        "flops": stated["D_tokens"] * training_flops_per_token(e.model, non_embedding, length),
        "stated_by_others": " ".join([*stated, "flops"]),
        "sequence_length": length,
        "weights_from": "",
        "branch_from": "",
        "layers": e.model.layers,
        "width": e.model.width,
        "vocab_size": e.model.vocab_size,
        "validation": run.dataset.meta.validation.sha256[:12],
        "tokenizer": run.dataset.meta.tokenizer_sha256[:12],
        "package_version": package_version(),
    }


def _params(found: Imported) -> dict[str, Any]:
    """Our parameters, float32. Raises UserError for what is not finite."""
    model, tensors = found.run.experiment.model, found.tensors
    sizes = {projection: shape for of_site in shapes(model).values() for projection, shape in of_site.items()}

    def weight(layer: int, projection: str) -> np.ndarray:
        name = linear(layer, projection)
        layout = layout_named(found.quantization, name) if found.quantization else None
        if layout is None:
            return tensors[f"{name}.weight"].astype(np.float32)
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        try:
            return unpack(layout, own, sizes[projection])[0]
        except UserError as error:
            raise UserError(f"{found.folder}: {name}: {error}") from None

    params = parameters(model, tensors, weight)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            raise UserError(f"{found.folder}: {jax.tree_util.keystr(path)} has values that are not finite")
    return params


def _check_tensors(
    tensors: dict[str, np.ndarray], model: Any, quantization: Any, folder: str, ignored: Sequence[str]
) -> None:
    """Raises UserError for tensors that are missing, that are not known, and for layouts that are not read."""
    wanted, of_layers = expected(model), set()
    if quantization is not None and (
        not isinstance(quantization, dict) or quantization.get("quant_method") != "compressed-tensors"
    ):
        raise UserError(f"{folder}: only weights quantized by compressed-tensors are read")
    for group in (quantization or {}).get("config_groups", {}).values():
        if group.get("input_activations") and "input_activations" not in ignored:
            raise UserError(
                f"{folder}: its activations are quantized by the reader's own rules, which are not computed here; "
                "--ignore input_activations leaves them unquantized"
            )
    for layer in range(model.layers):
        for projection in (p for of_site in shapes(model).values() for p in of_site):
            name = linear(layer, projection)
            layout = layout_named(quantization, name) if quantization else None
            if layout is None:
                wanted.add(f"{name}.weight")
            else:
                of_layers.add(name)
                wanted.add(f"{name}.weight_scale")
    if missing := sorted(wanted - set(tensors)):
        raise UserError(f"{folder}: tensor '{missing[0]}' is missing")
    # A tied head may be written out; inverse frequencies of old files follow from the config.
    alien = [n for n in tensors if n not in wanted and n.rpartition(".")[0] not in of_layers and not _empty(n, model)]
    if alien:
        raise UserError(f"{folder}: tensor '{sorted(alien)[0]}' is no part of this model as it is computed here")


def _empty(name: str, model: Any) -> bool:
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and model.tie_embeddings)


def _hash_of(folder: Path) -> str:
    """12 hex digits of all weights and their config."""
    names = sorted(path for path in folder.iterdir() if re.fullmatch(r"config\.json|.*\.safetensors", path.name))
    return hashlib.sha256("".join(f"{path.name} {sha256_of(path)}\n" for path in names).encode()).hexdigest()[:12]


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; a model's folder has it") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: no JSON") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: no JSON object")
    return found
