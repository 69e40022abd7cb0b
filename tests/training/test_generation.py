"""Generation with a cache: the logits of the full forward pass, at every precision that has them; sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.config import build
from precisionlm.errors import UserError
from precisionlm.training.generation import Sampling, _chosen, empty_cache, following, generate
from precisionlm.training.run import prepare_run
from precisionlm.training.step import initial_state

from ..conftest import tiny_tree

ONE = jax.devices()[:1]


def prepared(tokens_folder, recipe="bf16", **model):
    tree = tiny_tree(tokens_folder)
    tree["precision"] = {"recipe": recipe}
    tree["model"] |= model
    run = prepare_run(build(tree, "test"), ONE)
    params = initial_state(run.program, 0, run.grids)["params"]
    return run, jax.tree.map(lambda p: p * 6 if p.ndim > 2 else p, params)


ROPE = {"factor": 8.0, "original_length": 16}
CASES = [
    pytest.param("bf16", {}, marks=pytest.mark.long),
    ("bf16", {"qk_norm": True, "projection_norm": True, "tie_embeddings": True, "head_size": 16, "rope_scaling": ROPE}),
    ("W4A8KV4", {}),
    pytest.param("W4,KV=int3/g4,Q=int8,S=uint8", {}, marks=pytest.mark.long),
    pytest.param("mxfp4@head:W8A8@embed:W8", {}, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("recipe", "model"), CASES, ids=str)
def test_a_cache_changes_no_logit(tokens_folder, recipe, model):
    run, params = prepared(tokens_folder, recipe, **model)
    tokens = jax.random.randint(jax.random.key(1), (1, 32), 1, 97)
    whole = np.asarray(jax.jit(run.program.transformer().apply)({"params": params}, tokens, run.grids))
    step, state, found = following(run.program), empty_cache(run.program, 32), []
    for part in (tokens[:, :3], *(tokens[:, i : i + 1] for i in range(3, 32))):
        logits, state = step(params, state, part, run.grids)
        found.append(np.asarray(logits))
    assert np.std(whole) > 0.05
    error = np.abs(np.concatenate(found, axis=1) - whole)
    assert (error < 2e-5).mean() > 0.98  # the last bit of a sum decides what rounds up, rarely
    assert error.max() < (2e-5 if recipe == "bf16" else 2e-3)
    assert int(state["length"]) == 32


def test_the_likeliest_tokens_are_those_of_the_full_pass(tokens_folder):
    run, params = prepared(tokens_folder, "W4A8KV4")
    prompt, apply = [0, 5, 9], jax.jit(run.program.transformer().apply)
    sampling = Sampling(tokens=6, temperature=0.0)
    found, text = generate(run, params, prompt, sampling), list(prompt)
    for token in found:
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(text)] = text
        assert token == int(jnp.argmax(apply({"params": params}, padded, run.grids)[0, len(text) - 1]))
        text.append(token)
    assert found == generate(run, params, prompt, sampling)


def test_seeds_temperature_and_top_k():
    logits = jnp.array([0.0, 2.0, 1.0, -9.0])
    draw = lambda i, **k: int(_chosen(logits, k.get("t", 1.0), jax.random.key(i), k.get("top_k")))  # noqa: E731
    counts = np.bincount([draw(i) for i in range(300)], minlength=4)
    assert counts[1] > counts[2] > counts[0] > 0
    assert draw(3) == draw(3)
    assert {draw(i, t=0.0) for i in range(5)} == {1} == {draw(i, top_k=1) for i in range(5)}
    assert {draw(i, top_k=2) for i in range(60)} == {1, 2} and {draw(i, t=0.01) for i in range(20)} == {1}


def test_what_cannot_be_generated_is_one_line(tokens_folder):
    run, params = prepared(tokens_folder, "W4,A=int8/tensor")
    with pytest.raises(UserError, match="shares scales over the tokens"):
        generate(run, params, [0], Sampling(4))
    with pytest.raises(UserError, match=r"3 tokens of prompt .* and 30 new ones are more than the 32"):
        generate(run, params, [0, 1, 2], Sampling(30))
    for wrong, word in (({"tokens": 0}, "at least 1"), ({"temperature": -1.0}, "or more"), ({"top_k": 0}, "top-k 0")):
        with pytest.raises(UserError, match=word):
            Sampling(**wrong)
