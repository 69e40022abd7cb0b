"""Models of others are data: headers, indices, configs and cards that lie are one line, and nothing of them runs."""

import json
import shutil

import numpy as np
import pytest

from precisionlm.errors import UserError
from precisionlm.hub import tensors
from precisionlm.hub.card import _inline
from precisionlm.hub.export import Asked, export
from precisionlm.hub.import_ import Stated, plan_import

from .conftest import finished_run


@pytest.fixture(scope="module")
def exported(tokens_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "model"
    export(finished_run(tokens_folder, tmp_path_factory.mktemp("runs"), layers=1), out, Asked())
    return out


@pytest.fixture
def model(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def refused(why, read, *arguments):
    with pytest.raises(UserError, match=why) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)


def with_header(content, change):
    """A safetensors file with another header, honest about its own length."""
    size = int.from_bytes(content[:8], "little")
    text = change(content[8 : 8 + size])
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def renamed(of):
    """The header after `of` changed its first tensor's entry."""

    def change(text):
        header = json.loads(text)
        name = next(name for name in header if name != "__metadata__")
        header[name] |= of(header[name])
        return json.dumps(header).encode()

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (renamed(lambda t: {"data_offsets": [-8, t["data_offsets"][1] - 8]}), "does not fill its bytes"),
        (renamed(lambda t: {"data_offsets": [n + (1 << 40) for n in t["data_offsets"]]}), "overlap or leave gaps"),
        (renamed(lambda t: {"data_offsets": [8 + n for n in t["data_offsets"]]}), "overlap or leave gaps"),
        (renamed(lambda t: {"data_offsets": [0.0, t["data_offsets"][1]]}), "does not fill its bytes"),
        (renamed(lambda t: {"shape": [*t["shape"], 1 << 62, 1 << 62]}), "does not fill its bytes"),
        (renamed(lambda t: {"shape": [1] * 100 + t["shape"]}), "does not fill its bytes"),
        (renamed(lambda t: {"shape": 5}), "entry of '.*' is none"),
        (renamed(lambda t: {"dtype": "U8"}), "does not fill its bytes"),
        (renamed(lambda t: {"dtype": ["F32"]}), "of dtype"),
        (lambda text: b"[" * 100_000, "nested too deeply"),
        (lambda text: b"[]", "its header is no object"),
        (lambda text: b"\xff\xfe" + text[2:], "no safetensors file"),
        (lambda text: b'{"a": ' + b"9" * 5000 + b"}", "no safetensors file"),
    ],
)
def test_headers_that_lie(tmp_path, change, why):
    path = tmp_path / "model.safetensors"
    tensors.write(path, {"b": np.ones((4, 3), np.float32), "a": np.ones((2, 5), np.float32)})
    path.write_bytes(with_header(path.read_bytes(), change))
    refused(why, tensors.read, path)


@pytest.mark.parametrize(
    ("shard", "why"),
    [
        ("..", "is no file of this folder"),
        ("a/../../x", "is no file of this folder"),
        ("/etc/passwd", "is no file of this folder"),
        ("a\0", "is no file of this folder"),
        (5, "no readable 'weight_map'"),
        (None, "no readable 'weight_map'"),
        ({"a": 1}, "no readable 'weight_map'"),
    ],
)
def test_an_index_names_files_of_its_folder(tmp_path, shard, why):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refused(why, tensors.read_model, tmp_path)


def quantized(groups):
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"num_hidden_layers": "two"}, "layers"),
        ({"num_hidden_layers": 10**9}, "layers"),
        ({"rope_theta": [1], "rope_parameters": None}, "of another kind"),
        ({"max_position_embeddings": "long"}, "of another kind"),
        ({"layer_types": 5}, "of another kind"),
        ({"quantization_config": 5}, "only weights quantized by compressed-tensors"),
        (quantized([1]), "of another kind"),
        (quantized({"a": 1}), "of another kind"),
        (quantized({"a": {"targets": ["re:(l|l|m|o|d|e)*$"]}}), "it repeats groups"),
        (quantized({"a": {"targets": ["re:.*a.*b.*c.*d.*e"]}}), "it repeats groups, or too much"),
        (quantized({"a": {"targets": ["re:("]}}), "of another kind"),
    ],
)
def test_configs_of_other_kinds(model, tokens_folder, changes, why):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(why, plan_import, model, tokens_folder, Stated())


def test_a_card_is_data(model, tokens_folder):
    card = model / "README.md"
    for text, why in (
        ("---\nx: !!python/object/apply:os.system [touch pwned]\n---\n", "front matter is no YAML"),
        ("---\nprecisionlm: {D_tokens: 5, sequence_length: long}\n---\n", "of another kind"),
        ("---\nx: " + "[" * 5000 + "\n---\n", "front matter is no YAML"),
    ):
        card.write_text(text)
        refused(why, plan_import, model, tokens_folder, Stated())


def test_a_name_is_text_in_the_card(tokens_folder, tmp_path):
    assert _inline("a|b\n---\n<script> [x](http://y) `z`") == "a\\|b --- &lt;script> \\[x\\](http://y) \\`z\\`"
