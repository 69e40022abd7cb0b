"""Documents of any length: the tokens of the whole text, bounded work, text that no pre-tokenizer divides."""

import json
import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from precisionlm.data import documents, encode
from precisionlm.data.documents import Document, LongText, Source
from precisionlm.data.encode import Coder, Item
from precisionlm.data.prepare import prepare
from precisionlm.data.request import Request
from precisionlm.data.tokenizer import train_bpe

RNG = random.Random(1)
CODE = "".join(path.read_text() for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("a*.py")))[:120_000]
TEXTS = {
    "code": CODE,
    "no spaces": "".join(RNG.choice("ACGT") for _ in range(60_000)),
    "one letter": "a" * 30_000,
    "chinese": "".join(chr(RNG.randrange(0x4E00, 0x4E00 + 300)) for _ in range(30_000)),
    "several bytes": "😀é日 " * 8_000,
    "blank": (" " * 700 + "x") * 60 + "\n" * 5000,
}


def byte_level() -> Tokenizer:
    return train_bpe([CODE, TEXTS["no spaces"][:20_000], TEXTS["chinese"][:5000]], 1500)


def metaspace() -> Tokenizer:
    """As SentencePiece has it: a space before the first word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator([CODE, *(text[:5000] for text in TEXTS.values())], trainer)
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "metaspace": metaspace()}


def ids_of(tokenizer: Tokenizer, content: str | LongText, **options: int) -> np.ndarray:
    parts = list(Coder(tokenizer, **options).encode([Item("train", Document(content, 0), "train", 0, 1, 0)]))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    return np.concatenate([part.ids for part in parts])


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_windows_give_the_tokens_of_the_whole(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = TOKENIZERS[kind], TEXTS[name]
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(encode, "WINDOW", 4096)
    monkeypatch.setattr(encode, "OVERLAP", 1024)
    assert ids_of(tokenizer, text).tolist() == whole


def test_where_windows_do_not_agree_no_text_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    monkeypatch.setattr(encode, "WINDOW", 4096)
    monkeypatch.setattr(encode, "OVERLAP", 1024)
    monkeypatch.setattr(encode, "_joint", lambda *_: None)
    for text in TEXTS.values():
        coder = Coder(tokenizer)
        parts = coder.encode([Item("train", Document(text, 0), "train", 0, 1, 0)])
        assert tokenizer.decode(np.concatenate([part.ids for part in parts]).tolist()) == text
        assert coder.hard_cuts == -(-(len(text) - 1024) // 3072) - 1


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_a_long_file_is_read_in_pieces(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr(documents, "_WHOLE", 1000)
    text = TEXTS["several bytes"] + TEXTS["code"]
    data = b"\xef\xbb\xbf" + text.encode()
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    (document,) = Source.resolve(file).documents("text", 0, 0)
    assert isinstance(document.content, LongText)
    assert "".join(piece for piece, _ in document.content.pieces()) == text
    assert document.digest == Document(text, 0).digest
    assert (
        ids_of(TOKENIZERS["byte-level"], document.content).tolist() == ids_of(TOKENIZERS["byte-level"], text).tolist()
    )


def test_one_long_document_moves_the_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_WHOLE", 1000)
    monkeypatch.setattr(encode, "WINDOW", 1 << 14)
    (tmp_path / "long.txt").write_text(CODE * 12)
    (tmp_path / "val.txt").write_text(TEXTS["several bytes"])
    seen = []
    request = Request(tmp_path / "long.txt", vocab_size=300, validation=tmp_path / "val.txt")
    meta = prepare(request, tmp_path / "out", lambda stage, done, total: seen.append((stage, done)))
    done = [at for stage, at in seen if stage == "encode"]
    assert done == sorted(done) and len(set(done)) > 2
    assert meta.train.documents == 1


def test_processes_give_the_same_folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import precisionlm.data.prepare as module

    monkeypatch.setattr(module, "_POOL_BYTES", 0)
    source = tmp_path / "a.jsonl"
    texts = [CODE[n : n + 1 + n % 3000] for n in range(0, 100_000, 700)] + ["".join(TEXTS.values())]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    request = Request(source, tokenizer=prepared / "tokenizer.json", validation_every=8)
    for workers in (1, 2):
        prepare(request, tmp_path / f"{workers}", workers=workers)
    for name in ("train.bin", "val.bin", "meta.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
