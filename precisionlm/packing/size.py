"""How many runs of a program are trained together: as many as fill the device and fit its memory, and what is known of
where that pays."""

import os
from dataclasses import dataclass, replace

import jax

from precisionlm.model.transformer import parameter_counts
from precisionlm.training.run import Run
from precisionlm.training.step import Program, abstract_state

# Tokens of all members in one step, by platform: more fill no device any better.
_FILLED = {"cpu": 1 << 12, "gpu": 1 << 18, "tpu": 1 << 17}
# Model widths up to which packing pays. On one H100 steps make 1.3 to 1.6 times the tokens/s at 96 to 384, by a TPU
# compiler's estimates 1.5 times at 128 and 0.95 at 256. On two CPU cores 1.35 times at 32, which compiling longer eats:
# whole jobs of four short runs took 1.4 times as long.
_PAYS = {"cpu": 0, "gpu": 512, "tpu": 192}
_MEMORY_SHARE = 0.7
_STATE_BYTES = 24  # a parameter: weights, moments, gradients, and the copies in the compute dtype


@dataclass(frozen=True)
class Choice:
    """runs: of a pack on one device (1: alone, step by step); remat: under which it fits; why: in words."""

    runs: int
    remat: str
    why: str


def choose(run: Run, count: int, asked: int | None) -> Choice:
    """For `count` runs of the program and batch of one of them, on one device. asked: a number that the user gave."""
    program, e = run.program, run.experiment
    platform = program.mesh.devices.flat[0].platform
    batch_tokens = e.batch_tokens // e.training.accumulate
    if asked is None and e.model.width > _PAYS.get(platform, 0):
        limit_of_width = _PAYS.get(platform, 0)
        known = f"pays up to width {limit_of_width} here" if limit_of_width else "does not pay on these devices"
        return Choice(1, program.remat, f"packing {known}; --pack N packs")
    filled = max(1, _FILLED.get(platform, 1 << 17) // batch_tokens)
    wanted = min(count, filled if asked is None else asked)
    limit = _MEMORY_SHARE * _memory(program)
    remat = "none" if asked or wanted * member_bytes(program, batch_tokens, "none") <= limit else program.remat
    fits = max(1, int(limit // member_bytes(program, batch_tokens, remat)))
    runs = min(wanted, fits)
    if asked is not None:
        return Choice(wanted, remat, f"{wanted} asked for")
    because = {runs: f"fit {limit / 2**30:.1f} GiB", wanted: f"fill it with {runs * batch_tokens:,} tokens a step"}
    because |= {count: "are all there are"} if runs == count else {}
    why = f"{runs} runs {because[runs]}"
    rounds = -(-count // runs)
    if (even := -(-count // rounds)) < runs:  # not a full pack and then a few runs with the device to themselves
        runs, why = even, f"{why}, {count} are {rounds} times {even}"
    return Choice(runs, remat, why + (", remat none" if remat != program.remat else ""))


def with_remat(run: Run, remat: str) -> Run:
    """The run under another remat policy, which changes nothing but its rounding."""
    return replace(run, program=replace(run.program, remat=remat))


def member_bytes(program: Program, batch_tokens: int, remat: str) -> float:
    """Memory that a member takes, by estimate: state, gradients, and what the forward pass keeps for the backward one.
    batch_tokens: of one part of the batch."""
    m = program.model
    total = parameter_counts(abstract_state(program)["params"])[1]
    width = 2 if program.dtype == "bfloat16" else 4
    head_size = m.head_size or m.width // m.heads
    heads = (m.heads + 2 * (m.kv_heads or m.heads)) * head_size
    # Values of a token that a layer keeps; on one H100 the compiler's temporaries are within a fifth of this.
    layer: float = 4 * m.width + 2 * heads + 3.5 * m.mlp_width
    if remat != "none":
        layer = min(layer, 2 * m.width + heads + 2 * m.mlp_width + layer / m.layers)
    logits = 2 * (m.vocab_size or 0) / program.loss_chunks
    return _STATE_BYTES * total + batch_tokens * width * (m.layers * layer + logits)


def _memory(program: Program) -> float:
    """Of the device (bytes)."""
    device: jax.Device = program.mesh.devices.flat[0]
    stats = device.memory_stats() or {}
    return float(stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)
