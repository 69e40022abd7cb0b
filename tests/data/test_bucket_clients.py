"""The libraries that read real buckets, gcsfs and s3fs, against servers on this machine: the same tokens and run id as
of the folder; what is not there, refused or gone is one line."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from ..conftest import tiny_tree

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}


def needs(package: str, extra: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed: pip install 'precisionlm[{extra}]'")


class Storage(BaseHTTPRequestHandler):
    """What gcsfs asks of Google Cloud Storage's JSON API to read: an object's size, listings, bytes in ranges.
    Buckets are folders of `root`; nobody may read `locked`."""

    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes | dict[str, object], **headers: str) -> None:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(sent))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, {"error": {"code": status, "message": message}})

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        asked = re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
        if asked is None:
            return self.refuse(404, "no such call")
        if asked[1] == "locked":
            return self.refuse(403, "does not have storage.objects.get access")
        if asked[2] is None:
            return self.answer(200, {"kind": "storage#objects", "items": []})
        path = self.root / asked[1] / urllib.parse.unquote(asked[2])
        if not path.is_file():
            return self.refuse(404, "No such object")
        if "alt=media" not in url.query:
            name = urllib.parse.unquote(asked[2])
            return self.answer(200, {"name": name, "bucket": asked[1], "size": str(path.stat().st_size)})
        data, wanted = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.answer(200, data)
        part = data[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
        first, last = int(wanted[1]), int(wanted[1]) + len(part) - 1
        return self.answer(206, part, **{"Content-Range": f"bytes {first}-{last}/{len(data)}"})


@pytest.fixture
def google(tokens_folder: Path) -> Iterator[dict[str, str]]:
    """Environment in which gs:// is a server here, whose bucket `b` has the prepared folder."""
    Storage.root = tokens_folder.parent
    server = ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_port}"}
    server.shutdown()
    server.server_close()


def run(tmp_path: Path, path: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    tree = tiny_tree(tmp_path)
    tree["data"]["path"] = path
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(tree))
    words = ["train", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "runs"), "--training.steps", "3"]
    command = [sys.executable, "-m", "precisionlm", *words]
    return subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=200)


def trained(tmp_path: Path, path: str, environment: dict[str, str]) -> tuple[str, str]:
    """Run id and what was printed of the loss."""
    tmp_path.mkdir()
    done = run(tmp_path, path, environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "gcsfs" not in done.stderr, done.stderr
    return next((tmp_path / "runs").iterdir()).name, done.stdout.split("\n", 1)[1]


@needs("gcsfs", "gcs")
def test_google_cloud_storage(tokens_folder: Path, tmp_path: Path, google: dict[str, str]) -> None:
    bucket, folder = tokens_folder.parent.name, tokens_folder.name
    Storage.root = tokens_folder.parent.parent
    near = trained(tmp_path / "near", str(tokens_folder), {})
    assert trained(tmp_path / "far", f"gs://{bucket}/{folder}", google) == near
    for path, environment, code, said in (
        (f"gs://{bucket}/nothing", google, 2, "holds no prepared data"),
        ("gs://locked/data", google, 2, "Forbidden"),
        (f"gs://{bucket}/{folder}", {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}, 75, "cannot be reached"),
    ):
        ended = run(tmp_path, path, environment)
        assert ended.returncode == code and said in ended.stderr, ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr


@needs("s3fs", "s3")
@needs("moto", "s3' 'moto[server]")
def test_s3(tokens_folder: Path, tmp_path: Path) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = place | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    import boto3

    client = boto3.client("s3", endpoint_url=place["AWS_ENDPOINT_URL"], aws_access_key_id="x",
                          aws_secret_access_key="y", region_name="us-east-1")  # fmt: skip
    client.create_bucket(Bucket="bucket")
    for file in tokens_folder.iterdir():
        client.upload_file(str(file), "bucket", f"data/{file.name}")
    near = trained(tmp_path / "near", str(tokens_folder), {})
    assert trained(tmp_path / "far", "s3://bucket/data", environment) == near
    for path, given, code, said in (
        ("s3://bucket/nothing", environment, 2, "holds no prepared data"),
        ("s3://bucket/data", place | {"AWS_EC2_METADATA_DISABLED": "true"}, 2, "redential"),
    ):
        ended = run(tmp_path, path, given)
        assert ended.returncode == code and said in ended.stderr, ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr
    server.stop()
