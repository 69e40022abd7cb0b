"""Records that others wrote name no file outside their folder, no stretch twice, and nothing that runs."""

import json
import shutil
from pathlib import Path

import pytest

from precisionlm.data.dataset import Dataset
from precisionlm.data.meta import Meta
from precisionlm.errors import UserError


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "data"))


def refused(folder: Path, change, message: str) -> None:
    tree = json.loads((folder / "meta.json").read_text())
    change(tree)
    (folder / "meta.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message) as found:
        Dataset.open(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["../secret.bin", "a/../../secret.bin", "..", "a\\..\\..\\b", "a\0b", ""])
def test_shards_do_not_leave_their_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret.bin").write_bytes(b"\0" * (1 << 20))
    refused(folder, lambda tree: tree["train"]["shards"][0].update(file=name), "no name in its folder")


@pytest.mark.parametrize(
    "address", ["reference::http://localhost/x.json", "reference://x", "zip://a::file:///etc/passwd", "nope://x"]
)
def test_no_file_system_inside_another(folder: Path, address: str) -> None:
    address = address if "://" in address else f"{address}://x"
    message = "one file system inside another" if "nope" not in address else "nope://x"
    refused(folder, lambda tree: tree["train"]["shards"][0].update(file=address), message)


@pytest.mark.parametrize("change", [{"sha256": "../../x"}, {"sha256": ""}, {"sha256": "A" * 64}])
def test_the_cache_is_not_left_by_way_of_a_hash(folder: Path, change: dict[str, str]) -> None:
    refused(folder, lambda tree: tree["train"]["shards"][0].update(change), "sha256 is .* no hash")


def test_the_cache_is_not_left_by_the_hash_of_a_whole_split(prepared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "data"))
    refused(folder, lambda tree: tree["train"].update(sha256="../x"), "train: sha256 is '../x', no hash")


def test_no_token_is_in_two_shards(folder: Path) -> None:
    Meta.read(folder)
    first = json.loads((folder / "meta.json").read_text())["train"]["shards"][0]

    def twice(tree) -> None:
        tree["validation"] |= {"shards": [first], "tokens": first["tokens"], "documents": first["documents"]}

    refused(folder, twice, "two shards overlap in")
