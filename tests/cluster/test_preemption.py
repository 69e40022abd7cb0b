"""Signals as a flag; where there is nothing to lose, as the end."""

import os
import signal
import subprocess
import sys

import pytest

from precisionlm.cluster.preemption import Interruption, nothing_to_lose


def test_a_signal_is_a_flag_and_what_was_before_comes_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


def script(body):
    text = "from precisionlm.cluster.preemption import *\n" + body
    return subprocess.run([sys.executable, "-W", "ignore", "-c", text], text=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_where_nothing_is_to_lose_the_process_goes_though_its_main_thread_never_comes_back(name):
    found = script(
        "import ctypes, os, signal, threading\n"
        "with Interruption(), nothing_to_lose('outer'), nothing_to_lose('run x stopped'):\n"
        f"    threading.Timer(0.2, os.kill, (os.getpid(), signal.{name})).start()\n"
        "    never = ctypes.CDLL(None).sem_wait\n"
        "    semaphore = ctypes.create_string_buffer(64)\n"
        "    ctypes.CDLL(None).sem_init(semaphore, 0, 0)\n"
        "    while True: never(semaphore)\n"
    )
    assert (found.returncode, found.stderr) == (75, "preempted: run x stopped\n")


def test_a_forked_childs_signals_are_its_own_and_it_holds_nothing_up():
    found = script(
        "import multiprocessing, time\n"
        "with Interruption() as interrupted:\n"
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,), daemon=True)\n"
        "    child.start()\n"
        "    child.terminate()\n"
        "    time.sleep(0.3)\n"
        "    print(interrupted())\n"
        "child.kill()\n"
    )
    assert (found.stdout, found.returncode) == ("False\n", 0), found.stderr


def test_outside_of_it_a_signal_is_a_flag_again():
    with Interruption() as interrupted:
        with nothing_to_lose("nothing"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
