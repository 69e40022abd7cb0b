from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from precisionlm.data.tokenizer import end_of_text_id, load_tokenizer, train_bpe, vocabulary_size
from precisionlm.errors import UserError

BPE = train_bpe(["the cat sat on the mat, the cat sat"] * 3, 262)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_can_be_encoded_and_comes_back(text: str) -> None:
    assert BPE.decode(BPE.encode(text).ids, skip_special_tokens=False) == text


def test_vocabulary() -> None:
    assert BPE.id_to_token(0) == "<|endoftext|>" and end_of_text_id(BPE) == 0
    assert vocabulary_size(BPE) == 262
    assert len(BPE.encode("the cat").ids) < len("the cat")  # merges were learned


def test_end_of_text(tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(BPE.to_str().replace("<|endoftext|>", "</s>"))
    (tmp_path / "none.json").write_text(BPE.to_str().replace("<|endoftext|>", "<odd>"))
    assert end_of_text_id(load_tokenizer(tmp_path / "llama.json")) == 0
    odd: Tokenizer = load_tokenizer(tmp_path / "none.json")
    assert end_of_text_id(odd, 5) == 5
    for outside in (-1, 262):
        with pytest.raises(UserError, match=f"eos_id is {outside}; this tokenizer has ids 0 to 261"):
            end_of_text_id(odd, outside)
    with pytest.raises(UserError, match="has no entries"):
        end_of_text_id(Tokenizer(models.BPE({}, [])), 0)
    with pytest.raises(UserError, match="give eos_id"):
        end_of_text_id(odd)


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"a\.json is not a Hugging Face tokenizer\.json"):
        load_tokenizer(tmp_path / "a.json")
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "b.json")
