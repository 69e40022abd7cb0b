"""Token files of other programs: the same documents from every format, copied by prepare or adopted as they lie."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from precisionlm.cli.main import main
from precisionlm.data.adopt import adopt
from precisionlm.data.dataset import Dataset
from precisionlm.data.prepare import prepare
from precisionlm.data.request import Request
from precisionlm.data.source import train_batches
from precisionlm.errors import UserError

from .emulator import Lag
from .test_data_prepare import decoded
from .test_data_source import take


def megatron(path: Path, tokens: np.ndarray, ends: list[int], dtype: str = "<u2") -> Path:
    """path.bin and path.idx; every document in two sequences."""
    tokens.astype(dtype).tofile(path.with_suffix(".bin"))
    cuts = sorted({0, *ends, *(max(end - 1, 0) for end in ends)})
    lengths, pointers = np.diff(cuts), np.array(cuts[:-1]) * np.dtype(dtype).itemsize
    firsts = [0, *(cuts.index(end) for end in ends)]
    code = {"<u2": 8, "<i4": 4, "<i8": 5}[dtype]
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(firsts))
    body = lengths.astype("<i4").tobytes() + pointers.astype("<i8").tobytes() + np.array(firsts, "<i8").tobytes()
    path.with_suffix(".idx").write_bytes(header + body)
    return path.with_suffix(".bin")


def llmc(path: Path, tokens: np.ndarray, ends: list[int]) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.with_suffix(".bin").write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
    return path.with_suffix(".bin")


def datatrove(path: Path, tokens: np.ndarray, ends: list[int]) -> Path:
    file = path.with_suffix(".ds")
    tokens.astype("<u4").tofile(file)
    np.array(ends, "<u8").tofile(Path(f"{file}.index"))
    Path(f"{file}.metadata").write_text(f"my/tokenizer|4\n{len(tokens)}\n{len(tokens) / 1e3:.2f} KT")
    return file


def bare(suffix: str) -> Callable[[Path, np.ndarray, list[int]], Path]:
    def write(path: Path, tokens: np.ndarray, ends: list[int]) -> Path:
        tokens.astype("<u2").tofile(path.with_suffix(suffix))
        return path.with_suffix(suffix)

    return write


FORMATS = {
    "nanoGPT": bare(".bin"),
    "OLMo": bare(".npy"),
    "llm.c": llmc,
    "datatrove": datatrove,
    "Megatron": megatron,
    "Megatron int32": lambda path, tokens, ends: megatron(path, tokens, ends, "<i4"),
}


@pytest.fixture
def tokens(dataset: Dataset) -> tuple[np.ndarray, list[int]]:
    found = np.asarray(dataset.tokens("train"))
    return found, (np.flatnonzero(found == 0) + 1).tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_adopted_as_it_lies(
    name: str, tokens: tuple[np.ndarray, list[int]], prepared: Path, tmp_path: Path, bucket: type[Lag]
) -> None:
    whole, ends = tokens
    cut = ends[len(ends) // 2]
    first = FORMATS[name](tmp_path / "a", whole[:cut], ends[: len(ends) // 2 + 1])
    second = FORMATS[name](tmp_path / "b", whole[cut:], [end - cut for end in ends[len(ends) // 2 + 1 :]])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    tokenizer = prepared / "tokenizer.json"
    held = np.fromfile(prepared / "val.bin", "<u2")
    last = FORMATS[name](tmp_path / "v", held, (np.flatnonzero(held == 0) + 1).tolist())
    before |= {path: path.read_bytes() for path in tmp_path.glob("v.*")}
    meta = adopt([str(first), str(second)], tmp_path, tokenizer, validation=[str(last)])
    assert all(path.read_bytes() == content for path, content in before.items())
    assert meta.train.documents == len(ends) and meta.train.tokens == len(whole)
    assert [shard.file for shard in meta.train.shards] == [first.name, second.name]
    for place in (tmp_path, f"lag://{tmp_path}"):  # named from the folder: it can be copied to a bucket
        data = Dataset.open(place, cache_bytes=0)
        data.verify()
        np.testing.assert_array_equal(np.asarray(data.tokens("train")), whole)
        expected = take(train_batches(Dataset.open(prepared), 16, 8, seed=3), 20)
        np.testing.assert_array_equal(take(train_batches(data, 16, 8, seed=3), 20), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_prepared(
    name: str, tokens: tuple[np.ndarray, list[int]], prepared: Path, tmp_path: Path
) -> None:
    file = FORMATS[name](tmp_path / "a", *tokens)
    request = Request(file, tokenizer=prepared / "tokenizer.json", validation=prepared / "val.bin")
    prepare(request, tmp_path / "out")
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out" / "train.bin", "<u2"), tokens[0])


def test_documents_without_end_of_text(tokens: tuple[np.ndarray, list[int]], prepared: Path, tmp_path: Path) -> None:
    """Megatron's default: the index alone says where documents end."""
    whole, ends = tokens
    bare_tokens = whole[whole != 0]
    file = megatron(tmp_path / "a", bare_tokens, [end - n - 1 for n, end in enumerate(ends)])
    with pytest.raises(UserError, match="ends documents without the end-of-text token 0"):
        adopt([str(file)], tmp_path / "out", prepared / "tokenizer.json")
    assert not (tmp_path / "out").exists()
    prepare(Request(file, tokenizer=prepared / "tokenizer.json", validation_every=8), tmp_path / "out")
    both = decoded(tmp_path / "out", "train") + decoded(tmp_path / "out", "validation")
    assert sorted(both) == sorted(decoded(prepared, "train"))


