"""What an error of a disk or a bucket says: that it is away for a while, that it refuses, or that the bytes are wrong.

A bucket that cannot be reached, or whose credentials ran out, has lost nothing: who takes that for a damaged checkpoint
begins a run anew.
"""

import errno
import os
import re
from typing import Literal

from precisionlm.errors import PreemptedError, UserError

Outage = Literal["away", "refused", ""]
"""`away`: trying again later may help; `refused`: it takes a person; empty: neither, so the bytes are at fault."""

_NETWORK = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "s3fs", "urllib3", "requests", "google", "asyncio", "fsspec")
_NOT_LOST = {errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}
# A disk's EIO may be a bad sector: an older checkpoint helps there, and waiting does not.
_AWAY = {errno.ESTALE, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETUNREACH,
         errno.ENETDOWN, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENOTCONN, errno.EPIPE}  # fmt: skip
_REFUSED = {errno.EACCES, errno.EPERM}
_AWAY_WORDS = r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b"  # tensorstore's, after tries of its own
_REFUSED_WORDS = r"\b(PERMISSION_DENIED|UNAUTHENTICATED)\b"


def is_lost_connection(error: Exception) -> bool:
    """Whether trying a request again may help: a connection that broke, a server that is busy or fails; not what was
    refused or is not there. Of an answer the status decides; gcsfs tells of one that forbids by an OSError without a
    number."""
    if status := _status(error):
        return status in (408, 429) or status >= 500
    kind = type(error)
    if "Credential" in kind.__name__ or "Auth" in kind.__name__:
        return False
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, ConnectionError | TimeoutError | EOFError) or kind.__module__.split(".")[0] in _NETWORK:
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _NOT_LOST


def outage_of(error: Exception, place: str | os.PathLike[str]) -> Outage:
    """What a failed read of a file or folder, here or in a bucket, says of where it is."""
    text = str(error)
    told = re.search(r"os_error_code='(\d+)'", text)  # tensorstore's, of a file
    number = int(told[1]) if told else error.errno if isinstance(error, OSError) else None
    if number in _AWAY or re.search(_AWAY_WORDS, text):
        return "away"
    if number in _REFUSED or isinstance(error, PermissionError) or re.search(_REFUSED_WORDS, text):
        return "refused"
    if "://" not in os.fspath(place):
        return ""
    if _status(error) in (401, 403) or text.startswith("Forbidden") or "Credential" in type(error).__name__:
        return "refused"
    return "away" if not isinstance(error, EOFError) and is_lost_connection(error) else ""


def raise_outage(outage: Outage, what: str, said: str) -> None:
    """Raises PreemptedError where storage is away and UserError where it refuses; of damage nothing."""
    if outage == "away":
        raise PreemptedError(f"{what} cannot be reached ({said}); the same command goes on later")
    if outage == "refused":
        raise UserError(f"{what} may not be read ({said}); it is left as it is")


def _status(error: Exception) -> int:
    """Of an answer over HTTP: gcsfs has it as `code`, aiohttp as `status`; 0 if it is none."""
    found = str(getattr(error, "code", None) or getattr(error, "status", None) or "")
    return int(found) if re.fullmatch(r"[45]\d\d", found) else 0
