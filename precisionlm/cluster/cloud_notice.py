"""The cloud's notice that a machine will be taken away: asked for every few seconds beside the training.

Where machines are taken with a SIGTERM (GKE, Slurm) nothing needs to be asked. GCE: instance/preempted and
instance/maintenance-event of the metadata server. AWS: spot/instance-action (404 until there is one), with a session
token (IMDSv2).
"""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable

from precisionlm.errors import UserError

EVERY_SECONDS, _TIMEOUT = 5.0, 3.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a metadata server is never behind a proxy

Ask = Callable[[str], bool]  # base URL → whether notice was given; OSError where the server does not answer


def _gce(base: str) -> bool:
    def value(name: str) -> str:
        request = urllib.request.Request(
            f"{base}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"}
        )
        with _DIRECT.open(request, timeout=_TIMEOUT) as answer:
            return answer.read().decode().strip()

    return value("preempted") == "TRUE" or value("maintenance-event").startswith("TERMINATE")


def _aws(base: str) -> bool:
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    with _DIRECT.open(
        urllib.request.Request(f"{base}/latest/api/token", method="PUT", headers=lifetime), timeout=_TIMEOUT
    ) as answer:
        token = {"X-aws-ec2-metadata-token": answer.read().decode()}
    try:
        action = urllib.request.Request(f"{base}/latest/meta-data/spot/instance-action", headers=token)
        with _DIRECT.open(action, timeout=_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise


CLOUDS: dict[str, tuple[str, Ask]] = {
    "gce": ("http://metadata.google.internal", _gce),
    "aws": ("http://169.254.169.254", _aws),
}


class CloudNotice:
    """While entered, whether the cloud gave notice. Raises UserError at once where its server does not answer: a notice
    that could never arrive must not look like one that has not come yet."""

    def __init__(self, cloud: str, base: str | None = None, every_seconds: float = EVERY_SECONDS):
        default, self._ask = CLOUDS[cloud]
        self._cloud, self._base, self._every = cloud, base or default, every_seconds
        self._over, self._given = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __call__(self) -> bool:
        """Whether notice was given."""
        return self._given

    def __enter__(self) -> "CloudNotice":
        try:
            self._given = self._ask(self._base)
        except OSError as error:
            raise UserError(
                f"checkpoint.notice {self._cloud}: the metadata server at {self._base} does not answer ({error}); "
                "leave the key out where machines are taken with a SIGTERM"
            ) from None
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._given and not self._over.wait(self._every):
            try:
                self._given = self._ask(self._base)
            except OSError:
                continue  # it answered before; a moment's silence is no notice
