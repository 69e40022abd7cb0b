"""A datatrove pipeline, run by its local executor, writes a prepared folder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

pytest.importorskip("datatrove", reason="needs datatrove: pip install 'precisionlm[datatrove]'")

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader

from precisionlm.data.dataset import Dataset
from precisionlm.data.tokenizer import train_bpe
from precisionlm.data.trove import ShardIndex, TokenShards
from precisionlm.errors import UserError

TEXTS = [f"{n} " + " ".join(f"word{n * k % 61}" for k in range(80)) for n in range(300)]

# datatrove and its libraries warn of their own workings.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    for part in range(3):
        lines = [json.dumps({"text": text, "id": str(n)}) for n, text in enumerate(TEXTS[part::3])]
        (tmp_path / "text" / f"{part}.jsonl").write_text("\n".join([*lines, '{"text": "", "id": "e"}']) + "\n")
    train_bpe(TEXTS, 400).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def pipeline(corpus: Path, out: str, workers: int, tasks: int = 3) -> None:
    def executor(steps: list[object], of: int, depends: object = None) -> LocalPipelineExecutor:
        logs = str(corpus / f"logs-{out}-{of}-{len(steps)}")
        return LocalPipelineExecutor(steps, of, workers if of > 1 else 1, logging_dir=logs, depends=depends)

    folder, tokenizer = str(corpus / out), str(corpus / "tokenizer.json")
    shards = [JsonlReader(str(corpus / "text")), TokenShards(folder, tokenizer, validation_every=8, shard_tokens=5000)]
    executor([ShardIndex(folder, tokenizer, tasks, validation_every=8)], 1, executor(shards, tasks)).run()


def test_shards_of_many_tasks_are_one_folder(corpus: Path) -> None:
    for out, workers in (("a", 1), ("b", 3)):
        pipeline(corpus, out, workers)
    data = Dataset.open(corpus / "a")
    data.verify()
    assert data.meta == Dataset.open(corpus / "b").meta
    shards = data.meta.train.shards
    assert len(shards) > 3 and {shard.file.split("-")[1] for shard in shards} == {"00000", "00001", "00002"}
    assert sum(shard.tokens == 5000 for shard in shards) >= len(shards) - 3
    assert (
        data.meta.train.documents + data.meta.validation.documents == len(TEXTS) and data.meta.validation.documents > 9
    )
    tokenizer = Tokenizer.from_file(str(corpus / "a" / "tokenizer.json"))
    found = []
    for split in ("train", "validation"):
        tokens = np.asarray(data.tokens(split))
        ends = np.flatnonzero(tokens == data.meta.eos_id)
        found += [tokenizer.decode(part[:-1].tolist()) for part in np.split(tokens, ends[:-1] + 1)]
    assert sorted(found) == sorted(TEXTS)


def test_an_index_of_what_is_not_through(corpus: Path) -> None:
    pipeline(corpus, "a", 1)
    folder, tokenizer = str(corpus / "a"), str(corpus / "tokenizer.json")
    with pytest.raises(UserError, match="written by 3 tasks"):
        ShardIndex(folder, tokenizer, 4).run()
    (corpus / "a" / "task-00001.json").rename(corpus / "kept")
    with pytest.raises(UserError, match="task 1 of 3 is not through"):
        ShardIndex(folder, tokenizer, 3).run()
    (corpus / "kept").rename(corpus / "a" / "task-00001.json")
    shard = corpus / "a" / "train-00002-00000.bin"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(UserError, match="is not what its task wrote"):
        ShardIndex(folder, tokenizer, 3).run()
