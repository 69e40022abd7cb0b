import gzip
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from precisionlm.data.documents import Document, Source
from precisionlm.errors import UserError


def texts(source: str | Path | list[str | Path], field: str = "text") -> list[str]:
    found = [document.content for document in Source.resolve(source).documents(field, vocab_size=100, eos_id=0)]
    assert all(isinstance(content, str) for content in found)
    return found  # type: ignore[return-value]


def token_documents(*files: Path, eos_id: int = 0) -> list[list[int]]:
    documents = Source.resolve(list(files)).documents("text", vocab_size=100, eos_id=eos_id)
    return [np.asarray(document.content).tolist() for document in documents]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    lines = [{"body": f"line {n}\n日本", "id": n} for n in range(1000)] + [{"body": ""}]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = tmp_path / f"a.jsonl{suffix}"
    compress = {"": bytes, ".gz": gzip.compress, ".zst": lambda d: pyarrow.compress(d, codec="zstd", asbytes=True)}
    file.write_bytes(compress[suffix](data))
    assert texts(file, "body") == [str(line["body"]) for line in lines[:-1]]  # the empty document is left out


def test_lone_surrogates_in_json_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert texts(tmp_path / "a.jsonl") == ["a?b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2 is not JSON"),
        ('{"txt": "b"}', r"a\.jsonl:2 has no text field 'text'; its fields: txt"),
        ('{"text": 3}', r"a\.jsonl:2 has no text field 'text'"),
        ("[1]", r"a\.jsonl:2 .*it is not an object"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        texts(tmp_path / "a.jsonl")


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xff\xfe")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text \(byte 2\)"):
        texts(tmp_path / "a.txt")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:40])
    (tmp_path / "b.jsonl.zst").write_bytes(b"not compressed")
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            texts(tmp_path / name)


def test_a_folder_and_a_glob(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.txt", "deep/b.md", "deep/c.py", "d.png", ".hidden/e.txt"):
        (tmp_path / name).write_text(name)
    assert sorted(texts(tmp_path)) == ["a.txt", "deep/b.md", "deep/c.py"]
    assert sorted(texts(f"{tmp_path}/**/*.p*")) == ["d.png", "deep/c.py"]
    assert texts([tmp_path / "deep/c.py", tmp_path / "a.txt"]) == ["deep/c.py", "a.txt"]


def test_reading_order_is_that_of_the_names_below_the_folder(tmp_path: Path) -> None:
    """So a corpus gives the same tokens wherever it lies, and its beginning is a fair sample of it."""
    for root in ("here", "elsewhere/there"):
        (tmp_path / root).mkdir(parents=True)
        for n in range(50):
            (tmp_path / root / f"{n:02}.txt").write_text(f"{n:02}")
    assert texts(tmp_path / "here") == texts(tmp_path / "elsewhere/there") != sorted(texts(tmp_path / "here"))


def test_packed_documents_run_on_across_files(tmp_path: Path) -> None:
    np.array([1, 2, 0, 3, 4], "<u2").tofile(tmp_path / "a.u16")
    np.array([5], "<u2").tofile(tmp_path / "b.npy")
    np.array([6, 0, 0, 7], "<u4").tofile(tmp_path / "c.u32")
    files = [tmp_path / name for name in ("a.u16", "b.npy", "c.u32")]
    assert token_documents(*files) == [[1, 2], [3, 4, 5, 6], [7]]
    assert token_documents(*files, eos_id=5) == [[1, 2, 0, 3, 4], [6, 0, 0, 7]]


def test_the_split_of_tokens_does_not_depend_on_how_they_are_stored() -> None:
    held_out = [
        {Document(np.arange(n, n + 5).astype(dtype), 0).in_validation(4) for dtype in ("<u2", "<u4")} for n in range(99)
    ]
    assert all(len(answers) == 1 for answers in held_out)
    assert {True, False} == set.union(*held_out)


def test_bad_packed_files(tmp_path: Path) -> None:
    (tmp_path / "odd.u16").write_bytes(b"abc")
    np.save(tmp_path / "header.npy", np.zeros(9, np.uint16))
    np.array([1, 100, 0], "<u2").tofile(tmp_path / "foreign.u16")
    for name, message in (
        ("odd.u16", "3 bytes, not a multiple of 2"),
        ("header.npy", "numpy header"),
        ("foreign.u16", "holds token 100, the tokenizer has ids below 100"),
    ):
        with pytest.raises(UserError, match=message):
            token_documents(tmp_path / name)


def test_hugging_face_datasets_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Iterator[dict[str, str]]:
        calls.append((name, config, split, streaming))
        if name == "absent":
            raise ConnectionError("no such place\nmore")
        return iter([{"text": "one"}, {"text": ""}, {"text": "two"}])

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert texts("hf:org/name:sample-10BT") == texts("hf:org/name") == ["one", "two"]
    assert calls == [("org/name", "sample-10BT", "train", True), ("org/name", None, "train", True)]
    assert Source.resolve("hf:org/name").size is None
    with pytest.raises(UserError, match=r"^hf:absent: ConnectionError: no such place$"):
        texts("hf:absent")
    with pytest.raises(UserError, match="row 0 has no text field 'body'; its fields: text"):
        texts("hf:org/name", "body")
    with pytest.raises(UserError, match="not of the form"):
        texts("hf:a:b:c:d")
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it fails
    with pytest.raises(UserError, match=r"pip install 'precisionlm\[hf\]'"):
        texts("hf:org/name")


def test_the_standard_library_is_text_enough() -> None:
    source = Source.resolve("stdlib")
    names = [name for _, name, _ in source.files]
    assert "argparse.py" in names and not [name for name in names if "site-packages" in name or "/test/" in name]
    assert sum(map(len, texts("stdlib"))) > 8_000_000
