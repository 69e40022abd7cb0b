"""Processes that meet, stop together, are lost or fail alone: each a thread with real connections."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from precisionlm.cluster import lifeline, processes
from precisionlm.cluster.meeting import meet
from precisionlm.errors import DIVERGED, DONE, PREEMPTED, PreemptedError, UserError, exit_code


@pytest.fixture
def ended(monkeypatch):
    """What was said by threads that would have ended their processes."""
    said: list[str] = []
    monkeypatch.setattr(lifeline, "end_at_once", said.append)
    monkeypatch.setattr(lifeline, "ALIKE", 0.3)
    return said


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def all_at(count, act):
    """What act(process) returns or raises for each process, all at once."""

    def attempt(process):
        try:
            return act(process)
        except (UserError, PreemptedError) as error:
            return error

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(attempt, range(count)))


def let_go(lines):
    """Their connections end with the test, and nobody is to miss them."""
    for line in lines:
        line._codes |= dict.fromkeys(range(len(lines)), DONE)
    for line in lines:
        for peer in line._peers:
            with suppress(OSError):
                peer._connection.shutdown(socket.SHUT_RDWR)
        line._wake.close()


@pytest.fixture
def met(ended):
    """So many processes that have met."""
    met_here: list[lifeline.Lifeline] = []

    def meet_all(count):
        port = free_port()
        met_here.extend(all_at(count, lambda process: meet(f"127.0.0.1:{port}", count, process, 20.0)))
        return met_here

    yield meet_all
    let_go(met_here)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_meet_whoever_comes_last(ended):
    port = free_port()

    def come(process):
        time.sleep(0.3 * ((process + 1) % 3))  # process 0 after process 2, and process 1 last
        return meet(f"127.0.0.1:{port}", 3, process, 20.0)

    found = all_at(3, come)
    assert len({line.port for line in found}) == 1 and found[0].port not in (0, port)
    assert ended == []
    let_go(found)


def test_who_does_not_come_is_named_to_all_and_the_command_may_be_tried_again():
    port = free_port()
    found = all_at(2, lambda process: meet(f"127.0.0.1:{port}", 4, process, 1.0))
    assert [exit_code(error) for error in found] == [PREEMPTED] * 2
    assert {str(error) for error in found} == {"2 of 4 processes did not come within 1 s: 2, 3"}


def test_a_process_0_that_does_not_come_or_is_another_program():
    port = free_port()
    with pytest.raises(PreemptedError, match=f"process 0 was not reached at 127.0.0.1:{port} within 0.5 s: Connection"):
        meet(f"127.0.0.1:{port}", 2, 1, 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:

        def talk():
            for _ in range(2):
                connection = other.accept()[0]
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.close()
            other.close()

        talking = threading.Thread(target=talk)
        talking.start()
        with pytest.raises(PreemptedError, match="was not reached"):
            meet(f"127.0.0.1:{other.getsockname()[1]}", 2, 1, 1.5)
        talking.join()


def test_a_stranger_at_process_0_is_let_go(ended):
    port = free_port()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(meet, f"127.0.0.1:{port}", 2, 0, 20.0)

        def knock():
            try:
                return socket.create_connection(("127.0.0.1", port))
            except OSError:
                return None

        until(lambda: (connection := knock()) and (connection.sendall(b"GET / HTTP/1.1\r\n\r\n"), connection.close()))
        other = threads.submit(meet, f"127.0.0.1:{port}", 2, 1, 20.0)
        assert first.result().port == other.result().port
        let_go([first.result(), other.result()])


@pytest.mark.parametrize(
    ("started", "message"),
    [
        ([(0, 2), (1, 3)], "process 1 expects 3 processes and process 0 2"),
        ([(0, 3), (1, 3), (1, 3)], "two processes are process 1"),
    ],
)
def test_processes_that_were_started_differently_are_bad_input(started, message):
    port = free_port()

    def come(i):
        time.sleep(0.1 * i)
        process, count = started[i]
        return meet(f"127.0.0.1:{port}", count, process, 5.0)

    found = all_at(len(started), come)
    assert all(isinstance(error, UserError) and message in str(error) for error in found), found


def test_a_port_that_is_not_ours_to_use():
    with socket.create_server(("", 0)) as taken, pytest.raises(PreemptedError, match="is in use"):
        meet(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, 0.5)


def test_all_stop_at_one_poll_whoever_was_asked(met, ended):
    lines = met(3)
    asked, stopped, together = threading.Event(), [], threading.Barrier(3)  # a step's collectives

    def train(process):
        poll = processes.agreed(lines[process], lambda: process == 2 and asked.is_set())
        for step in range(1, 100_000):
            if poll():
                return stopped.append(step)
            if step == 50:
                asked.set()
            together.wait(20)
        return None

    all_at(3, train)
    assert len(stopped) == 3 and len(set(stopped)) == 1 and ended == []


def test_whoever_is_gone_ends_all_others(met, ended):
    lines = met(3)
    lines[1]._peers[0]._connection.shutdown(socket.SHUT_RDWR)  # what the system does where the process dies
    until(lambda: len(ended) >= 3)
    assert set(ended) - {"process 0 of 3 is gone; the same command continues from what is saved"} == {
        "process 1 of 3 is gone; the same command continues from what is saved"
    }


@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_that_stands_still_ends_all_others(ended, monkeypatch, silent):
    monkeypatch.setattr(lifeline, "BEAT", 0.1)
    monkeypatch.setattr(lifeline, "SILENT", 0.8)
    port, lines = free_port(), []

    def watched(self, said):
        if self._process != silent:
            beating(self, said)

    beating = lifeline.Lifeline._watch
    monkeypatch.setattr(lifeline.Lifeline, "_watch", watched)
    lines.extend(all_at(3, lambda process: meet(f"127.0.0.1:{port}", 3, process, 20.0)))
    try:
        until(lambda: len(ended) >= 2)
        assert all(f"process {silent} of 3 said nothing for" in line for line in ended)
    finally:
        let_go(lines)
        for peer in [*lines[silent]._peers, lines[silent]._woken]:  # nobody reads them to their end
            peer.close()


def test_processes_that_compute_and_say_nothing_else_are_not_lost(met, ended, monkeypatch):
    monkeypatch.setattr(lifeline, "BEAT", 0.05)
    monkeypatch.setattr(lifeline, "SILENT", 0.8)
    met(3)
    time.sleep(1.5)
    assert not ended


def test_a_process_that_fails_alone_ends_all_with_its_reason(met, ended):
    lines = met(3)
    lines[2].leave(2, "runs: cannot be written")
    until(lambda: len(ended) >= 3)
    assert set(ended) == {
        "process 2 of 3 failed alone: runs: cannot be written; the same command continues from what is saved"
    }


@pytest.mark.parametrize("code", [DIVERGED, PREEMPTED, 1])
def test_processes_that_end_alike_keep_their_code(met, ended, code):
    lines = met(3)
    all_at(3, lambda process: lines[process].leave(code, "the same"))
    assert ended == []


def test_processes_that_are_done_do_not_wait_and_are_not_missed(met, ended):
    lines = met(3)
    lines[1].leave(DONE, "")
    lines[1]._codes[0] = DONE  # a process that has exited says nothing any more
    lines[1]._peers[0]._connection.shutdown(socket.SHUT_RDWR)
    lines[0].leave(DONE, "")
    lines[2].leave(DONE, "")
    time.sleep(0.5)
    assert ended == []