def test_the_last_documents_are_validation(
    tokens: tuple[np.ndarray, list[int]], prepared: Path, tmp_path: Path
) -> None:
    whole, ends = tokens
    file = bare(".bin")(tmp_path / "a", whole, ends)
    meta = adopt([str(file)], tmp_path, prepared / "tokenizer.json", validation_tokens=2000)
    assert meta.train.tokens + meta.validation.tokens == len(whole) and meta.train.tokens in ends
    assert 2000 <= meta.validation.tokens < 2000 + max(np.diff([0, *ends]))
    data = Dataset.open(tmp_path)
    data.verify()
    np.testing.assert_array_equal(np.asarray(data.tokens("validation")), whole[meta.train.tokens :])
    with pytest.raises(UserError, match="is a prepared folder already"):
        adopt([str(file)], tmp_path, prepared / "tokenizer.json")


def test_what_cannot_be_known_is_asked_for(
    tokens: tuple[np.ndarray, list[int]], prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole, ends = tokens
    file, tokenizer = datatrove(tmp_path / "a", whole, ends), str(prepared / "tokenizer.json")

    def line(*words: object) -> str:
        assert main(["data", "adopt", *map(str, words), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        return said[-1]

    assert "give the tokenizer.json that made these tokens by --tokenizer (they were made by my/tokenizer)" in line(
        file
    )
    Path(f"{file}.metadata").write_text("gpt2|4\n7\n")
    assert "metadata says 7" in line(file, "--tokenizer", tokenizer)
    Path(f"{file}.metadata").write_text("nonsense")
    assert "no metadata of datatrove" in line(file, "--tokenizer", tokenizer)
    Path(f"{file}.metadata").unlink()
    assert "not its index" in line(file, "--tokenizer", tokenizer)  # uint16 by the vocabulary: twice as many tokens
    command = ["data", "adopt", str(file), "--out", str(tmp_path / "good"), "--tokenizer", tokenizer, "--json"]
    assert main([*command, "--dtype", "uint32", "--validation-tokens", "2000"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "uint32"
    wide = megatron(tmp_path / "wide", whole, ends, "<i8")
    assert "has tokens of int64; `data prepare` writes them anew" in line(wide, "--tokenizer", tokenizer)
    other = bare(".bin")(tmp_path / "other", whole[:-1], ends)
    assert "does not end with the end-of-text token 0" in line(other, "--tokenizer", tokenizer)
    foreign = bare(".bin")(tmp_path / "foreign", np.append(whole, [600, 0]), ends)
    assert "holds token 600, the tokenizer has ids below 512" in line(foreign, "--tokenizer", tokenizer)
    other.with_suffix(".idx").write_bytes(b"what")
    assert "no index of Megatron-LM" in line(other, "--tokenizer", tokenizer)
    assert "holds no tokens that are known here" in line(tokenizer, "--tokenizer", tokenizer)
    assert not (tmp_path / "out").exists()


def test_an_index_that_lies(tokens: tuple[np.ndarray, list[int]], prepared: Path, tmp_path: Path) -> None:
    file = megatron(tmp_path / "a", *tokens)
    good = file.with_suffix(".idx").read_bytes()
    for damaged in (good[:40], good[:9] + b"\x09" + good[10:], good[:34] + b"\xff" + good[35:]):
        file.with_suffix(".idx").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.idx"):
            adopt([str(file)], tmp_path / "out", prepared / "tokenizer.json")
