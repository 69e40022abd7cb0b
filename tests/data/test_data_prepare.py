import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from precisionlm.data.meta import Meta
from precisionlm.data.prepare import prepare
from precisionlm.data.request import SMALLEST_SPLIT, Request
from precisionlm.data.source import Dataset
from precisionlm.data.tokenizer import END_OF_TEXT
from precisionlm.errors import UserError


def decoded(folder: Path, split: str) -> list[str]:
    """The documents of a split, read with numpy and the tokenizer alone."""
    meta = json.loads((folder / "meta.json").read_text())
    tokens = np.fromfile(folder / {"train": "train.bin", "validation": "val.bin"}[split], meta["dtype"])
    ends = np.flatnonzero(tokens == meta["eos_id"])
    assert ends[-1] == len(tokens) - 1
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.decode(part[:-1].tolist()) for part in np.split(tokens, ends[:-1] + 1)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip_and_split(prepared: Path, documents: list[str]) -> None:
    train, validation = decoded(prepared, "train"), decoded(prepared, "validation")
    assert sorted(train + validation) == sorted(documents)
    held_out = [
        text
        for text in documents
        if int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % 8 == 0
    ]
    assert sorted(validation) == sorted(held_out) and 5 < len(held_out) < 60


def test_meta_counts_what_is_there(prepared: Path, dataset: Dataset) -> None:
    meta = Meta.read(prepared)
    assert meta.vocab_size == 512 and meta.eos_id == 0 and meta.dtype == "uint16"
    assert Tokenizer.from_file(str(prepared / "tokenizer.json")).token_to_id(END_OF_TEXT) == 0
    for split, name in (("train", "train.bin"), ("validation", "val.bin")):
        data, counted = (prepared / name).read_bytes(), getattr(meta, split)
        assert hashlib.sha256(data).hexdigest() == counted.sha256
        assert counted.tokens == len(data) // 2 == len(dataset.tokens(split))
        assert counted.documents == np.count_nonzero(dataset.tokens(split) == 0)
    dataset.verify()


def test_the_same_input_gives_the_same_bytes_in_another_process(
    prepared: Path, text_folder: Path, tmp_path: Path
) -> None:
    script = "import sys; from precisionlm.data.prepare import prepare; "
    script += "from precisionlm.data.request import Request; "
    script += "prepare(Request(sys.argv[1], vocab_size=512, validation_every=8), sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, text_folder, tmp_path / "again"], check=True)
    assert contents(prepared) == contents(tmp_path / "again")


def test_split_of_a_document_does_not_depend_on_the_others(
    documents: list[str], prepared: Path, tmp_path: Path
) -> None:
    file = tmp_path / "half.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in reversed(documents[:100])))
    prepare(Request(file, tokenizer=prepared / "tokenizer.json", validation_every=8), tmp_path / "out")
    assert set(decoded(tmp_path / "out", "validation")) == set(decoded(prepared, "validation")) & set(documents[:100])
    assert not set(decoded(tmp_path / "out", "train")) & set(decoded(prepared, "validation"))


