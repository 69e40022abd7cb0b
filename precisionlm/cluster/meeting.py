"""How processes meet: each connects to process 0, and all begin when all are there.

Messages, in lines of JSON: a process says `hello` (its number) and how many `processes` it expects; process 0 answers
`go` (all are there; the port of JAX's service), `refused` (it was started differently) or `missing` (who did not come).
"""

import errno
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from precisionlm.cluster.lifeline import ALIKE, Lifeline, Peer
from precisionlm.errors import PreemptedError, UserError

_AGAIN = 0.2  # seconds between two tries to reach process 0
_DIFFERENT = "start each with the same --processes and a --process of its own"


def meet(coordinator: str, processes: int, process: int, timeout: float) -> Lifeline:
    """Wait until all processes are there. coordinator: HOST:PORT at which process 0 is reached; timeout (s).

    Raises PreemptedError where one does not come in time, and UserError where they were started differently.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    if process == 0:
        return _host(int(port), processes, timeout, deadline)
    return _visit(host.strip("[]"), int(port), processes, process, timeout, deadline)


def _host(port: int, processes: int, timeout: float, deadline: float) -> Lifeline:
    guests: dict[int, Peer] = {}
    with ExitStack() as let_go:
        listening = let_go.enter_context(_listening(port, processes, deadline))
        let_go.callback(lambda: _close(guests))
        for peer, hello in _guests(listening, deadline):
            number, expected = hello["hello"], hello["processes"]
            wrong = (
                f"process {number} expects {expected} processes and process 0 {processes}"
                if expected != processes
                else f"two processes are process {number}"
                if number in guests or not 0 < number < processes
                else ""
            )
            if wrong:
                for each in (peer, *guests.values()):
                    each.send(refused=wrong)
                peer.close()
                raise UserError(f"{wrong}; {_DIFFERENT}")
            peer.process, guests[number] = number, peer
            if len(guests) == processes - 1:
                break
        missing = sorted(set(range(1, processes)) - guests.keys())
        if missing:
            for peer in guests.values():
                peer.send(missing=missing)
            raise _missing(missing, processes, timeout)
        let_go.pop_all()
        listening.close()
    with socket.create_server(("", 0)) as free:
        jax_port = free.getsockname()[1]
    for peer in guests.values():
        peer.send(go=jax_port)
    return Lifeline(0, processes, list(guests.values()), jax_port, [])


def _close(guests: dict[int, Peer]) -> None:
    for peer in guests.values():
        peer.close()


def _listening(port: int, processes: int, deadline: float) -> socket.socket:
    """At a port that an earlier start of this job may still be about to give up."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    while True:
        try:
            return socket.create_server(("", port), family=family, backlog=processes, dualstack_ipv6=both)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"port {port} of process 0 cannot be used: {error.strerror}") from None
            if time.monotonic() > deadline:
                raise PreemptedError(f"port {port} of process 0 is in use") from None
            time.sleep(_AGAIN)


def _guests(listening: socket.socket, deadline: float) -> Iterator[tuple[Peer, dict[str, Any]]]:
    """Who comes and says hello, until the deadline. Who is none of ours is let go."""
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.data is None:
                    peer = kept_alive(listening.accept()[0])
                    selector.register(peer, selectors.EVENT_READ, peer)
                    continue
                selector.unregister(key.fileobj)
                match key.data.receive():
                    case [{"hello": int(), "processes": int()} as hello]:
                        yield key.data, hello
                    case _:
                        key.data.close()


def _visit(host: str, port: int, processes: int, process: int, timeout: float, deadline: float) -> Lifeline:
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            peer = kept_alive(socket.create_connection((host, port), timeout=left))
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(min(_AGAIN, left))
            continue
        peer.send(hello=process, processes=processes)
        answer = _answer(peer, deadline)
        match answer:
            case [{"go": int(jax_port)}, *said]:
                return Lifeline(process, processes, [peer], jax_port, said)
        peer.close()
        match answer:
            case [{"refused": str(wrong)}, *_]:
                raise UserError(f"{wrong}; {_DIFFERENT}")
            case [{"missing": list(missing)}, *_]:
                raise _missing(missing, processes, timeout)
        why = "whoever answers there is not process 0, or it ended"
        time.sleep(_AGAIN)
    raise PreemptedError(f"process 0 was not reached at {host}:{port} within {timeout:g} s: {why}")


def _answer(peer: Peer, deadline: float) -> list[dict[str, Any]] | None:
    """What process 0 says; None where it is gone or says nothing before the deadline and a moment more."""
    with selectors.DefaultSelector() as selector:
        selector.register(peer, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic()) + ALIKE):
            return None
    return peer.receive()


def _missing(missing: list[int], processes: int, timeout: float) -> PreemptedError:
    which = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
    return PreemptedError(f"{len(missing)} of {processes} processes did not come within {timeout:g} s: {which}")


def kept_alive(connection: socket.socket) -> Peer:
    """A connection to another machine, whose silence is noticed."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4), ("TCP_NODELAY", 1)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Peer(connection)
