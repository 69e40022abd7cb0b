"""Content decides what a file is, every file is read once, and what was read is told."""

import bz2
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, normalizers

from precisionlm.cli.main import main
from precisionlm.data.dataset import Dataset
from precisionlm.data.documents import Source
from precisionlm.data.meta import Meta
from precisionlm.data.prepare import prepare, preview
from precisionlm.data.request import Request
from precisionlm.data.tokenizer import load_tokenizer, neutralise
from precisionlm.errors import UserError

from .conftest import make_documents

CASES = Path(__file__).parents[3] / "shared" / "cases" / "inputs"


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def texts(*sources: Path | str, field: str = "text") -> list[object]:
    return [document.content for document in Source.resolve(list(sources)).documents(field, 0, 0)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "a.txt", "a"])
def test_json_lines_whatever_their_name(name: str, tmp_path: Path) -> None:
    data = lines(["one", "two"]).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert texts(tmp_path / name) == ["one", "two"]


def test_compression_is_told_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(lines(["one"]).encode()))
    assert texts(tmp_path / "a.jsonl") == ["one"]
    (tmp_path / "b.jsonl.gz").write_text(lines(["one"]))
    with pytest.raises(UserError, match="named as gzip, its content is not compressed"):
        texts(tmp_path / "b.jsonl.gz")


@pytest.mark.parametrize("suffix", ["jsonl.gz", "txt.gz", "jsonl.xz", "jsonl.bz2", "jsonl.zst", "u16.gz"])
def test_a_damaged_file_is_one_line(suffix: str, tmp_path: Path) -> None:
    compress = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
    compress["zst"] = lambda data: pa.compress(data, codec="zstd", asbytes=True)
    whole = compress[suffix.split(".")[1]](lines([f"{n} {n * n}" for n in range(20_000)]).encode())
    for damaged in (whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:]):
        (tmp_path / f"a.{suffix}").write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            list(Source.resolve(tmp_path / f"a.{suffix}").documents("text", 60_000, 0))
        assert f"a.{suffix}" in str(caught.value) and "\n" not in str(caught.value)


def test_text_that_begins_like_json_is_text(tmp_path: Path) -> None:
    for content in ("{not json}\nmore", "[a link](x)\n", '{"a": 1'):
        (tmp_path / "a.txt").write_text(content)
        assert texts(tmp_path / "a.txt") == [content]


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + lines(["one"]).encode() + b"\n  \n" + lines(["two"]).encode() + b"\n\n"
    )
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthree")
    assert texts(tmp_path / "a.jsonl", tmp_path / "b.txt") == ["one", "two", "three"]


def test_a_json_array_and_settings(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "one"}]')
    with pytest.raises(UserError, match=r"a\.json is one JSON array; give a record a line"):
        texts(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{\n  "name": "settings"\n}\n')
    (tmp_path / "b.json").write_text(lines(["one"]))
    assert texts(tmp_path) == ["one"]  # of a folder, JSON that is no lines of records is left out


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(1000)], "id": list(range(1000))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert texts(tmp_path) == [f"row {n}" for n in range(1000)]
    with pytest.raises(UserError, match="no text column 'body'; its columns: text, id"):
        texts(tmp_path / "a.parquet", field="body")
    with pytest.raises(UserError, match="column 'id' is int64, not text"):
        texts(tmp_path / "a.parquet", field="id")
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="row 2 has no text"):
        texts(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"c\.parquet cannot be read"):
        texts(tmp_path / "c.parquet")


def test_every_file_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(["one"]))
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    words = [tmp_path / "a.jsonl", f"{tmp_path}/*.jsonl", tmp_path]
    assert texts(*words) == ["one"]
    assert Source.resolve(words).again == 4


