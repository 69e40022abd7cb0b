"""Where files lie: on a disk, or in a bucket that fsspec reaches (gs://, s3://, …), read whole or in ranges.

A connection that is lost is tried again; one that stays lost is `PreemptedError`, so that schedulers start the command
again later (exit code 75).
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from precisionlm.errors import PreemptedError, UserError
from precisionlm.outages import is_lost_connection

T = TypeVar("T")
Place = str | Path
"""A path, or a URL with a scheme."""

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
LONGEST = 30.0  # seconds after which there is none: gcsfs and s3fs try again too, gcsfs for half a minute by itself
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_url(place: Place) -> bool:
    """Whether it is not a path of this machine's file system."""
    return "://" in str(place)


def on_a_disk(out: Place) -> Path:
    """The path of a folder to write. UserError: a URL."""
    if is_url(out):
        raise UserError(
            f"{out}: prepared folders are written to a disk; copy it then as it is (gcloud storage cp -r, aws s3 sync)"
        )
    return Path(out)


def joined(folder: Place, name: str) -> str:
    """The file of that name in a folder; a path from the root and a URL are themselves."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def filesystem(place: Place) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. UserError: no such scheme, or its package is not there."""
    import fsspec

    scheme = str(place).split("://")[0]
    if "::" in str(place) or scheme == "reference":  # of fsspec: one inside the other, and templates that it runs
        raise UserError(f"{place}: one file system inside another is not read; give a plain URL")
    try:
        fs, path = fsspec.core.url_to_fs(str(place))
    except ImportError:
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'precisionlm[{extra}]'" if extra else f"install what fsspec needs for {scheme}://"
        raise UserError(f"{place}: {how}") from None
    except ValueError as error:
        raise UserError(f"{place}: {_line(error)}") from None
    return fs, path


def read_bytes(place: Place) -> bytes | None:
    """A small file whole; None where it is not there. UserError, PreemptedError."""
    try:
        if not is_url(place):
            return Path(place).read_bytes()
        fs, path = filesystem(place)
        return bytes(_persistently(lambda: fs.cat_file(path), place))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{place} cannot be read: {_line(error)}") from None


def size_of(place: Place) -> int:
    """Bytes of a file; 0 where it is not there. UserError, PreemptedError."""
    try:
        if not is_url(place):
            return os.stat(place).st_size if os.path.isfile(place) else 0
        fs, path = filesystem(place)
        return int(_persistently(lambda: fs.size(path), place) or 0)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise UserError(f"{place} cannot be read: {_line(error)}") from None


def read_ranges(place: Place, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Stretches (first byte, end) of one file of a bucket, side by side where its file system can. UserError: the file
    is not there or ends earlier. PreemptedError: it cannot be reached."""
    fs, path = filesystem(place)
    starts, ends = zip(*ranges, strict=True)

    def read() -> list[bytes]:
        found: list[bytes] = fs.cat_ranges([path] * len(ranges), list(starts), list(ends), on_error="raise")
        return found

    try:
        parts = _persistently(read, place)
    except OSError as error:
        raise UserError(f"{place} cannot be read: {_line(error)}") from None
    for (start, end), part in zip(ranges, parts, strict=True):
        if len(part) != end - start:
            raise UserError(f"{place} ends at byte {start + len(part)}, before byte {end}: truncated or replaced")
    return parts


def is_concurrent(place: Place) -> bool:
    """Whether the file system of a URL reads many ranges side by side by itself."""
    return bool(getattr(filesystem(place)[0], "async_impl", False))


def _persistently(action: Callable[[], T], place: Place) -> T:
    """`action`, tried again after WAITS while the connection fails. PreemptedError after the last; OSError and
    UserError where trying again is of no use."""
    waits, failed, began = WAITS, 0, time.monotonic()
    while True:
        try:
            return action()
        except (UserError, *_PERMANENT):
            raise
        except Exception as error:  # every file system has errors of its own
            if not is_lost_connection(error):
                raise UserError(f"{place} cannot be read: {_line(error)}") from None
            if failed == len(waits) or time.monotonic() - began > LONGEST:
                raise PreemptedError(
                    f"{place} cannot be reached ({_line(error)}; {failed + 1} tries); the same command goes on later"
                ) from None
        time.sleep(waits[failed])
        failed += 1


def _line(error: Exception) -> str:
    """The kind of an error and what it says, in one line."""
    text = " ".join(((error.strerror if isinstance(error, OSError) else None) or str(error)).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
