"""A bucket on this machine: `lag://FOLDER/FILE` serves files as gs:// and s3:// do, every request after a latency.

As a command it measures the loader:  python -m tests.data.emulator PREPARED --latency-ms 20
"""

import argparse
import asyncio
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from precisionlm.bench.loader import measure


class Lag(AsyncFileSystem):
    """Latency (seconds) of every request; requests seen, and the next ones that fail."""

    protocol = "lag"
    latency = 0.0
    requests = 0
    failing = 0

    async def _request(self) -> None:
        Lag.requests += 1
        await asyncio.sleep(Lag.latency)
        if Lag.failing:
            Lag.failing -= 1
            raise ConnectionResetError("the peer is gone")

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        await self._request()
        with open(path, "rb") as file:
            file.seek(start or 0)
            return file.read(-1 if end is None else end - (start or 0))

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        await self._request()
        return {"name": path, "size": os.stat(path).st_size, "type": "file"}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("lag://")


def register() -> None:
    """Makes `lag://` known to fsspec."""
    fsspec.register_implementation("lag", Lag, clobber=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=200)
    args = parser.parse_args()
    register()
    Lag.latency = args.latency_ms / 1e3
    place = f"lag://{args.prepared.absolute()}"
    sizes = (args.sequence_length, args.batch_size, args.batches)
    with tempfile.TemporaryDirectory() as cache:
        for name, folder, gib in (
            ("ranges only", cache, 0.0),
            ("cache empty at first", cache, 64.0),
            ("cache filled", cache, 64.0),
            ("local folder", None, 0.0),
        ):
            for thread in threading.enumerate():
                if thread.name == "shards":  # what the measurement before has begun
                    thread.join()
            Lag.requests, begun = 0, time.monotonic()
            found = measure(place if folder else args.prepared, *sizes, folder, gib)
            print(
                f"{name:22} {found['tokens_per_second'] / 1e6:7.1f} M tokens/s, first batch after "
                f"{found['first_batch_seconds']:.2f} s, {Lag.requests} requests, {time.monotonic() - begun:.1f} s"
            )


if __name__ == "__main__":
    main()
