"""Storage that is away or refuses is told from bytes that are wrong, by what each library says."""

import errno

import pytest

from precisionlm.errors import PreemptedError, UserError
from precisionlm.outages import outage_of, raise_outage


class HttpError(Exception):
    """As gcsfs raises an answer."""

    def __init__(self, code: int) -> None:
        super().__init__(f"an answer, {code}")
        self.code = code


TENSORSTORE = "{}: Error reading gs://b/state/w/c/0: CURL error [source locations='tensorstore/kvstore/gcs']"


@pytest.mark.parametrize(
    ("error", "here", "bucket"),
    [
        (ValueError(TENSORSTORE.format("UNAVAILABLE")), "away", "away"),
        (ValueError(TENSORSTORE.format("DEADLINE_EXCEEDED")), "away", "away"),
        (ValueError(TENSORSTORE.format("PERMISSION_DENIED")), "refused", "refused"),
        (ValueError(TENSORSTORE.format("UNAUTHENTICATED")), "refused", "refused"),
        (ValueError("FAILED_PRECONDITION: open of a file [os_error_code='13']"), "refused", "refused"),
        (ValueError("DATA_LOSS: CRC-32C mismatch"), "", ""),
        (ValueError("NOT_FOUND: Error opening zarr"), "", ""),
        (OSError("its metadata cannot be read"), "", ""),
        (FileNotFoundError(errno.ENOENT, "No such file"), "", ""),
        (OSError(errno.EIO, "Input/output error"), "", "away"),
        (OSError(errno.ESTALE, "Stale file handle"), "away", "away"),
        (PermissionError(errno.EACCES, "Permission denied"), "refused", "refused"),
        (OSError("Forbidden: https://storage.googleapis.com/b/o"), "", "refused"),
        (HttpError(401), "", "refused"),
        (HttpError(404), "", ""),
        (HttpError(503), "", "away"),
        (ConnectionResetError("the peer is gone"), "", "away"),
        (EOFError("cut short"), "", ""),
        (KeyError("state"), "", ""),
    ],
)
def test_what_a_failed_read_says(error: Exception, here: str, bucket: str) -> None:
    assert outage_of(error, "/runs/a/checkpoints") == here
    assert outage_of(error, "gs://b/runs/a/checkpoints") == bucket


def test_each_is_an_error_of_its_own() -> None:
    with pytest.raises(PreemptedError, match=r"^it cannot be reached .why.; the same command goes on later$"):
        raise_outage("away", "it", "why")
    with pytest.raises(UserError, match=r"^it may not be read .why.; it is left as it is$"):
        raise_outage("refused", "it", "why")
    raise_outage("", "it", "why")
