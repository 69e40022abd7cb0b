"""What the fuzzer damages: a prepared folder, a configuration, a sweep, a table and two finished runs, none trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from precisionlm.config import build, to_yaml
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.run import identified

from ..conftest import tiny_tree

SWEEP = {"experiment": "run.yaml", "grid": {"tokens": [1e4, 2e4], "precision.recipe": ["bf16", "W3A8"]}, "seeds": 2,
         "where": "D/N < 500", "budget": {"flops": 1e19}, "evaluate": {"ptq": ["W3", "mxfp4"]}}  # fmt: skip
TABLE = "N_params,D_tokens,w_bits,a_bits,kv_bits,val_loss\n" + "".join(
    f"{n},{d},{w},16,16,{2 + 40 / n**0.25 + 300 / d**0.3 + w**-2:.4f}\n"
    for n in (30_000, 60_000, 120_000) for d in (10**6, 3 * 10**6, 10**7) for w in (3, 4, 16)
)  # fmt: skip
CELLS = {"cells": [{"N_params": [30_000, 60_000], "D_tokens": [1e6, 2e6], "w_bits": 4, "a_bits": 16, "kv_bits": 16}]}
PREDICTIONS = "law,quantity,predicted,lower,upper,interval,N_params,D_tokens,w_bits\n" + "".join(
    f"kumar,val_loss,{2 + 40 / n**0.25:.3f},4.1,9.1,95 %,{n},{d},{w}\n"
    for n in (30_000, 60_000) for d in (10**6, 10**7) for w in (3, 16)
)  # fmt: skip
DOCUMENTS = "".join(json.dumps({"text": f"word{i} follows word{i % 7}. " * 20}) + "\n" for i in range(12))


def make(folder: Path, data: Path) -> None:
    """The files under `folder`. data: a prepared folder, copied."""
    shutil.copytree(data, folder / "data")
    tree = tiny_tree(folder / "data")
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    (folder / "table.csv").write_text(TABLE)
    (folder / "cells.yaml").write_text(yaml.safe_dump(CELLS))
    (folder / "predictions.csv").write_text(PREDICTIONS)
    (folder / "docs.jsonl").write_text(DOCUMENTS)
    shutil.copy(data / "tokenizer.json", folder / "tokenizer.json")
    for recipe in ("bf16", "W4A8"):
        _finished(folder / "runs", tree | {"precision": {"recipe": recipe}})


def _finished(runs: Path, tree: dict[str, Any]) -> None:
    experiment = build(tree, "world")
    run_id, experiment = identified(experiment)
    directory = RunDirectory(runs, run_id)
    recipe, e = experiment.precision.recipe, experiment.training
    directory.write_text("config.yaml", to_yaml(experiment))
    directory.write_text("metrics.jsonl", "".join(f'{{"step": {i + 1}, "loss": 3.0}}\n' for i in range(e.steps)))
    trained = {"evaluation": "trained", "val_loss": 3.0, "val_loss_se": 0.1, "val_tokens": 1999}
    row = {"run_id": run_id, "recipe": recipe, "execution": "simulated", "steps": e.steps, "N_params": 20480,
           "D_tokens": 3072, "seed": 0, "tokenizer": "0" * 12}  # fmt: skip
    Result(status="done", reason="", row=row, evaluations=[trained]).write(directory)
    directory.write_json("ptq/rtn-int4.json", trained | {"evaluation": "ptq", "ptq_method": "rtn", "ptq_bits": 4.0})
    directory.write_json("evaluations/W3-1999-abcdef.json", trained | {"evaluation": "recipe", "eval_recipe": "W3"})
