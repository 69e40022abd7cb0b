"""Seconds of the real thing: text prepared, a tiny quantized model trained, audited, restored and quantized further.

Each step has an answer that is known beforehand: rounding to a format's grid, from float64; the loss, between the
entropy of the text and what a model that knows nothing has; the audit, which says for every operand what it got.
"""

import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.doctor.finding import Finding

RECIPE, FURTHER = "W4A8", "W2A8"  # of one program: only grids differ
ENTRIES, NEXT = 65, 4  # of the vocabulary, the end of text among them; tokens that may follow one
STEPS, LENGTH, HEAD = 16, 128, 128  # a sequence and a head that the fused kernels of all platforms take
_FORMATS = ("int4", "e2m1", "e4m3")


def self_test() -> Finding:
    """Whether all of it works on the devices at hand, and in how many seconds."""
    began = time.monotonic()
    for name in _FORMATS:
        if wrong := rounded_wrong(name):
            return Finding("self-test", "problem", f"{name}: {wrong} of 4,096 values are not rounded to the nearest",
                           "this device or its XLA computes float32 wrongly: try another jaxlib")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="precisionlm-doctor-") as folder, _compiled_quickly():
        text, wrong_loss = _trained(Path(folder))
    seconds = f" ({time.monotonic() - began:.1f} s)"
    if wrong_loss:
        return Finding("self-test", "problem", wrong_loss + seconds, "training is not to be trusted here: report it")
    return Finding("self-test", "ok", text + seconds)


@contextmanager
def _compiled_quickly() -> Iterator[None]:
    """On CPUs programs run as they are, since optimizing them takes longer than all the rest; on accelerators, where
    that is what may fail, as in training."""
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    try:
        jax.config.update(name, before or jax.default_backend() == "cpu")
        yield
    finally:
        jax.config.update(name, before)


def rounded_wrong(name: str) -> int:
    """How many of 4,096 float32 values the device rounds to another value of a format than the nearest one, which
    float64 finds; a tie may go either way."""
    import jax

    from precisionlm.precision import grid
    from precisionlm.precision.formats import parse_format

    number_format = parse_format(name)
    values = number_format.values()
    x = np.random.default_rng(0).uniform(values[0] * 1.1, values[-1] * 1.1, 4096).astype(np.float32)
    found = np.asarray(jax.jit(grid.round_to_grid)(x, number_format.grid()), np.float64)
    distance = np.abs(x.astype(np.float64)[:, None] - values).min(axis=1)
    return int(np.sum(~np.isin(found, values) | (np.abs(x - found) != distance)))


def _trained(folder: Path) -> tuple[str, str]:
    """(what was done, what is wrong)."""
    import jax

    from precisionlm.config import build
    from precisionlm.storage.run_directory import last_metrics
    from precisionlm.training.execute import train
    from precisionlm.training.finished import evaluate_finished, request

    entropy = prepared(folder)
    experiment = build(_tree(folder / "data", jax.device_count()), "self-test")
    outcome = train(experiment, folder / "runs")
    losses = [line["loss"] for line in last_metrics(outcome.path / "metrics.jsonl") if "loss" in line]
    trained = outcome.result.evaluations[0]["val_loss"]
    audit = json.loads((outcome.path / "audit.json").read_text())["operands"]
    segment = outcome.result.segments[-1]
    further = evaluate_finished(request(outcome.path, ["--precision.recipe", FURTHER]))["val_loss"]
    if wrong := wrong_with(losses, trained, further, entropy):
        return "", wrong
    text = (
        f"{STEPS} steps at {RECIPE} on {segment['device']}, attention {segment['attention']}: loss {losses[0]:.2f} to "
        f"{losses[-1]:.2f} nats/token; {len(audit)} operands of the program quantized as asked; {FURTHER} adds "
        f"{further - trained:.3f}"
    )
    return text, ""


def wrong_with(losses: list[float], trained: float | None, further: float | None, entropy: float) -> str:
    """What losses (nats/token) cannot be, in words; empty where all is well. None is not finite."""
    known = [*losses, trained, further]
    if any(loss is None or not math.isfinite(loss) for loss in known):
        return "a loss is not finite"
    if not abs(losses[0] - math.log(ENTRIES)) < 1.0:
        return f"the first loss is {losses[0]:.3f}, and a model that knows nothing has about {math.log(ENTRIES):.3f}"
    if not entropy - 0.1 < losses[-1] < losses[0] - 0.1:
        return f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}; it should fall towards {entropy:.3f}"
    if further == trained:
        return f"the same loss, {trained}, at {RECIPE} and {FURTHER}: quantization was not applied"
    return ""


def _tree(data: Path, devices: int) -> dict[str, Any]:
    """A model of one layer, over all devices; in bfloat16, as fused attention needs it, but on CPUs."""
    import jax

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return {
        "model": {"layers": 1, "width": HEAD, "heads": 1, "mlp_width": 2 * HEAD},
        "data": {"path": str(data), "sequence_length": LENGTH},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
        "precision": {"recipe": RECIPE},
        "training": {
            "steps": STEPS,
            "batch_size": devices * -(-8 // devices),
            "eval_tokens": 2048,
            "dtype": dtype,
            "remat": "none",
        },
    }


def prepared(folder: Path) -> float:
    """`folder`/data: text in which each token has NEXT equally likely ones after it, and its entropy (nats/token)."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    from precisionlm.data.prepare import prepare
    from precisionlm.data.request import Request

    vocabulary = {"<|endoftext|>": 0} | {chr(0x100 + i): i for i in range(1, ENTRIES)}
    Tokenizer(BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    following = np.array([rng.choice(ENTRIES - 1, NEXT, replace=False) + 1 for _ in range(ENTRIES)])
    choices = rng.integers(NEXT, size=(200, 199))
    state, tokens = 1, []
    for document in choices:
        for choice in document:
            state = following[state, choice]
            tokens.append(state)
        tokens.append(0)
    np.array(tokens, np.uint16).tofile(folder / "text.u16")
    request = Request(folder / "text.u16", tokenizer=folder / "tokenizer.json", eos_id=0, validation_every=16)
    prepare(request, folder / "data")
    return math.log(NEXT)
