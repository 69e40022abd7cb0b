"""Every example in every help text is run as it is printed, in a folder that has what it names: --dry-run is added
where the verb has it, and what would take a large machine is asked for at the smallest size."""

import argparse
import contextlib
import glob
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from precisionlm.cli.main import build_parser, main

from ..conftest import tiny_tree
from .pages import ROOT

SMALLER = {
    "data prepare": "--out data/other",
    "doctor": "--no-self-test",  # which tests/doctor runs
    "generate": "--tokens 2",
    "bench data": "--megabytes 12 --rounds 1 --vocab-size 300",
    "bench loader": "--sequence-length 32 --batch-size 8 --batches 2",
    "bench precision": "--size tiny --recipes W8A8 --rounds 1",
    "bench scaling": "--size tiny",
    "bench training": "--size tiny --steps 22 --every 2 --rounds 1",
    "bench sweep": "--sizes tiny --runs 2 --tokens 2e4 --jobs packed",
    "bench coverage": "--tables 1 --bootstrap 2",
}
LONG = {verb for verb in SMALLER if verb.startswith("bench")} - {"bench loader"} | {"bench fit", "compile"}
NEEDS = {"compile": ("libtpu", "precisionlm[tpu-aot]")}


def parsers(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """Verb -> its parser, verbs of verbs too."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                found |= parsers(below, f"{name} {verb}".strip()) or {f"{name} {verb}".strip(): below}
    return found


def examples() -> list[tuple[str, str]]:
    """(verb, line) of every example in a help text."""
    found = []
    for verb, parser in parsers(build_parser()).items():
        text = (parser.description or "") + (parser.epilog or "")
        lines = re.split(r"examples?:\n", text.replace("\\\n", " "))[1:]
        found += [(verb, line.strip()) for part in lines for line in part.split("\n") if "precisionlm " in line]
    return found


def case(verb: str, line: str):
    return pytest.param(verb, line, id=verb, marks=[pytest.mark.long] if verb in LONG else [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Configurations, prepared text, a finished run, tables, token files and a model of others, by the names that the
    examples have for them."""
    place = tmp_path_factory.mktemp("help") / "here"
    (place / "data").mkdir(parents=True)
    (place / "configs").symlink_to(ROOT / "configs")
    (place.parent / "older").symlink_to(ROOT)
    with contextlib.chdir(place):
        text = [str(path) for path in sorted((ROOT / "precisionlm/analysis").rglob("*.py"))]
        done(["data", "prepare", *text, "--out", "data/stdlib", "--vocab-size", "512", "--validation-every", "8"])
        tree = tiny_tree(Path("data/stdlib"))
        tree["model"] = {"layers": 1, "width": 128, "heads": 2, "mlp_width": 128}
        tree["data"]["sequence_length"] = 128
        tree["precision"]["recipe"] = "bf16"
        tree["training"]["steps"] = 2
        Path("tiny.yaml").write_text(yaml.safe_dump(tree))
        done(["train", "tiny.yaml", "--out", "runs"])
        (run,) = Path("runs").iterdir()
        done(["export", str(run), "--out", "Llama-3.2-1B"])
        Path("Llama-3.2-1B/README.md").unlink()  # a model of others: nobody states how it was trained
        config = Path("Llama-3.2-1B/config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 131_072}))
        for name in ("llama", "prepared"):
            Path("data", name).symlink_to("stdlib")
        cells = [{"N_params": 1e6, "D_tokens": 1e8, "w_bits": bits, "a_bits": 16, "kv_bits": 16} for bits in (4, 16)]
        Path("held_out.yaml").write_text(yaml.safe_dump({"cells": cells}))
        Path("tokens").mkdir()
        for i, split in enumerate(("train", "val")):
            shutil.copy(f"data/stdlib/{split}.bin", f"tokens/{i}.npy")
        shutil.copy("data/stdlib/tokenizer.json", "dolma2.json")
    return place


@pytest.fixture
def here(folder, tiny_runs, monkeypatch):
    monkeypatch.chdir(folder)
    table = tiny_runs.assign(w_exponent=0, w_mantissa=tiny_runs["w_bits"] - 1, w_group=32.0, in_published_fit=True)
    table = table.assign(w_format=np.where(table["w_bits"] < 16, "int", "bf16"))
    trained_on = json.loads(Path("data/stdlib/meta.json").read_text())["train"]["sha256"]
    table = table.assign(dataset=trained_on[:12])
    table.to_parquet("runs.parquet")
    said = table[["N_params", "D_tokens", "w_bits"]].drop_duplicates().head(4)
    said.assign(law="kumar", quantity="val_loss", predicted=3.0, lower=2.0, upper=4.0).to_csv(
        "predictions.csv", index=False
    )
    for name in ("runs.csv", "chinchilla_epoch.csv"):
        table.to_csv(name, index=False)
    return folder


def done(words: list[str]) -> None:
    assert main(words) == 0, " ".join(words)


@pytest.mark.parametrize(("verb", "line"), [case(*example) for example in examples()])
def test_example(here, verb, line, capsys):
    module, extra = NEEDS.get(verb, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (pip install '{extra}')")
    (run,) = Path("runs").iterdir()
    line = line.replace("runs/0123456789ab", str(run)).replace("gs://bucket/data", "data/stdlib")
    words = [word for typed in shlex.split(line)[1:] for word in (sorted(glob.glob(typed)) or [typed])]
    words += shlex.split(SMALLER.get(verb, ""))
    if "--dry-run" in parsers(build_parser())[verb].format_help() and "--dry-run" not in words:
        words.append("--dry-run")
    assert main(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_every_verb_has_an_example():
    assert {verb for verb, _ in examples()} == set(parsers(build_parser()))


def test_the_sweep_file_in_the_help_of_sweep(here, capsys):
    text = parsers(build_parser())["sweep"].description
    block = re.search(r"^  experiment:.*\n(?:  .*\n)+", text, re.MULTILINE)[0]
    Path("help.yaml").write_text("\n".join(line[2:] for line in block.split("\n")))
    assert main(["sweep", "help.yaml", "--out", "swept", "--dry-run"]) == 0
    assert "8 runs" in capsys.readouterr().out
