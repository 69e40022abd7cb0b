"""precisionlm doctor: what it says of healthy and of broken installations."""

import json
import math
import re
import shutil
import tomllib
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from precisionlm.cli.main import main
from precisionlm.doctor import machine, packages, self_test
from precisionlm.doctor.finding import Finding, found_by, worst
from precisionlm.precision import grid

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]


def test_a_healthy_installation(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {one["name"]: one for one in found["findings"]}
    assert list(by_name) == [
        "python", "precisionlm", "jax", "devices", "attention", "executables", "disk", "extras", "self-test",
    ]  # fmt: skip
    assert "8 x cpu" in by_name["devices"]["text"]
    assert by_name["attention"]["text"] == "explicit products: no fused kernel on cpu"
    told = by_name["self-test"]
    assert told["status"] == "ok", told
    assert re.search(r"16 steps at W4A8 on cpu x 8, .* 8 operands .* quantized as asked; W2A8 adds -?\d", told["text"])


def test_a_line_each_and_the_exit_code_of_a_problem(capsys, monkeypatch):
    assert main(["doctor", "--no-self-test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if not line.startswith(" ")] == [
        "python", "precisionlm", "jax", "devices", "attention", "executables", "disk", "extras",
    ]  # fmt: skip
    monkeypatch.setattr(packages, "installed", lambda name: None if name == "optax" else "1.0")
    assert main(["doctor", "--no-self-test"]) == 2
    out = capsys.readouterr().out
    assert "problem  jax " in out and "optax missing" in out and "\n" + " " * 22 + "pip install optax\n" in out


def test_what_is_asked_is_what_the_package_asks():
    least = ".".join(map(str, packages.PYTHON[0]))
    assert PROJECT["requires-python"] == f">={least}"
    dots = [".".join(map(str, of)) for of in packages.JAX]
    assert f"jax>={dots[0]},<{dots[1]}" in PROJECT["dependencies"]
    newest = f"jax[cuda13]>={'.'.join(map(str, packages.CUDA_JAX))}; python_version >= '3.12'"
    assert PROJECT["optional-dependencies"]["cuda"] == [newest, "jax[cuda13]; python_version < '3.12'"]
    others = {"cuda", "tpu", "dev", "docs"}
    asked = {
        name: tuple(re.split("[=<>]", one)[0] for one in those)
        for name, those in PROJECT["optional-dependencies"].items()
        if name not in others
    }
    assert asked == packages.EXTRAS
    assert {re.split("[=<>]", one)[0] for one in PROJECT["dependencies"]} >= set(packages.LIBRARIES)


@pytest.mark.parametrize(
    ("here", "status", "advice"),
    [((3, 10), "problem", "install Python 3.11 or newer"), ((3, 14), "warning", "tested are 3.11 to 3.13")],
)
def test_another_python(here, status, advice, monkeypatch):
    monkeypatch.setattr(packages.sys, "version_info", here)
    found = packages.python()
    assert (found.status, found.advice) == (status, advice)


@pytest.mark.parametrize(
    ("version", "jaxlib", "status", "advice"),
    [
        ("0.10.2", "0.10.2", "ok", ""),
        ("0.9.1", "0.9.1", "warning", "tested is jax of at least 0.10.2, below 0.13"),
        ("0.13.0", "0.13.0", "warning", "pip install 'jax>=0.10.2,<0.13'"),
        ("0.11.0", "0.11.2", "problem", "pip install jaxlib==0.11.0"),
    ],
)
def test_another_jax(version, jaxlib, status, advice, monkeypatch):
    monkeypatch.setattr(jax, "__version__", version)
    monkeypatch.setattr(packages, "installed", lambda name: jaxlib)
    found = packages.jax()
    assert found.status == status and advice in found.advice


def test_an_accelerator_that_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "UNUSED", (("an NVIDIA GPU", "cuda", (str(tmp_path),)),))
    found = machine.devices()
    assert found.status == "warning" and "JAX_PLATFORMS=cpu chooses so" in found.advice
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "pip install 'precisionlm[cuda]'" in machine.devices().advice


def test_disk(monkeypatch):
    usage = namedtuple("usage", "total used free")
    for free, status in ((2**40, "ok"), (2**30, "warning"), (2**20, "problem")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(2**41, 0, free))
        assert machine.disk().status == status
    monkeypatch.setattr(machine, "unwritable", lambda folder: "cannot be written: Read-only file system")
    assert machine.disk().status == "problem"


def test_executables(monkeypatch, tmp_path):
    assert machine.executables().text == "not kept: on CPUs programs compile fast"
    named = "jax_compilation_cache_dir"
    before = getattr(jax.config, named)
    try:
        (tmp_path / "one").write_bytes(bytes(10))
        jax.config.update(named, str(tmp_path))
        assert machine.executables() == Finding("executables", "ok", f"{tmp_path}: 1 files, 0.0 GiB")
        (tmp_path / "file").touch()
        jax.config.update(named, str(tmp_path / "file" / "below"))
        assert machine.executables().status == "warning"
    finally:
        jax.config.update(named, before)


def test_a_check_that_falls_over_is_a_problem():
    def check() -> Finding:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    found = found_by("devices", check)
    assert (found.status, found.text) == ("problem", "RuntimeError: Unable to initialize backend 'cuda'")
    assert worst([Finding("a", "ok", ""), found, Finding("b", "warning", "")]) == "problem"
    assert worst([]) == "ok"


def test_rounding_is_compared_with_float64(monkeypatch):
    assert [self_test.rounded_wrong(name) for name in ("int4", "e2m1", "e4m3", "int8", "e3m2")] == [0] * 5
    monkeypatch.setattr(grid, "round_to_grid", lambda x, g: jnp.clip(jnp.floor(x), g.qmin, g.qmax))
    assert self_test.rounded_wrong("int4") > 1000
    monkeypatch.setattr(grid, "round_to_grid", lambda x, g: x)
    assert self_test.rounded_wrong("int4") > 4000


FIRST = math.log(self_test.ENTRIES)


@pytest.mark.parametrize(
    ("losses", "trained", "further", "wrong"),
    [
        ([FIRST, 2.0], 2.1, 2.3, ""),
        ([FIRST, 2.0], None, 2.3, "a loss is not finite"),
        ([FIRST, math.nan], 2.1, 2.3, "a loss is not finite"),
        ([9.0, 2.0], 2.1, 2.3, "the first loss is 9.000"),
        ([FIRST, FIRST], 4.1, 4.2, "it should fall towards 1.386"),
        ([FIRST, 0.5], 0.5, 0.6, "it should fall towards 1.386"),
        ([FIRST, 2.0], 2.1, 2.1, "quantization was not applied"),
    ],
)
def test_losses_that_cannot_be(losses, trained, further, wrong):
    said = self_test.wrong_with(losses, trained, further, math.log(self_test.NEXT))
    assert (wrong in said) if wrong else said == ""
