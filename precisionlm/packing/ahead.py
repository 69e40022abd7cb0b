"""Packs of a sweep, made ready before they are trained: what comes soon is compiled together, the rest traced."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self

from precisionlm.packing.prepare import Prepared
from precisionlm.packing.program import PackShape
from precisionlm.precision.recipe import Quantization
from precisionlm.training.run import Run

_WAVE = 4  # packs that are compiled together: as many as have their corpora and programs in memory


class Ahead:
    """What packs need that are trained one after the other; a wave of them is compiled before its first one trains,
    since nothing may compile meanwhile (`prepare`), and traced while the one before it trains.

    packs: shape and any run of each; None for what is not trained as a pack.
    """

    def __init__(self, packs: Sequence[tuple[PackShape, Run] | None], ptq: Sequence[Quantization]):
        self._packs, self._ptq = packs, ptq
        left = [i for i, pack in enumerate(packs) if pack is not None]
        self._waves = [left[i : i + _WAVE] for i in range(0, len(left), _WAVE)]
        self._traced: dict[int, Future[Prepared]] = {}
        self._tracer = ThreadPoolExecutor(1, "trace")
        self._compilers = ThreadPoolExecutor(os.cpu_count(), "compile")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tracer.shutdown(cancel_futures=True)
        self._compilers.shutdown(cancel_futures=True)

    def trace_after(self, i: int) -> None:
        """Begin with the wave after that of a pack, if there is one."""
        for wave in [wave for wave in self._waves if wave[0] > i][:1]:
            self._trace(wave)

    def take(self, i: int) -> Prepared:
        """That of a pack, once nothing is being compiled any more; the next one is given later. Raises what tracing
        raises."""
        wave = [j for j in next(wave for wave in self._waves if i in wave) if j >= i]
        self._trace(wave)
        compiling: list[Future[Any]] = []
        for traced in [self._traced[j] for j in wave]:
            if traced.exception() is None:  # another one's is raised when that is taken
                compiling += traced.result().begin_compiling(self._compilers)
        wait(compiling)
        return self._traced.pop(i).result()

    def _trace(self, wave: Sequence[int]) -> None:
        for j in wave:
            pack = self._packs[j]
            if pack is not None and j not in self._traced:
                self._traced[j] = self._tracer.submit(Prepared, *pack, self._ptq)
