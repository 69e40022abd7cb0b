"""The training step: golden losses, paired arms, sharded equals unsharded, compilations, the audit."""

import re

import jax
import numpy as np
import pytest

from precisionlm.config import build
from precisionlm.errors import UserError
from precisionlm.precision import audit, marks
from precisionlm.training import evaluate as evaluate_module
from precisionlm.training import step
from precisionlm.training.auditing import audit_run, step_text
from precisionlm.training.evaluate import evaluate, place
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import prepare_run
from precisionlm.training.sharding import RULES, make_mesh, partition_spec
from precisionlm.training.step import Program, everywhere, initial_state, train_step

from ..conftest import tiny_tree

ONE = jax.devices()[:1]

# Loss of the first and the third step of the tiny experiment. If a change to the model or the optimizer is meant to
# move them, replace the numbers by those that the failing test prints, and say why in the commit.
GOLDEN = {"bf16": (4.5582, 4.4768), "W4A8": (4.5581, 4.4766)}


def at(tokens_folder, recipe, **training):
    tree = tiny_tree(tokens_folder)
    tree["precision"] = {"recipe": recipe}
    tree["training"] |= training
    return build(tree, "test")


def losses(run, steps):
    state, batches = initial_state(run.program, run.experiment.training.seed, run.grids), run.train_batches()
    grids, hyper, seed = everywhere(run.program, (run.grids, hyperparameters(run.experiment), 0))
    out = []
    for _ in range(steps):
        tokens = place(next(batches)["tokens"], run.program)
        state, metrics = train_step(run.program)(state, tokens, grids, hyper, seed)
        out.append(float(metrics["loss"]))
    return out


