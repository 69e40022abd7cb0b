"""The real step compiled ahead of time, by a TPU compiler where libtpu is installed."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from precisionlm.cli.main import main
from precisionlm.cluster.hardware import GIB
from precisionlm.compiling import ahead_of_time
from precisionlm.compiling.ahead_of_time import compile_for, compile_sweep
from precisionlm.compiling.report import Report, as_json, as_text, details, out_of_memory, report_of
from precisionlm.config import (
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    TrainingConfig,
    to_yaml,
)
from precisionlm.errors import UserError
from precisionlm.model.presets import load_experiment

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'precisionlm[tpu-aot]'"
)


def experiment(name: str = "tiny", layers: int = 2, recipe: str = "W8A8", mesh: MeshConfig | None = None) -> Experiment:
    return Experiment(
        name=name,
        model=ModelConfig(layers=layers, width=256, heads=4, mlp_width=512, vocab_size=1024),
        data=DataConfig(path="none", sequence_length=256),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        precision=PrecisionConfig(recipe=recipe),
        training=TrainingConfig(steps=10, batch_size=8),
        mesh=mesh or MeshConfig(fsdp=2, tensor=2),
    )


@needs_libtpu
def test_a_train_step_compiles_for_four_v5e_chips():
    report = compile_for(experiment(), "v5e:2x2", timeout_seconds=300)
    assert (report.status, report.devices, report.device_kind) == ("fits", 4, "TPU v5 lite")
    assert report.mesh == {"replica": 1, "fsdp": 2, "tensor": 2}
    memory = report.memory
    assert all(memory[kind] > 0 for kind in ("arguments", "outputs", "aliased", "temporaries", "code", "peak"))
    assert memory["arguments"] + memory["temporaries"] == memory["peak"]
    assert memory["aliased"] == pytest.approx(memory["outputs"], rel=0.01)  # the state is donated
    assert report.products[0].types == "bf16 x bf16 -> bf16"
    kernels = {p.types.split()[-1]: p.count for p in report.products if "splash" in p.types}
    assert report.attention == "splash" and kernels == {"fwd": 2, "dq": 2, "dkv": 2}  # what is kept is not made again
    assert report.flops["program"] > report.flops["formula"]
    assert {c.kind for c in report.collectives} >= {"all-reduce", "all-gather"}
    assert all(c.bytes > 0 for c in report.collectives)
    gathered = {dtype: sum(c.bytes for c in report.collectives if (c.kind, c.dtype) == ("all-gather", dtype))
                for dtype in ("bf16", "f32")}  # fmt: skip
    assert gathered["f32"] < 0.1 * gathered["bf16"]  # weights travel as they are multiplied, not as they are kept
    assert report.seconds["step"] == max(report.seconds.values()) > 0
    assert 0 < report.utilization < 1
    tree = json.loads(as_json([report]))[0]
    assert tree.pop("utilization") == report.utilization
    assert report_of(tree) == report
    assert "bf16 x bf16 -> bf16" in details(report)


def test_the_peak_is_the_one_that_the_compiler_goes_by():
    # What libtpu 0.0.46.3 says of kumar-30m on v5e:2x2, which it accepts: temporaries alone are more than the chip has.
    found = ahead_of_time._memory(
        SimpleNamespace(
            argument_size_in_bytes=245_822_464,
            output_size_in_bytes=245_523_968,
            alias_size_in_bytes=245_521_408,
            temp_size_in_bytes=21_478_603_264,
            generated_code_size_in_bytes=20_045_312,
            peak_memory_in_bytes=15_099_310_080,
        )
    )
    fitting = Report("tiny", "bf16", 0, "v5e:2x2", 4, "TPU v5 lite", {}, 0, "fits", memory=found)
    assert "fits    14.06/16" in as_text([fitting])
    refused = replace(fitting, status="out of memory", memory=out_of_memory(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (15.83G) exceeds "
        "available HBM (15.75G). HLO module: jit_update."
    ))  # fmt: skip
    assert "out of memory  15.83/15.75" in as_text([refused])


@needs_libtpu
def test_what_fits_is_within_the_chip_and_what_does_not_is_beyond_it():
    kumar = load_experiment(Path(__file__).parents[2] / "configs/kumar2024/experiment.yaml")
    report = compile_for(kumar, "v5e:2x2", timeout_seconds=300)
    assert report.status == "fits" and report.memory["peak"] < 15.75 * GIB
    twice = kumar.model_copy(update={"training": kumar.training.model_copy(update={"batch_size": 512})})
    report = compile_for(twice, "v5e:2x2", timeout_seconds=300)
    assert report.status == "out of memory" and report.memory["needed"] > report.memory["available"] == 15.75 * GIB


@needs_libtpu
@pytest.mark.parametrize(
    ("recipe", "types", "at_least"), [("W8A8", "s8 x s8", 8), ("W4A4", "s4 x s4", 8), ("W8A8G8-tensor", "s8 x s8", 24)]
)
def test_native_integers_are_multiplied_and_gathered_as_they_are(recipe, types, at_least):
    native = experiment(mesh=MeshConfig(fsdp=4))
    precision = native.precision.model_copy(update={"execution": "native", "recipe": recipe})
    native = native.model_copy(update={"precision": precision})
    report = compile_for(native, "v5e:2x2", timeout_seconds=300)
    # Four sites of two layers, in the gradients twice more, and again where a product that was not saved is needed.
    products = [product for product in report.products if product.types.startswith(types)]
    assert sum(product.count for product in products) >= at_least
    assert any((c.kind, c.dtype) == ("all-gather", types[:2]) for c in report.collectives)


@needs_libtpu
def test_gradients_are_summed_in_the_dtype_asked_for():
    e = experiment(mesh=MeshConfig(fsdp=4))
    sums = {}
    for dtype in ("bfloat16", "float32"):
        training = e.training.model_copy(update={"reduce_dtype": dtype})
        report = compile_for(e.model_copy(update={"training": training}), "v5e:2x2", timeout_seconds=300)
        kinds = ("all-reduce", "reduce-scatter")
        sums[dtype] = {c.dtype: sum(o.bytes for o in report.collectives if o.kind in kinds and o.dtype == c.dtype)
                       for c in report.collectives if c.kind in kinds}  # fmt: skip
    narrow, wide = sums["bfloat16"], sums["float32"]
    assert wide.get("bf16", 0.0) < 0.2 * narrow["bf16"] and wide["f32"] > 1.5 * narrow["bf16"], sums


@needs_libtpu
def test_a_pack_sends_nothing_between_its_devices():
    report = compile_for(experiment(), "v5e:2x2", timeout_seconds=300, pack=3)
    assert (report.status, report.mesh, report.batch_tokens) == ("fits", {"run": 4}, 12 * experiment().batch_tokens)
    assert not report.collectives
    assert report.flops["program"] > report.flops["formula"]
    with pytest.raises(UserError, match="--pack 0: at least 1 run"):
        compile_for(experiment(), "v5e:2x2", pack=0)


@needs_libtpu
def test_bad_input_is_one_line_each():
    with pytest.raises(UserError, match="topology 'v5e:3x77': libtpu knows none of this name, such as v5e:2x2"):
        compile_for(experiment(), "v5e:3x77", timeout_seconds=120)
    with pytest.raises(UserError, match="topology 'v4:2x2x1': the compiler shows 8 cores for 4 chips"):
        compile_for(experiment(), "v4:2x2x1", timeout_seconds=120)
    with pytest.raises(UserError, match="does not make 4 devices"):
        compile_for(experiment(mesh=MeshConfig(fsdp=3)), "v5e:2x2", timeout_seconds=120)
    parts = experiment(mesh=MeshConfig(fsdp=4))
    parts = parts.model_copy(update={"training": parts.training.model_copy(update={"accumulate": 4})})
    with pytest.raises(UserError, match="batch_size / accumulate = 2 does not divide over 4"):
        compile_for(parts, "v5e:2x2", timeout_seconds=120)
    without = experiment()
    without = without.model_copy(update={"model": without.model.model_copy(update={"vocab_size": None})})
    with pytest.raises(UserError, match=r"model\.vocab_size is missing"):
        compile_for(without, "v5e:2x2")


@needs_libtpu
def test_a_compiler_that_takes_too_long_is_a_row():
    report = compile_for(experiment(), "v5e:2x2", timeout_seconds=0.5)
    assert report.status == "timed out"
    assert "timed out" in as_text([report])


@pytest.mark.parametrize(("status", "code"), [("fits", 0), ("out of memory", 0), ("failed", 2), ("timed out", 2)])
def test_the_exit_code_says_whether_there_is_an_answer(tmp_path, monkeypatch, capsys, status, code):
    def pretend(e: Experiment, topology: str, timeout_seconds: float, pack: int | None) -> Report:
        return Report(e.name, e.precision.recipe, 0, topology, 4, "TPU v5 lite", {}, e.batch_tokens, status)

    monkeypatch.setattr(ahead_of_time, "compile_for", pretend)
    path = tmp_path / "experiment.yaml"
    path.write_text(to_yaml(experiment()))
    assert main(["compile", str(path), "--topology", "v5e:2x2"]) == code
    assert status in capsys.readouterr().out


def test_a_sweep_stops_at_what_does_not_fit_and_compiles_no_program_twice(monkeypatch):
    tried = []

    def pretend(e: Experiment, topology: str, timeout_seconds: float, pack: int | None) -> Report:
        tried.append((e.name, e.precision.recipe))
        status = "out of memory" if e.model.layers >= 4 and e.precision.recipe != "bf16" else "fits"
        return Report(e.name, e.precision.recipe, 0, topology, 4, "TPU v5 lite", {}, e.batch_tokens, status)

    monkeypatch.setattr(ahead_of_time, "compile_for", pretend)
    sizes = [("large", 8), ("small", 2), ("middle", 4)]
    grid = [experiment(name, layers, r) for name, layers in sizes for r in ("W4A4", "W8A8", "bf16")]
    rows = compile_sweep(grid, "v5e:2x2")
    assert tried == [
        ("small", "W4A4"),
        ("small", "bf16"),
        ("middle", "W4A4"),
        ("middle", "bf16"),
        ("large", "bf16"),
    ]
    assert [(r.name, r.status) for r in rows if r.status not in ("fits", "out of memory")] == [("large", "not tried")]
    assert "middle does not fit" in as_text(rows)
