"""Text → token ids, many documents at once, over processes, in order; long texts in windows.

A window of a long text is encoded with what follows it, and two neighbours are joined where they agree: at the token
nearest to the middle of what they share that both begin at the same character, with equal tokens around it. So the
tokens are those of the whole text, at a cost that grows with its length alone. Where no such place is (a text without
spaces may have none), the window ends there, which is counted.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from precisionlm.cluster.pool import pool
from precisionlm.data.documents import Document, LongText
from precisionlm.data.meta import SPLIT_FILES
from precisionlm.data.tokenizer import first_change

WINDOW, OVERLAP = 1 << 17, 1 << 12  # characters
BATCH = 1 << 19  # characters of documents encoded at once
_AGREE = 4  # tokens on both sides of a joint
_FIRST, _SAMPLED = 16, 64  # documents that are decoded again: the first, then one in so many
_AHEAD = 3  # jobs a worker
_MOST = 1 << 16  # records of one job
_NONE = np.empty(0, np.uint32)


@dataclass
class Loss:
    """What a tokenizer does not give back: documents decoded again, those that came back changed, the first change."""

    sampled: int = 0
    changed: int = 0
    example: str = ""


@dataclass(frozen=True)
class Item:
    """A record on its way. fate: the split that it goes to, or why it goes to none; part, file, number: the source, its
    file, and which record of that file it is, from 1 on; position: bytes of all sources read up to its end."""

    fate: str
    document: Document
    part: str
    file: int
    number: int
    position: int


@dataclass(frozen=True)
class Encoded:
    """A record's ids, whole or in parts; none for one that goes to no split. left: bytes of the source that its later
    parts are of; last: with this part it ends."""

    item: Item
    ids: np.ndarray
    left: int = 0
    last: bool = True


@dataclass
class Coder:
    """Encodes with a tokenizer, in this process or in `workers` of them. check: whether texts are decoded again."""

    tokenizer: Tokenizer
    workers: int = 1
    check: bool = False
    loss: Loss = field(default_factory=Loss)
    hard_cuts: int = 0
    _seen: int = 0

    def encode(self, documents: Iterable[Item]) -> Iterator[Encoded]:
        """All documents, in order. Every text's special tokens are text: one that spells <|endoftext|> does not end."""
        self.tokenizer.encode_special_tokens = True
        if self.workers == 1:
            yield from self._run(documents, None)
            return
        with pool(self.workers, _begin, self.tokenizer.to_str()) as processes:
            try:
                yield from self._run(documents, processes)
            finally:
                processes.shutdown(wait=True, cancel_futures=True)

    def _run(self, documents: Iterable[Item], pool: Executor | None) -> Iterator[Encoded]:
        running: deque[tuple[Any, Any]] = deque()  # (what to do with the result, its future or itself)
        stitcher: list[_Stitcher] = []
        for job, act, argument, sampled in self._jobs(documents):
            if act is None or pool is None:
                result = argument if act is None else act(self.tokenizer, argument, sampled)
            else:
                result = pool.submit(_in_worker, act, argument, sampled)
            running.append((job, result))
            while len(running) > _AHEAD * self.workers * (pool is not None):
                yield from self._finish(*running.popleft(), stitcher)
        while running:
            yield from self._finish(*running.popleft(), stitcher)

    def _jobs(self, documents: Iterable[Item]) -> Iterator[tuple[Any, Any, Any, Any]]:
        """(items, function, argument, which texts to decode again): batches of documents, windows of long ones."""
        batch: list[Item] = []
        length = 0
        for item in documents:
            content = item.document.content if item.fate in SPLIT_FILES else _NONE
            if isinstance(content, LongText) or (isinstance(content, str) and len(content) > WINDOW):
                if batch:
                    yield self._batch(batch)
                    batch, length = [], 0
                size = content.size if isinstance(content, LongText) else 0
                pieces = content.pieces() if isinstance(content, LongText) else iter([(content, 0)])
                for start, text, read, last in _windows(pieces):
                    yield (item, start, text, size - read, last), _encode_window, text, self.check and start == 0
                continue
            batch.append(item)
            length += len(content)
            if length >= BATCH or len(batch) >= _MOST:
                yield self._batch(batch)
                batch, length = [], 0
        if batch:
            yield self._batch(batch)

    def _batch(self, batch: list[Item]) -> tuple[Any, Any, Any, Any]:
        texts = [item.document.content for item in batch if _is_text(item)]
        first, self._seen = self._seen, self._seen + len(texts)
        sampled = [i for i in range(len(texts)) if first + i < _FIRST or (first + i) % _SAMPLED == 0]
        return batch, _encode_texts, texts, sampled if self.check else []

    def _finish(self, job: Any, result: Any, stitcher: "list[_Stitcher]") -> Iterator[Encoded]:
        found, loss = result.result() if isinstance(result, Future) else result
        self.loss.sampled += loss.sampled
        self.loss.changed += loss.changed
        self.loss.example = self.loss.example or loss.example
        if isinstance(job, list):
            encoded = iter(found)
            for item in job:
                tokens = item.document.content if item.fate in SPLIT_FILES else _NONE
                yield Encoded(item, next(encoded) if _is_text(item) else tokens)
            return
        item, start, text, left, last = job
        if start == 0:
            stitcher[:] = [_Stitcher(self.tokenizer)]
        for ids in stitcher[0].add(start, text, found, last):
            yield Encoded(item, ids, left, last=False)
        if last:
            self.hard_cuts += stitcher[0].hard_cuts
            yield Encoded(item, _NONE)


