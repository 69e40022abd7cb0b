"""Child processes that do not outlive their parent, however it ends: a pipe whose other end only the parent has tells
the child that it is gone, by the system's hand."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "PRECISIONLM_PARENT"  # the child's end of the pipe


@contextmanager
def parental() -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """What a child gets, which ends with this process where it calls `end_with_parent`: variables of its environment,
    and `pass_fds` of subprocess. It is to have ended when the context is left."""
    theirs, ours = os.pipe()
    try:
        yield {_VARIABLE: str(theirs)}, (theirs,)
    finally:
        os.close(ours)
        os.close(theirs)


def end_with_parent() -> None:
    """Have this process end as soon as the parent that began it with `parental` does, if one did."""
    given = os.environ.pop(_VARIABLE, None)  # not for children of our own
    if given is not None:
        threading.Thread(target=_wait_and_end, args=(int(given),), name="parent", daemon=True).start()


def _wait_and_end(parent: int) -> None:
    os.read(parent, 1)
    os._exit(1)
