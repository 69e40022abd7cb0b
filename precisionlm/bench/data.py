"""`data prepare` beside the tokenizers library itself: the same text, the same processes, in turns."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from precisionlm.cluster.pool import pool
from precisionlm.data.documents import Source
from precisionlm.data.encode import BATCH
from precisionlm.data.prepare import prepare
from precisionlm.data.request import Request
from precisionlm.data.tokenizer import load_tokenizer, neutralise, train_bpe
from precisionlm.errors import UserError


def measure(
    source: Sequence[str],
    tokenizer: Path | None,
    vocab_size: int,
    workers: int,
    rounds: int,
    megabytes: float,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> dict[str, Any]:
    """Seconds, MB/s and tokens/s (of text in UTF-8) of `data prepare` from JSON lines to a folder on the disk, and of
    a pool of as many processes that call `encode_batch_fast` on the same batches and count the ids; the start of the
    processes counts in both. Medians over rounds, and prepare's speed over the library's, by the wall and by the
    time of the processors, which other work on the machine disturbs less. A tokenizer is trained where
    none is given. Raises UserError."""
    texts = list(_texts(source, megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise UserError("the source holds no text")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if tokenizer is None:
            tokenizer = folder / "trained.json"
            train_bpe(texts[: max(1, int(len(texts) * min(1.0, 2e7 / size)))], vocab_size).save(str(tokenizer))
        model = load_tokenizer(tokenizer)
        neutralise(model)
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        request = Request(folder / "text.jsonl", tokenizer=tokenizer, validation_every=64, allow_loss=True)
        seconds: dict[str, list[tuple[float, float]]] = {"library": [], "prepare": []}
        tokens = 0
        for n in range(rounds):
            progress(n / rounds, "library")
            begun = _clocks()
            tokens = _library(model, texts, workers)
            seconds["library"].append(_since(begun))
            progress((n + 0.5) / rounds, "prepare")
            begun = _clocks()
            prepare(request, folder / f"out-{n}", workers=workers)
            seconds["prepare"].append(_since(begun))
    wall = {name: statistics.median(one for one, _ in of) for name, of in seconds.items()}
    cpu = {name: statistics.median(one for _, one in of) for name, of in seconds.items()}
    return {
        "bytes": size,
        "documents": len(texts),
        "tokens": tokens,
        "workers": workers,
        "rounds": rounds,
        "load": os.getloadavg()[0],
        **{
            name: {
                "seconds": value,
                "megabytes_per_second": size / value / 1e6,
                "tokens_per_second": tokens / value,
                "cpu_seconds": cpu[name],
                "rounds": seconds[name],
            }
            for name, value in wall.items()
        },
        "ratio": wall["library"] / wall["prepare"],
        "cpu_ratio": cpu["library"] / cpu["prepare"],
    }


def _clocks() -> tuple[float, float]:
    """Seconds of the wall, and of processors in this process and those it has waited for."""
    times = os.times()
    return time.monotonic(), times.user + times.system + times.children_user + times.children_system


def _since(begun: tuple[float, float]) -> tuple[float, float]:
    now = _clocks()
    return now[0] - begun[0], now[1] - begun[1]


def _texts(source: Sequence[str], most: float) -> Iterator[str]:
    for document in Source.resolve(list(source)).documents("text", 0, 0):
        if most <= 0:
            return
        if isinstance(document.content, str):
            yield document.content
            most -= len(document.content.encode())


def _library(model: Tokenizer, texts: list[str], workers: int) -> int:
    batches: list[list[str]] = [[]]
    length = 0
    for text in texts:
        batches[-1].append(text)
        length += len(text)
        if length >= BATCH:
            batches.append([])
            length = 0
    with pool(workers, _begin, model.to_str()) as processes:
        return sum(processes.map(_count, batches))


_MODEL: list[Tokenizer] = []  # of a process of the pool


def _begin(state: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _MODEL[:] = [Tokenizer.from_str(state)]


def _count(texts: list[str]) -> int:
    return sum(map(len, _MODEL[0].encode_batch_fast(texts, add_special_tokens=False)))