class _Stitcher:
    """Joins the windows of one text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._before: tuple[np.ndarray, np.ndarray, np.ndarray] | None = (
            None  # ids, starts, firsts, from the last joint
        )
        self._end = 0
        self.hard_cuts = 0

    def add(self, start: int, text: str, window: tuple[np.ndarray, np.ndarray], last: bool) -> Iterator[np.ndarray]:
        """The ids that are certain after a window that begins at character `start`."""
        ids, spans = window
        now = (ids, spans[0] + start, _firsts(spans))
        if self._before is not None:
            middle = (start + self._end) // 2
            joint = _joint(self._before, now, middle, (self._end - start) // 4)
            if joint is None or not joint[2]:
                self.hard_cuts += 1
            if joint is None:  # the text is encoded anew from where a token of the window before begins
                i = self._token_at(middle)
                at = int(self._before[1][i]) if i < len(self._before[1]) else self._end
                (ids, spans), _ = _encode_window(self._tokenizer, text[at - start :], False)
                now, joint = (ids, spans[0] + at, _firsts(spans)), (i, 0, False)
            yield self._before[0][: joint[0]]
            now = tuple(array[joint[1] :] for array in now)  # type: ignore[assignment]
        self._before, self._end = now, start + len(text)
        if last:
            yield now[0]

    def _token_at(self, middle: int) -> int:
        """The first token of the window before that begins there or later."""
        assert self._before is not None
        firsts = np.flatnonzero(self._before[2] & (self._before[1] >= middle))
        return int(firsts[0]) if len(firsts) else len(self._before[0])


def _is_text(item: Item) -> bool:
    return item.fate in SPLIT_FILES and isinstance(item.document.content, str)


def _joint(before: Any, now: Any, middle: int, reach: int) -> tuple[int, int, bool] | None:
    """(token of the one, token of the other, whether they agree around it) nearest to a character where tokens of both
    windows begin; None where none do."""
    (ids_a, starts_a, firsts_a), (ids_b, starts_b, firsts_b) = before, now
    near_a = np.flatnonzero(firsts_a & (abs(starts_a - middle) <= reach))
    near_b = np.flatnonzero(firsts_b & (abs(starts_b - middle) <= reach))
    shared, a, b = np.intersect1d(starts_a[near_a], starts_b[near_b], return_indices=True)
    pairs = [(int(near_a[a[k]]), int(near_b[b[k]])) for k in np.argsort(abs(shared - middle), kind="stable")]
    for agree in (_AGREE, 1):
        for i, j in pairs:
            after = min(agree, len(ids_a) - i, len(ids_b) - j)
            if min(i, j) >= agree and (ids_a[i - agree : i + after] == ids_b[j - agree : j + after]).all():
                return i, j, True
    return (*pairs[0], False) if pairs else None


def _firsts(spans: np.ndarray) -> np.ndarray:
    """Which tokens begin where the one before has ended: not those inside a character of several."""
    ends = np.maximum.accumulate(np.concatenate([[0], spans[1][:-1]])) if spans.size else spans[1]
    return (spans[0] >= ends) & (spans[1] > spans[0])


def _windows(pieces: Iterator[tuple[str, int]]) -> Iterator[tuple[int, str, int, bool]]:
    """(first character, text, bytes read, whether it is the last) of overlapping windows over a text in pieces."""
    held, start, read = "", 0, 0
    for piece, read in pieces:
        held, at = held + piece, 0
        while len(held) - at > WINDOW:
            yield start, held[at : at + WINDOW], read, False
            at, start = at + WINDOW - OVERLAP, start + WINDOW - OVERLAP
        held = held[at:]
    yield start, held, read, True


def _encode_texts(tokenizer: Tokenizer, texts: list[str], sampled: list[int]) -> tuple[list[np.ndarray], Loss]:
    found = [_ids(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    loss = Loss()
    for i in sampled:
        _compare(tokenizer, texts[i], found[i], loss)
    return found, loss


def _encode_window(tokenizer: Tokenizer, text: str, check: bool) -> tuple[tuple[np.ndarray, np.ndarray], Loss]:
    """(ids [n], first and last character of each [2, n])."""
    encoding, loss = tokenizer.encode(text, add_special_tokens=False), Loss()
    ids = _ids(encoding)
    if check:
        _compare(tokenizer, text, ids, loss)
    spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids))
    return (ids, spans.reshape(-1, 2).T), loss


def _ids(encoding: Encoding) -> np.ndarray:
    return np.fromiter(encoding.ids, np.uint32, len(encoding))


def _compare(tokenizer: Tokenizer, text: str, ids: np.ndarray, loss: Loss) -> None:
    back = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    loss.sampled += 1
    if back != text:
        loss.changed += 1
        loss.example = loss.example or first_change(text, back)


_TOKENIZER: list[Tokenizer] = []  # of a worker process


def _begin(state: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = Tokenizer.from_str(state)
    tokenizer.encode_special_tokens = True
    _TOKENIZER[:] = [tokenizer]


def _in_worker(act: Any, argument: Any, sampled: Any) -> Any:
    return act(_TOKENIZER[0], argument, sampled)
