"""The cloud's notice, from a metadata server that answers as GCE's and AWS's do."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import yaml

from precisionlm.cli.main import main
from precisionlm.cluster import cloud_notice
from precisionlm.cluster.cloud_notice import CloudNotice
from precisionlm.errors import PREEMPTED, UserError

from ..conftest import tiny_tree


class Metadata(BaseHTTPRequestHandler):
    taken: ClassVar[dict[str, str]] = {}  # path: body

    def do_GET(self):
        gce = self.path.startswith("/computeMetadata/v1/") and self.headers["Metadata-Flavor"] == "Google"
        aws = self.headers["X-aws-ec2-metadata-token"] == "secret"
        body = self.taken.get(self.path, "FALSE" if gce else None)
        self.send_response(200 if body is not None and (gce or aws) else 404)
        self.end_headers()
        self.wfile.write((body or "").encode())

    def do_PUT(self):
        self.send_response(200 if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else 400)
        self.end_headers()
        self.wfile.write(b"secret")

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    Metadata.taken = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def comes(notice, seconds=10.0):
    began = time.monotonic()
    while not notice() and time.monotonic() - began < seconds:
        time.sleep(0.01)
    return notice()


@pytest.mark.parametrize(
    ("cloud", "path", "body"),
    [
        ("gce", "/computeMetadata/v1/instance/preempted", "TRUE"),
        ("gce", "/computeMetadata/v1/instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"),
        ("aws", "/latest/meta-data/spot/instance-action", '{"action": "terminate"}'),
    ],
)
def test_a_notice_is_heard(server, cloud, path, body):
    with CloudNotice(cloud, server, every_seconds=0.02) as notice:
        time.sleep(0.1)
        assert not notice()
        Metadata.taken = {path: body}
        assert comes(notice)


def test_no_server_is_an_error_and_later_silence_is_not_a_notice(server):
    with pytest.raises(UserError, match=r"metadata server at http://127\.0\.0\.1:1 does not answer"):
        CloudNotice("gce", "http://127.0.0.1:1").__enter__()
    with CloudNotice("gce", server, every_seconds=0.02) as notice:
        notice._base = "http://127.0.0.1:1"
        time.sleep(0.2)
        assert not notice()


def test_a_run_stops_with_its_state_saved(server, tokens_folder, tmp_path, monkeypatch, capsys):
    tree = tiny_tree(tokens_folder) | {"checkpoint": {"notice": "gce"}}
    tree["model"] |= {"layers": 1}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    words = ["train", str(config), "--out", str(tmp_path / "runs")]
    monkeypatch.setitem(cloud_notice.CLOUDS, "gce", ("http://127.0.0.1:1", cloud_notice.CLOUDS["gce"][1]))
    assert main(words) == 2 and "does not answer" in capsys.readouterr().err
    assert main([*words, "--dry-run"]) == 0
    monkeypatch.setitem(cloud_notice.CLOUDS, "gce", (server, cloud_notice.CLOUDS["gce"][1]))
    Metadata.taken = {"/computeMetadata/v1/instance/preempted": "TRUE"}
    assert main(words) == PREEMPTED
    Metadata.taken = {}
    assert main(words) == 0