def test_held_out_text_does_not_shape_the_tokenizer(prepared: Path, tmp_path: Path) -> None:
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    for file, split in ((train, "train"), (validation, "validation")):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in decoded(prepared, split)))
    prepare(Request(train, vocab_size=512, validation=validation), tmp_path / "out")
    for name in ("tokenizer.json", "train.bin", "val.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (prepared / name).read_bytes(), name


def test_a_second_call_changes_nothing_and_says_so(text_folder: Path, tmp_path: Path) -> None:
    out, stages = tmp_path / "out", []
    first = prepare(Request(text_folder, vocab_size=300, validation_every=8), out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare(
        Request(text_folder, vocab_size=300, validation_every=8), out, lambda stage, done, total: stages.append(stage)
    )
    assert again == first and stages == ["already prepared"]
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def test_other_arguments_never_overwrite(text_folder: Path, prepared: Path, tmp_path: Path) -> None:
    before = contents(prepared)
    with pytest.raises(UserError, match="vocab_size 512, not 400"):
        prepare(Request(text_folder, vocab_size=400, validation_every=8), prepared)
    with pytest.raises(UserError, match="validation_every 8, not 128"):
        prepare(Request(text_folder, vocab_size=512), prepared)
    assert contents(prepared) == before
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not a folder of prepared data"):
        prepare(Request(text_folder, vocab_size=300), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_changed_source_is_noticed(documents: list[str], tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    prepare(Request(file, vocab_size=300, validation_every=8), tmp_path / "out")
    with open(file, "a") as more:
        more.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match="files since changed"):
        prepare(Request(file, vocab_size=300, validation_every=8), tmp_path / "out")


def test_killed_midway_leaves_nothing_that_looks_finished(text_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = textwrap.dedent("""
        import os, signal, sys
        from precisionlm.data.prepare import prepare
        from precisionlm.data.request import Request
        def die(stage, done, total):
            if stage == "encode":
                os.kill(os.getpid(), signal.SIGKILL)
        prepare(Request(sys.argv[1], vocab_size=300, validation_every=8), sys.argv[2], die)
    """)
    killed = subprocess.run([sys.executable, "-c", script, text_folder, out])
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists() and len(os.listdir(tmp_path)) == 1  # the scratch folder, under another name
    with pytest.raises(UserError, match="no prepared data"):
        Dataset.open(out)
    prepare(Request(text_folder, vocab_size=300, validation_every=8), out)
    assert os.listdir(tmp_path) == ["out"]
    Dataset.open(out).verify()


def test_an_interrupt_leaves_nothing(text_folder: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int | None) -> None:
        if stage == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(Request(text_folder, vocab_size=300, validation_every=8), tmp_path / "out", interrupt)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_packed_tokens_come_out_as_they_went_in(
    prepared: Path, dataset: Dataset, tmp_path: Path, compressed: bool
) -> None:
    """Two files cut in the middle of a document, and a given validation file, as AI2's packed mixes come."""
    import lzma

    tokens = np.asarray(dataset.tokens("train"))
    parts = []
    for n, part in enumerate([tokens[:5003], tokens[5003:]]):
        parts.append(tmp_path / f"part-{n}.u16{'.xz' if compressed else ''}")
        parts[n].write_bytes(lzma.compress(part.tobytes()) if compressed else part.tobytes())
    tokens_file, tokenizer = prepared / "val.bin", prepared / "tokenizer.json"
    meta = prepare(Request(parts, tokenizer=tokenizer, validation=tokens_file), tmp_path / "out")
    assert (tmp_path / "out" / "train.bin").read_bytes() == tokens.tobytes()
    assert (tmp_path / "out" / "val.bin").read_bytes() == tokens_file.read_bytes()
    assert (meta.train, meta.validation) == (dataset.meta.train, dataset.meta.validation)


def test_packed_tokens_split_by_hash(prepared: Path, dataset: Dataset, tmp_path: Path) -> None:
    meta = prepare(
        Request(prepared / "train.bin", tokenizer=prepared / "tokenizer.json", validation_every=4), tmp_path / "out"
    )
    assert meta.train.documents + meta.validation.documents == dataset.meta.train.documents
    assert meta.validation.documents > 10
    assert sorted(decoded(tmp_path / "out", "train") + decoded(tmp_path / "out", "validation")) == sorted(
        decoded(prepared, "train")
    )


def test_text_that_spells_end_of_text_does_not_end_there(documents: list[str], tmp_path: Path) -> None:
    tricky = [f"{text} {END_OF_TEXT} {text}" for text in documents]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in tricky))
    meta = prepare(Request(file, vocab_size=400, validation_every=8), tmp_path / "out")
    assert meta.train.documents + meta.validation.documents == len(tricky)
    assert sorted(decoded(tmp_path / "out", "train") + decoded(tmp_path / "out", "validation")) == sorted(tricky)


def test_max_tokens_ends_training_with_a_whole_document(prepared: Path, text_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    meta = prepare(
        Request(text_folder, tokenizer=prepared / "tokenizer.json", validation_every=4, max_tokens=20_000), out
    )
    tokens = np.fromfile(out / "train.bin", "u2")
    last_document = len(tokens) - 1 - np.flatnonzero(tokens == 0)[-2]
    assert meta.train.tokens >= 20_000 > meta.train.tokens - last_document


def test_large_vocabularies_are_stored_in_32_bits(documents: list[str], tmp_path: Path) -> None:
    from tokenizers import AddedToken

    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    prepare(Request(file, vocab_size=300, validation_every=8), tmp_path / "small")
    tokenizer = Tokenizer.from_file(str(tmp_path / "small" / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(f"<unused {n}>", normalized=False) for n in range(1 << 16)])
    tokenizer.save(str(tmp_path / "big.json"))
    meta = prepare(Request(file, tokenizer=tmp_path / "big.json", eos_id=70, validation_every=8), tmp_path / "big")
    dataset = Dataset.open(tmp_path / "big")
    assert meta.dtype == "uint32" and meta.vocab_size == 300 + (1 << 16) and meta.eos_id == 70
    assert dataset.tokens("train").itemsize == 4 and dataset.tokens("train")[-1] == 70


def test_filled_by_another_process_meanwhile(text_folder: Path, tmp_path: Path) -> None:
    def fill(stage: str, done: int, total: int | None) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "theirs").write_text("kept")

    with pytest.raises(UserError, match="filled by another process"):
        prepare(Request(text_folder, vocab_size=300, validation_every=8), tmp_path / "out", fill)
    assert (tmp_path / "out" / "theirs").read_text() == "kept" and os.listdir(tmp_path) == ["out"]


def test_clear_errors(text_folder: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="at least 257"):
        prepare(Request(text_folder, vocab_size=256, validation_every=8), out)
    with pytest.raises(UserError, match=r"vocabulary of only \d+ entries, 65536 were asked"):
        prepare(Request(text_folder, vocab_size=65536, validation_every=8), out)
    with pytest.raises(UserError, match="either vocab_size"):
        prepare(Request(text_folder), out)
    with pytest.raises(UserError, match="at least 2"):
        prepare(Request(text_folder, vocab_size=300, validation_every=1), out)
    with pytest.raises(UserError, match=rf"validation split has 0 tokens from 0 of 200 documents.*{SMALLEST_SPLIT}"):
        prepare(Request(text_folder, vocab_size=300, validation_every=1_000_003), out)
    with pytest.raises(UserError, match="need `tokenizer`"):
        prepare(Request(prepared / "train.bin", vocab_size=300), out)
    with pytest.raises(UserError, match="ids 0 to 511"):
        prepare(Request(text_folder, tokenizer=prepared / "tokenizer.json", eos_id=512), out)
    assert os.listdir(tmp_path) == []


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="vocabulary of only"):
        prepare(Request(tmp_path / "empty.jsonl", vocab_size=300), tmp_path / "out")
    with pytest.raises(UserError, match=r"names no file with \.json \.jsonl \.md"):
        prepare(Request(tmp_path / "nothing", vocab_size=300), tmp_path / "out")
    with pytest.raises(UserError, match="names no file; give"):
        prepare(Request(str(tmp_path / "*.absent"), vocab_size=300), tmp_path / "out")
    with pytest.raises(UserError, match="empty list"):
        prepare(Request([], vocab_size=300), tmp_path / "out")
    assert not (tmp_path / "out").exists()
