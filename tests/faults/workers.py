"""Processes of the campaign: forked from one that has imported everything and started nothing, each runs commands of
`precisionlm.cli.main` until it dies or is let go. They save the seconds of the imports, nothing else."""

import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .strikes import Strike, watching

DEADLINE = 120.0  # seconds; a command that takes longer hangs
_HUNG = 124  # its exit code
_PIPE = 1 << 20  # bytes that a command may say
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: its exit code, or -signal; struck: whether it was; said: on both its streams; calls:
    of each target, if the process lived to tell; left: processes that outlived it."""

    code: int
    struck: bool
    said: str
    calls: dict[str, int] = field(default_factory=dict)
    left: int = 0


class Worker:
    """One process. cache: folder of compiled programs, shared by all."""

    def __init__(self, cache: Path):
        requests, self._ask = os.pipe()
        self._answer, answers = os.pipe()
        self._said, said = os.pipe()
        os.set_blocking(self._said, False)
        fcntl.fcntl(said, _SET_PIPE_SIZE, _PIPE)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(requests, answers, said, cache)
        for theirs in (requests, answers, said):
            os.close(theirs)
        self.alive = True

    def begin(self, words: Sequence[str], targets: Sequence[str], strike: Strike | None, last: bool = False) -> None:
        """Begin a command. last: the process ends with it, by its exit code."""
        request = {"words": list(words), "targets": list(targets), "strike": strike and asdict(strike), "last": last}
        os.write(self._ask, json.dumps(request).encode() + b"\n")

    def end(self, struck: Strike | None) -> Ended:
        """Wait for the command that was begun. A worker that has died is to be replaced."""
        answer = self._read_answer()
        code = answer.get("code", 0)
        if answer.get("last") or not answer:
            code = self._wait()
        elif code == _HUNG:
            self._wait()
        said = self._read_said()
        # One that died at once cannot tell; what killed it was the strike.
        hit = answer.get("struck", struck is not None)
        return Ended(code, hit, said, answer.get("calls", {}), 0 if self.alive else self._left())

    def _read_answer(self) -> dict[str, Any]:
        content, deadline = b"", time.monotonic() + DEADLINE
        while not content.endswith(b"\n"):
            ready, _, _ = select.select([self._answer], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.killpg(self.pid, signal.SIGKILL)
                return {"code": _HUNG, "struck": True}
            piece = os.read(self._answer, 1 << 16)
            if not piece:
                return {}
            content += piece
        found: dict[str, Any] = json.loads(content)
        return found

    def _wait(self) -> int:
        self.alive = False
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _read_said(self) -> str:
        content = b""
        while True:
            try:
                piece = os.read(self._said, _PIPE)
            except BlockingIOError:
                break
            if not piece:
                break
            content += piece
        return content.decode(errors="replace")

    def _left(self) -> int:
        """Processes of its session that are there two seconds after it."""
        deadline = time.monotonic() + 2.0
        while (count := len(members(self.pid))) and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in members(self.pid):
            os.kill(pid, signal.SIGKILL)
        return count

    def let_go(self) -> None:
        """End the process if it lives."""
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
            self._wait()
        for ours in (self._ask, self._answer, self._said):
            os.close(ours)


def members(session: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(of) == session and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _serve(requests: int, answers: int, said: int, cache: Path) -> None:
    """The life of a worker; does not return."""
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        os.environ["XDG_CACHE_HOME"] = str(cache.parent / "xdg")
        os.dup2(said, 1)
        os.dup2(said, 2)
        import jax

        from precisionlm.cli.main import main

        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        _without_pauses()
        with open(requests) as asked:
            for line in asked:
                request = json.loads(line)
                strike = request["strike"] and Strike(**request["strike"])
                with watching(request["targets"], strike) as watch:
                    try:
                        code = main(request["words"])
                    except KeyboardInterrupt:  # after the command's own boundary, as a Ctrl-C at a shell's prompt
                        code = -signal.SIGINT
                sys.stdout.flush()
                answer = {"code": code, "struck": watch.struck, "calls": watch.calls, "last": request["last"]}
                os.write(answers, json.dumps(answer).encode() + b"\n")
                if request["last"]:
                    break
    finally:
        sys.stdout.flush()
        os._exit(code & 255)


def _without_pauses() -> None:
    """What is done every so many seconds, or for large texts alone, is done every time."""
    from precisionlm.data import encode, prepare
    from precisionlm.packing import engine

    prepare.JOURNAL_SECONDS = -1.0
    prepare._POOL_BYTES, encode.BATCH = 0, 4096  # a small text is encoded by a pool too
    engine.Keep.__init__.__defaults__ = (True, -1.0)  # type: ignore[misc]


def import_everything() -> None:
    """What commands import when they are called, before anything is forked."""
    import precisionlm.cli.jobs
    import precisionlm.cluster.cloud_notice
    import precisionlm.cluster.executables
    import precisionlm.data.prepare
    import precisionlm.packing.engine
    import precisionlm.progress
    import precisionlm.ptq.evaluate
    import precisionlm.storage.result
    import precisionlm.sweep.collect
    import precisionlm.sweep.grid
    import precisionlm.sweep.rounding
    import precisionlm.sweep.workers
    import precisionlm.training.execute  # noqa: F401