@pytest.mark.parametrize("recipe", GOLDEN)
def test_golden_losses(tokens_folder, recipe):
    found = losses(prepare_run(at(tokens_folder, recipe), ONE), 3)
    assert (found[0], found[2]) == pytest.approx(GOLDEN[recipe], abs=5e-4), (
        f"the first steps of the tiny {recipe} run moved: now {found[0]:.4f} and {found[2]:.4f}; if that is meant, "
        "update GOLDEN in this file"
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_on_gpus_a_deterministic_step_asks_for_it(tokens_folder, monkeypatch, deterministic):
    run, asked = prepare_run(at(tokens_folder, "bf16", deterministic=deterministic, dtype="bfloat16"), ONE), []
    assert str(run.program.attention(32)) == "xla: no fused kernel on cpu"
    monkeypatch.setattr(Program, "platform", "gpu")
    monkeypatch.setattr(jax, "jit", lambda *_, **options: asked.append(options["compiler_options"]))
    train_step.__wrapped__(run.program)
    assert asked == [{"xla_gpu_deterministic_ops": True} if deterministic else {}]
    assert run.program.transformer().kernel.name == ("xla" if deterministic else "cudnn")


def test_native_products_are_compiled_without_trials_of_triton_kernels_on_gpus(tokens_folder, monkeypatch):
    monkeypatch.setattr(Program, "platform", "gpu")
    for execution, options in (("native", {"xla_gpu_enable_triton_gemm": False}), ("simulated", {})):
        tree = tiny_tree(tokens_folder)
        tree["precision"] |= {"recipe": "W8A8-tensor", "execution": execution}
        assert prepare_run(build(tree, "test"), ONE).program.compiler_options == options


@pytest.mark.parametrize("sizes", [{"fsdp": 2}, {"fsdp": 1, "replica": 2}])
def test_under_fsdp_gpus_gather_and_scatter_256_mib_at_once(tokens_folder, monkeypatch, sizes):
    monkeypatch.setattr(Program, "platform", "gpu")
    tree = tiny_tree(tokens_folder)
    tree["mesh"] = sizes
    joined = {f"xla_gpu_{kind}_combine_threshold_bytes": 2**28 for kind in ("all_gather", "reduce_scatter")}
    options = prepare_run(build(tree, "test"), jax.devices()[:2]).program.compiler_options
    assert options == (joined if sizes["fsdp"] > 1 else {})
    jax.jit(jax.numpy.sin, compiler_options=options)(1.0)  # this version of XLA knows them


def test_arms_are_paired(tokens_folder):
    runs = [prepare_run(at(tokens_folder, recipe), ONE) for recipe in ("bf16", "W3A8", "mxfp4")]
    states = [initial_state(run.program, 0, run.grids) for run in runs]
    batches = [next(run.train_batches())["tokens"] for run in runs]
    for state, batch in zip(states[1:], batches[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, state["params"], states[0]["params"])
        np.testing.assert_array_equal(batch, batches[0])
    other = prepare_run(at(tokens_folder, "bf16", seed=1), ONE)
    assert (next(other.train_batches())["tokens"] != batches[0]).any()


@pytest.mark.parametrize(
    "parts",
    [pytest.param({"accumulate": 4}, marks=pytest.mark.long), {"loss_chunks": 4}, {"accumulate": 2, "loss_chunks": 8}],
)
def test_parts_of_a_batch_add_up_to_the_whole(tokens_folder, parts):
    """Losses after updates, so gradients too; on one device and on eight."""
    whole = losses(prepare_run(at(tokens_folder, "W4A8@head:W8A8", batch_size=16), ONE), 3)
    run = at(tokens_folder, "W4A8@head:W8A8", batch_size=16, **parts)
    np.testing.assert_allclose(losses(prepare_run(run, ONE), 3), whole, atol=2e-5)
    mesh = {"replica": 2, "fsdp": 2, "tensor": 2}
    eight = run.model_copy(update={"mesh": run.mesh.model_copy(update=mesh)})
    np.testing.assert_allclose(losses(prepare_run(eight), 3), whole, atol=5e-5)


def test_chunks_hold_fewer_logits(tokens_folder):
    temporary = []
    for chunks in (1, 8):
        tree = tiny_tree(tokens_folder)
        tree["model"] |= {"vocab_size": 8192, "layers": 1}
        tree["training"] |= {"loss_chunks": chunks}
        run = prepare_run(build(tree, "test"), ONE)
        state = initial_state(run.program, 0, {})
        tokens = place(next(run.train_batches())["tokens"], run.program)
        compiled = train_step(run.program).lower(state, tokens, run.grids, hyperparameters(run.experiment), 0).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporary[1] < 0.5 * temporary[0]


@pytest.mark.parametrize("recipe", ["bf16", "W4A8KV4"])
def test_eight_devices_equal_one(tokens_folder, recipe):
    tree = tiny_tree(tokens_folder)
    tree["precision"] = {"recipe": recipe}
    one = losses(prepare_run(build(tree, "test"), ONE), 2)
    tree["mesh"] = {"replica": 2, "fsdp": 2, "tensor": 2}
    eight = losses(prepare_run(build(tree, "test")), 2)
    np.testing.assert_allclose(one, eight, atol=1e-5)


def test_widths_and_lengths_share_one_executable(tokens_folder):
    before = train_step.cache_info().currsize
    for recipe, steps in (("W4A6", 12), ("W3A6", 12), ("W=e4m3,A=e2m1", 24)):
        run = prepare_run(at(tokens_folder, recipe, steps=steps), ONE)
        losses(run, 1)
    assert train_step(run.program)._cache_size() == 1
    assert train_step.cache_info().currsize - before <= 1


def test_audit_proves_what_was_asked(tokens_folder):
    run = prepare_run(at(tokens_folder, "W3A8KV4,G=int8@down:A=e4m3@head:W8"), ONE)
    report = audit_run(run, initial_state(run.program, 0, run.grids))
    found = {(entry["site"], entry["operand"]): entry for entry in report["operands"]}
    assert found["qkv", "w"]["formats"] == ["int3", "int3"] and found["down", "a"]["formats"] == ["e4m3", "e4m3"]
    assert found["attention", "k"]["products"] > 0 and ("attention", "q") not in found
    # Forward and input-gradient products of two layers consume the weights; the weight gradient the activations.
    assert found["qkv", "w"]["products"] == found["qkv", "a"]["products"] == 4
    assert found["out", "dgrad_dy"]["products"] == found["out", "wgrad_dy"]["products"] == 2
    assert found["head", "w"]["products"] == 2
    assert 0.2 < found["qkv", "w"]["zeros"] < 0.6
    assert 0.03 < found["qkv", "w"]["relative_mse"] < 0.15
    assert found["qkv", "a"]["relative_mse"] < 1e-4
    assert all(entry["clipped"] == 0 for entry in report["operands"])


def test_an_entry_that_reaches_no_product_is_an_error(tokens_folder):
    run = prepare_run(at(tokens_folder, "W4A8"), ONE)
    counts = audit_counts(run)
    audit.check_applied(run.recipe, run.program.structure, counts)
    counts["down.w"] = 0
    with pytest.raises(UserError, match="w at 'down' reaches no matrix product"):
        audit.check_applied(run.recipe, run.program.structure, counts)


def audit_counts(run):
    state = initial_state(run.program, 0, run.grids)
    tokens = place(next(run.train_batches())["tokens"], run.program)
    hyper = hyperparameters(run.experiment)
    return marks.count_products(train_step(run.program).trace(state, tokens, run.grids, hyper, 0).jaxpr)


def test_unquantized_run_has_no_quantized_product(tokens_folder):
    assert not audit_counts(prepare_run(at(tokens_folder, "bf16"), ONE))


def test_evaluation_is_at_the_training_precision(tokens_folder):
    plain, coarse = (prepare_run(at(tokens_folder, recipe), ONE) for recipe in ("bf16", "W2A2"))
    params = initial_state(plain.program, 0, {})["params"]
    a = evaluate(plain.program, params, plain.validation_batches(), plain.grids)
    b = evaluate(coarse.program, params, coarse.validation_batches(), coarse.grids)
    assert a.tokens == b.tokens == 2000
    assert a.loss != b.loss and 0 < a.standard_error < 0.1


def test_evaluation_runs_in_the_slices_of_training(tokens_folder, monkeypatch):
    found, shapes = {}, {}
    for parts in (1, 4):
        tree = tiny_tree(tokens_folder)
        tree["training"] |= {"accumulate": parts, "batch_size": 8}
        run = prepare_run(build(tree, "test"), ONE)
        params = initial_state(run.program, 0, run.grids)["params"]

        def spied(program, parts=parts):
            def call(weights, tokens, *others):
                shapes.setdefault(parts, set()).add(tokens.shape)
                return step.eval_step(program)(weights, tokens, *others)

            return call

        monkeypatch.setattr(evaluate_module, "eval_step", spied)
        found[parts] = evaluate(run.program, params, run.validation_batches(), run.grids)
    assert shapes == {1: {(8, 33)}, 4: {(2, 33)}}
    assert found[4].loss == pytest.approx(found[1].loss, abs=1e-6) and found[4].pairs_with(found[1])
    np.testing.assert_allclose(found[4].sums, found[1].sums, rtol=1e-6)


def test_sequences_are_in_the_order_of_the_split_on_any_devices(tokens_folder):
    found = []
    for devices in (ONE, jax.devices()):
        run = prepare_run(at(tokens_folder, "bf16"), devices)
        params = initial_state(run.program, 0, run.grids)["params"]
        found.append(evaluate(run.program, params, run.validation_batches(), run.grids))
    one, many = found
    np.testing.assert_allclose(many.sums, one.sums, rtol=1e-5)
    tokens = run.dataset.tokens("validation")
    starts = np.arange(0, 2000, 32)
    expected = [np.count_nonzero(tokens[: start + 1] == run.dataset.meta.eos_id) for start in starts]
    np.testing.assert_array_equal(one.documents, expected)
    np.testing.assert_array_equal(one.counts, [32] * 62 + [16])


def test_every_parameter_has_a_sharding_rule(tokens_folder):
    run = prepare_run(at(tokens_folder, "bf16"))
    with pytest.raises(ValueError, match="no sharding rule matches"):
        partition_spec("blocks/new/thing", (4, 4), run.program.mesh)
    used = {path for path, _ in RULES}
    assert len(used) == len(RULES)


def test_meshes_that_do_not_multiply_out(experiment):
    for mesh, message in (({"fsdp": 3}, "does not make 8 devices"), ({"fsdp": -1, "tensor": -1}, "may be -1")):
        with pytest.raises(UserError, match=message):
            make_mesh(experiment.mesh.model_copy(update=mesh))
    with pytest.raises(UserError, match="accumulate 3 does not divide"):
        build({**experiment.model_dump(), "training": {**experiment.training.model_dump(), "accumulate": 3}}, "test")
    for changes, message in (
        ({"batch_size": 6}, "batch_size 6 does not divide over 8"),
        ({"batch_size": 8, "accumulate": 2}, "batch_size / accumulate = 4 does not divide over 8"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_run(experiment.model_copy(update={"training": experiment.training.model_copy(update=changes)}))


def test_arms_in_float32_multiply_at_one_precision(tokens_folder):
    """Every product of the step, in the arm with quantized operands as in the one without."""
    found = {}
    for recipe in ("bf16", "W8A8"):
        run = prepare_run(at(tokens_folder, recipe), ONE)
        text = step_text(run, initial_state(run.program, 0, run.grids))
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        found[recipe] = [re.search(r"precision = \[([A-Z, ]+)\]", line)[1] for line in products]
    assert found["bf16"] == found["W8A8"] == ["HIGHEST, HIGHEST"] * 21