def test_what_was_read_is_counted(documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text(lines([*documents, documents[3], "", ""]))
    (tmp_path / "v.jsonl").write_text(lines(documents[:40]))
    request = Request(tmp_path / "a.jsonl", vocab_size=300, validation=tmp_path / "v.jsonl")
    counts = {
        "files": 2,
        "files_named_again": 0,
        "records": 243,
        "empty": 2,
        "held_out_of_training": 41,
        "duplicates": 0,
    }
    found = preview(request, tmp_path / "out")
    assert {name: found[name] for name in counts} == counts and not (tmp_path / "out").exists()
    meta = prepare(request, tmp_path / "out")
    assert meta.counts == counts and (meta.train.documents, meta.validation.documents) == (160, 40)
    own = Request([tmp_path / "a.jsonl", tmp_path / "v.jsonl"], vocab_size=300, validation_every=8)
    assert preview(own, tmp_path / "own")["duplicates"] == 41
    words = ["data", "prepare", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "c"), "--vocab-size", "300"]
    assert main([*words, "--validation", str(tmp_path / "v.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "2 files and 243 records read, 2 empty, 41 kept out of training" in said and said.count("\n") == 1


def test_stored_truncation_padding_and_dropout_do_not_count(
    prepared: Path, documents: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(lines(documents))
    plain = Request(tmp_path / "a.jsonl", tokenizer=prepared / "tokenizer.json", validation_every=8)
    expected = prepare(plain, tmp_path / "plain")
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=256)
    tokenizer.model.dropout = 0.3
    tokenizer.save(str(tmp_path / "odd.json"))
    odd = Request(tmp_path / "a.jsonl", tokenizer=tmp_path / "odd.json", validation_every=8)
    meta = prepare(odd, tmp_path / "odd")
    assert (meta.train, meta.validation) == (expected.train, expected.validation)
    assert meta.counts["tokenizer_without"] == ["truncation to 32 tokens", "padding", "dropout 0.3 of merges"]
    assert neutralise(load_tokenizer(tmp_path / "odd" / "tokenizer.json")) == ()


def test_text_that_does_not_come_back(prepared: Path, documents: list[str], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "lower.json"))
    (tmp_path / "a.jsonl").write_text(lines([f"{text} UPPER" if n % 2 else text for n, text in enumerate(documents)]))
    request = Request(tmp_path / "a.jsonl", tokenizer=tmp_path / "lower.json", validation_every=8)
    with pytest.raises(UserError, match=r"lower\.json does not give text back \('.*UPPER' comes back as '.*upper'\)"):
        prepare(request, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "lower.json"]
    lossy = Request(tmp_path / "a.jsonl", tokenizer=tmp_path / "lower.json", validation_every=8, allow_loss=True)
    lost = prepare(lossy, tmp_path / "out").counts["lost_text"]
    assert lost["sampled"] >= 16 and 0 < lost["changed"] < lost["sampled"] and "UPPER" in lost["example"]


def test_a_killed_call_goes_on_where_it_was(tmp_path: Path, prepared: Path) -> None:
    for n in range(6):
        (tmp_path / f"{n}.jsonl").write_text(lines(["", *make_documents(60, seed=n)]))
    script = textwrap.dedent("""
        import os, signal, sys
        import precisionlm.data.encode as encode
        import precisionlm.data.prepare as module
        from precisionlm.data.request import Request
        encode.BATCH, module.JOURNAL_SECONDS = 5000, 0.0
        seen = []
        def watch(stage, done, total):
            seen.append((stage, done))
            if stage == "encode" and done > float(sys.argv[3]) * total:
                os.kill(os.getpid(), signal.SIGKILL)
        files = [f"{sys.argv[1]}/{n}.jsonl" for n in range(6)]
        request = Request(files, vocab_size=400, validation_every=8, shard_tokens=3000)
        module.prepare(request, sys.argv[2], watch)
        print(min(done for stage, done in seen if stage == "encode"), "train tokenizer" in dict(seen))
    """)

    def run(out: str, until: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / out), str(until)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = run("whole", 9.0)
    assert whole.returncode == 0, whole.stderr
    assert run("out", 0.7).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    last = run("out", 9.0)
    first, trained = last.stdout.split()
    size = sum((tmp_path / f"{n}.jsonl").stat().st_size for n in range(6))
    assert int(first) > 0.6 * size and trained == "False"  # neither the tokenizer nor earlier files were done again
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir()) and "train-00001.bin" in names
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    Dataset.open(tmp_path / "out").verify()
    assert Meta.read(tmp_path / "out").counts["empty"] == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_calls_at_once(documents: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(documents))
    request = Request(tmp_path / "a.jsonl", vocab_size=300, validation_every=8)

    def second(stage: str, done: int, total: int | None) -> None:
        with pytest.raises(UserError, match="is being prepared by another process"):
            prepare(request, tmp_path / "out")

    prepare(request, tmp_path / "out", second)
    Dataset.open(tmp_path / "out").verify()


def test_a_full_disk_is_one_line_and_leaves_nothing(
    documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precisionlm.data.writer import SplitWriter

    def full(writer: SplitWriter) -> None:
        raise OSError(28, os.strerror(28))

    (tmp_path / "a.jsonl").write_text(lines(documents))
    monkeypatch.setattr(SplitWriter, "flush", full)
    with pytest.raises(UserError, match=r"out cannot be written: No space left on device; nothing was left"):
        prepare(Request(tmp_path / "a.jsonl", vocab_size=300, validation_every=8), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_bucket_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.u16").write_bytes(b"")
    for verb in (["prepare", "stdlib", "--vocab-size", "300"], ["prepare", "gs://b/text", "--vocab-size", "300"]):
        assert main(["data", *verb, "--out", "gs://b/x"]) == 2
    assert main(["data", "adopt", "a.u16", "--out", "gs://b/x"]) == 2
    said = capsys.readouterr().err
    assert said.count("prepared folders are written to a disk; copy it then as it is") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.u16"]


def test_verify_and_inspect(
    prepared: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert main(["data", "verify", str(prepared), str(sharded)]) == 0
    assert "tokens are those of its record" in capsys.readouterr().out
    assert main(["data", "inspect", str(prepared), "--samples", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train"]["documents"] + found["validation"]["documents"] == 200
    assert len(found["train"]["samples"]) == 2 and found["train"]["samples"][0]["text"][0].isdigit()
    lengths = found["train"]["lengths"]
    assert lengths["min"] <= lengths["5%"] <= lengths["median"] <= lengths["95%"] <= lengths["max"]
    monkeypatch.setenv("COLUMNS", "72")
    assert main(["data", "inspect", str(prepared)]) == 0
    printed = capsys.readouterr().out
    assert "end-of-text 0 (<|endoftext|>)" in " ".join(printed.split())
    assert all(len(line) <= 72 or " " not in line.strip() for line in printed.splitlines())


def test_reversed_tokens_do_not_train(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sharded.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data, read = Dataset.open(copy), []
    monkeypatch.setattr(Dataset, "verify", lambda self, original=Dataset.verify: (read.append(1), original(self)))
    data.verify_once()
    data.verify_once()
    assert len(read) == 1  # once a machine
    tokens = np.fromfile(copy / "train-00001.bin", "<u2")
    tokens[::-1].tofile(copy / "train-00001.bin")
    with pytest.raises(UserError, match=r"train-00001\.bin has sha256"):
        Dataset.open(copy).verify_once()


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (["docs.jsonl", "--tokenizer", "tok_trunc.json", "--validation-every", "4"], (90_350, 33_204, 400)),
        (["docs.jsonl", "--tokenizer", "tok_pad.json", "--validation-every", "16"], (114_556, 8_998, 400)),
        (["blank.jsonl", "--vocab-size", "512", "--validation-every", "16"], (114_556, 8_998, 400)),
        (["trailing_blank.jsonl", "--vocab-size", "512", "--validation-every", "16"], (114_556, 8_998, 400)),
        (["docs.jsonl", "docs*.jsonl", "--vocab-size", "512", "--validation-every", "16"], (114_556, 8_998, 400)),
        (["two_frames.jsonl.zst", "--vocab-size", "512", "--validation-every", "16"], (114_556, 8_998, 400)),
        (["pzstd.jsonl.zst", "--vocab-size", "512", "--validation-every", "16"], (114_556, 8_998, 400)),
        (["two_members.jsonl.gz", "--vocab-size", "512", "--validation-every", "16"], (114_556, 8_998, 400)),
        (["dolma/*.json.gz", "--vocab-size", "512", "--validation-every", "4"], (None, None, 50)),
    ],
)
def test_cases_of_users(
    words: list[str], tokens: tuple[int | None, int | None, int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    typed = [str(CASES / word) if "." in word else word for word in words]
    assert main(["data", "prepare", *typed, "--out", str(tmp_path / "out"), "--json"]) == 0
    meta = json.loads(capsys.readouterr().out)
    assert meta["train"]["documents"] + meta["validation"]["documents"] == tokens[2]
    assert tokens[0] is None or (meta["train"]["tokens"], meta["validation"]["tokens"]) == tokens[:2]
