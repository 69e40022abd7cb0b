"""A connection from every process to process 0, over which they learn what no collective can tell them: whether all
have come, that one is gone or has failed alone, and at which poll all of them stop.

JAX's own service ends a process by a C++ abort where a peer does not come or is lost, the latter after 100 s. Here the
system itself closes the connection of a process that dies, however it dies, and the others end within a second, with
the code that launchers retry; a machine that falls silent is noticed by TCP after 30 s, a process that is stopped and
not dead, or whose interpreter hangs, by its missing beats. (One that computes for ever says its beats: collectives have
time limits of their own.)

Messages are lines of JSON. A process says `beat` (it lives), `stop` (it was asked to go), `polls` (how often it has
polled) and `leave` (its exit code and why). Process 0 says `freeze` and `stop_at` (of a stop), `lost` (why all must
end) and `left` (all leave alike). What is said before all have met is in `meeting`.
"""

import json
import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from precisionlm.cluster.preemption import end_at_once
from precisionlm.errors import DONE

ALIKE = 5.0  # seconds in which processes that end alike have ended
BEAT, SILENT = 5.0, 45.0  # seconds between two beats, and without any until a process counts as lost
_FIRST = 0.2  # seconds that the others have to end before process 0 does
_LONGEST = 1 << 16  # bytes of a message; who sends more is none of ours
_CONTINUES = "the same command continues from what is saved"


class Peer:
    """One connection, and what came over it and is no whole line yet."""

    def __init__(self, connection: socket.socket, process: int = 0):
        """process: whose the other end is."""
        self._connection, self._rest, self._sending = connection, b"", threading.Lock()
        self.process = process

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, **message: Any) -> None:
        """To a peer that may be gone: reading notices that."""
        with self._sending, suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come; None where the other end is gone, or is none of ours."""
        try:
            content = self._connection.recv(_LONGEST)
            *lines, self._rest = (self._rest + content).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        ours = content and len(self._rest) <= _LONGEST and all(isinstance(message, dict) for message in messages)
        return messages if ours else None

    def close(self) -> None:
        self._connection.close()


class Lifeline:
    """This process's end of it, from when all have met. `port` is that of JAX's service on process 0's host."""

    def __init__(self, process: int, processes: int, peers: list[Peer], port: int, said: list[dict[str, Any]]):
        """said: what process 0 has said already, beyond `go`."""
        self.port = port
        self._process, self._processes, self._peers = process, processes, peers
        self._codes: dict[int, int] = {}  # of those that have left
        self._reasons: dict[int, str] = {}
        self._deadline: float | None = None  # for the others to leave alike
        self._polls, self._asked, self._stopping = 0, False, False
        self._stop_at: int | None = None
        self._counts: dict[int, int] = {}  # polls of the processes, while they stand still
        self._polling, self._alike, self._lost = threading.Lock(), threading.Event(), ""
        self._wake, self._woken = socket.socketpair()
        threading.Thread(target=self._watch, args=(said,), name="lifeline", daemon=True).start()

    # --- what the process says and asks ---

    def ask_to_stop(self) -> None:
        """All processes are to stop at one poll soon."""
        if not self._asked:
            self._asked = True
            self._tell_first({"stop": self._process})

    def stops(self) -> bool:
        """One poll: whether all processes stop at it. All must poll equally often."""
        with self._polling:
            self._polls += 1
            return self._stop_at is not None and self._polls >= self._stop_at

    def leave(self, code: int, reason: str) -> None:
        """This process ends with an exit code. Where that is no success, waits until the others end alike; where they
        do not, this one has failed alone, and all of them end as preempted."""
        self._tell_first({"leave": self._process, "code": code, "reason": reason})
        if code != DONE:
            self._alike.wait(2 * ALIKE)
            if self._lost:
                end_at_once(
                    f"{self._lost}; {_CONTINUES}"
                )  # not by way of JAX's own end, which aborts without the others

    def _tell_first(self, message: dict[str, Any]) -> None:
        if self._process == 0:
            self._wake.sendall(json.dumps(message).encode() + b"\n")
        else:
            self._peers[0].send(**message)

    # --- the thread ---

    def _watch(self, said: list[dict[str, Any]]) -> None:
        for message in said:
            self._handle(message, 0)
        heard = dict.fromkeys((peer.process for peer in self._peers), time.monotonic())
        beaten = 0.0
        with selectors.DefaultSelector() as selector:
            for peer in [Peer(self._woken, self._process), *self._peers]:
                selector.register(peer, selectors.EVENT_READ, peer)
            while selector.get_map():
                now = time.monotonic()
                if now - beaten > BEAT:
                    if now - beaten > 2 * BEAT:  # this process stood still: what it did not hear says nothing
                        heard = dict.fromkeys(heard, now)
                    beaten = now
                    for peer in self._peers:
                        peer.send(beat=self._process)
                due = beaten + BEAT if self._deadline is None else min(beaten + BEAT, self._deadline)
                for key, _ in selector.select(max(0.0, due - now)):
                    peer = key.data
                    heard[peer.process] = time.monotonic()
                    messages = peer.receive()
                    if messages is None:
                        selector.unregister(peer)
                        peer.close()
                        if peer.process not in self._codes:
                            self._end(f"process {peer.process} of {self._processes} is gone")
                    for message in messages or ():
                        self._handle(message, peer.process)
                for process, last in heard.items():
                    if process not in self._codes and time.monotonic() - last > SILENT:
                        self._end(f"process {process} of {self._processes} said nothing for {SILENT:.0f} s")
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self._deadline = None
                    process = min(p for p, code in self._codes.items() if code != DONE)
                    self._end(f"process {process} of {self._processes} failed alone: {self._reasons[process]}")

    def _handle(self, message: dict[str, Any], sender: int) -> None:
        match message:
            case {"stop": _} if not self._stopping:
                self._stopping = True
                self._say_to_all(freeze=True)
            case {"freeze": _}:
                self._polling.acquire()
                self._tell_first({"polls": self._polls})
            case {"polls": int(count)}:
                self._counts[sender] = count
                if len(self._counts) == self._processes:
                    self._say_to_all(stop_at=max(self._counts.values()) + 1)
            case {"stop_at": int(poll)}:
                self._stop_at = poll
                self._polling.release()
            case {"leave": int(process), "code": int(code), "reason": str(reason)}:
                self._codes[process], self._reasons[process] = code, reason
                if self._process == 0:
                    self._see_who_left(process)
            case {"left": _}:
                self._codes.setdefault(0, DONE)
                self._alike.set()
            case {"lost": str(why)}:
                self._end(why)

    def _see_who_left(self, process: int) -> None:
        codes = set(self._codes.values())
        if process == 0:  # so that the others know when its connection ends
            for peer in self._peers:
                peer.send(leave=0, code=self._codes[0], reason=self._reasons[0])
        if len(self._codes) == self._processes and len(codes) == 1:
            self._deadline = None
            self._say_to_all(left=True)
        elif codes != {DONE} and self._deadline is None:
            self._deadline = time.monotonic() + ALIKE

    def _say_to_all(self, **message: Any) -> None:
        for peer in self._peers:
            peer.send(**message)
        self._handle(message, 0)

    def _end(self, why: str) -> None:
        """All processes end; one that waits in `leave` says so itself."""
        if self._process == 0:
            for peer in self._peers:
                peer.send(lost=why)
            time.sleep(_FIRST)  # they go first: where JAX's service is gone, it aborts them
        self._lost = why
        if self._process in self._codes and self._codes[self._process] != DONE:
            self._alike.set()
        else:
            end_at_once(f"{why}; {_CONTINUES}")
