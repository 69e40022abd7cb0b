"""A finished run says something: a sampler with a cache of keys and values, at the precision of its recipe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from precisionlm.errors import PreemptedError, UserError
from precisionlm.model import cache as kept
from precisionlm.precision.binding import Grids, leaks_future
from precisionlm.storage.checkpoint import folder_of, restore_newest
from precisionlm.storage.result import finished_at
from precisionlm.training.finished import request
from precisionlm.training.run import Run
from precisionlm.training.step import Program, abstract_state


@dataclass(frozen=True)
class Sampling:
    """tokens: at most so many new ones. temperature: 0 takes the likeliest token, 1 samples as the model says. top_k:
    sample among so many likeliest alone; all if None."""

    tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.tokens < 1:
            raise UserError(f"{self.tokens} tokens: at least 1 is generated")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature:g}: must be 0 (the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k {self.top_k}: must be at least 1")


def check_can_generate(run: Run, prompt: int, sampling: Sampling) -> None:
    """Raises UserError where a prompt of so many tokens and what follows is longer than the sequences trained on, or
    where what is computed of one token depends on which others are computed with it."""
    length = run.experiment.data.sequence_length
    if prompt + sampling.tokens > length:
        raise UserError(
            f"{prompt} tokens of prompt (with the end of text before it) and {sampling.tokens} new ones are more than "
            f"the {length} of the sequences that this model was trained on"
        )
    if leaks_future(run.program.structure):
        raise UserError(
            f"recipe '{run.recipe}' shares scales over the tokens that are computed together, so one token at a time "
            "gives other numbers than training; generate at another recipe, such as its weights' alone"
        )


def generate(
    run: Run,
    params: Any,
    prompt: list[int],
    sampling: Sampling,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[int]:
    """The new tokens after a prompt, the end of text, where it comes, the last of them. Raises UserError as
    `check_can_generate`, and PreemptedError as soon as `interrupted` says so."""
    check_can_generate(run, len(prompt), sampling)
    state = empty_cache(run.program, run.experiment.data.sequence_length)
    new, keys = list[int](), jax.random.split(jax.random.key(sampling.seed), sampling.tokens)
    inputs = np.array([prompt], np.int32)
    for key in keys:
        if interrupted():
            raise PreemptedError("generation was interrupted")
        logits_BTV, state = following(run.program)(params, state, inputs, run.grids)
        new.append(int(_chosen(logits_BTV[0, -1], sampling.temperature, key, sampling.top_k)))
        inputs = np.array([new[-1:]], np.int32)
        if new[-1] == run.dataset.meta.eos_id:
            break
    return new


def empty_cache(program: Program, length: int, sequences: int = 1) -> Any:
    """Room for the keys and values of sequences of so many tokens."""
    return kept.empty(program.model, sequences, length, program.dtype)


@cache
def following(program: Program) -> Any:
    """Jitted (params, cache, tokens_BT that follow those in the cache, grids) → (logits_BTV, cache with them)."""
    transformer = replace(program, remat="none").transformer()  # there is no backward pass

    def step(params: Any, state: Any, tokens_BT: jax.Array, grids: Grids) -> tuple[jax.Array, Any]:
        variables = {"params": params, kept.COLLECTION: state}
        logits_BTV, changed = transformer.apply(variables, tokens_BT, grids, mutable=[kept.COLLECTION])
        return logits_BTV, changed[kept.COLLECTION]

    return jax.jit(step, donate_argnums=1)


@partial(jax.jit, static_argnames=("top_k",))
def _chosen(logits_V: jax.Array, temperature: float, key: jax.Array, top_k: int | None) -> jax.Array:
    if top_k is not None and top_k < len(logits_V):
        least = jax.lax.top_k(logits_V, top_k)[0][-1]
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    sampled = jax.random.categorical(key, logits_V / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature == 0, jnp.argmax(logits_V), sampled)


def continued(
    folder: Path,
    prompt: str,
    sampling: Sampling,
    recipe: str | None,
    interrupted: Callable[[], bool] = lambda: False,
    moved: Sequence[str] = (),
) -> dict[str, Any]:
    """What a finished run makes of a prompt, which stands at the start of a document as in its data: prompt, text and
    the ids of its new tokens. recipe: the run's own if None; moved: where data and checkpoints are now,
    as `finished.request` takes it. Raises UserError, also as `generate`, and PreemptedError."""
    finished_at(folder)
    given = [] if recipe is None else ["--precision.recipe", recipe, "--precision.execution", "simulated"]
    one = ["--mesh.replica", "1", "--mesh.fsdp", "1", "--mesh.tensor", "1"]
    asked = request(folder, [*moved, *given, *one], jax.devices()[:1])
    run, directory = asked.run, asked.directory
    tokenizer = Tokenizer.from_buffer(run.dataset.tokenizer())
    tokens = [run.dataset.meta.eos_id, *tokenizer.encode(prompt).ids]
    check_can_generate(run, len(tokens), sampling)
    checkpoints = folder_of(directory, run.experiment.checkpoint)
    _, params = restore_newest(checkpoints, abstract_state(run.program)["params"])
    new = generate(run, params, tokens, sampling, interrupted)
    said = new[:-1] if new[-1] == run.dataset.meta.eos_id else new
    whole = tokenizer.decode(tokens[1:] + said, skip_special_tokens=False)
    before = tokenizer.decode(tokens[1:], skip_special_tokens=False)
    return {"prompt": prompt, "text": whole[len(before) :], "tokens": new, "recipe": str(run.recipe)}
