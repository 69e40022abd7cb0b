"""Safetensors files: eight bytes that say how long the header is, a JSON header, and the tensors' bytes.

https://huggingface.co/docs/safetensors; the library hands no FP8 to numpy, which the tensors here are of.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from precisionlm.errors import UserError
from precisionlm.yaml_text import is_text

BF16, FP8 = np.dtype(jnp.bfloat16), np.dtype(jnp.float8_e4m3fn)
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BF16,
    "F8_E4M3": FP8,
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
_LONGEST_HEADER = 100 * 10**6  # bytes, as in the library
_MOST_AXES = 32  # of a tensor; numpy's own limit was that


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One file, aligned: the widest dtypes first."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        dtype = _NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def write_model(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], limit: int = SHARD_BYTES) -> None:
    """The tensors of a model: one file, or shards of at most `limit` bytes (but for single tensors) and their index."""
    shards: list[list[str]] = []
    size = total = 0
    held: dict[str, np.ndarray] = {}

    def put() -> None:
        write(folder / f"{len(shards)}.shard", held)
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > limit:
            put()
            size = 0
        held[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    put()
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [_ONE]
    else:
        weight_map = {tensor: name for name, inside in zip(names, shards, strict=True) for tensor in inside}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for i, name in enumerate(names):
        (folder / f"{i}.shard").replace(folder / name)


def read(path: Path) -> dict[str, np.ndarray]:
    """name → array, memory-mapped and read-only. Raises UserError where header and length of the file disagree."""
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if length < 8 or size > min(length - 8, _LONGEST_HEADER):
                raise ValueError(f"its header would have {size} bytes, the file has {length}")
            header = json.loads(file.read(size))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: no safetensors file: its header is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: no safetensors file, or cut short: {error}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: no safetensors file: its header is no object")
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    end = 0
    for start, stop, *_ in sorted(spans.values(), key=lambda span: span[:2]):
        if start != end:
            raise UserError(f"{path}: damaged: its tensors overlap or leave gaps")
        end = stop
    if 8 + size + end != length:
        raise UserError(f"{path}: cut short or damaged: {length} bytes, its header says {8 + size + end}")
    if not end:
        return {name: np.zeros(shape, dtype) for name, (_, _, dtype, shape) in spans.items()}
    data = np.memmap(path, np.uint8, "r", 8 + size)
    return {name: data[start:stop].view(dtype).reshape(shape) for name, (start, stop, dtype, shape) in spans.items()}


def _span(path: Path, name: str, entry: Any) -> tuple[int, int, np.dtype[Any], tuple[int, ...]]:
    """(first byte, byte after the last, dtype, shape) of a tensor. Raises UserError."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop)) and len(shape) <= _MOST_AXES
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{path}: damaged: the header's entry of '{name}' is none") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{path}: tensor '{name}' is of dtype {dtype}; known: {', '.join(DTYPES)}")
    if not whole or stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise UserError(f"{path}: damaged: tensor '{name}' does not fill its bytes")
    return start, stop, DTYPES[dtype], shape


def read_model(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a model's folder, from one file or from shards. Raises UserError."""
    index = folder / _INDEX
    if not index.is_file():
        if (folder / _ONE).is_file():
            return read(folder / _ONE)
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        why = f"; {pickles[0]} is a pickle, which can run code and is not read" if pickles else ""
        raise UserError(f"{folder} holds no {_ONE} and no {_INDEX}{why}")
    try:
        weight_map = dict(json.loads(index.read_text())["weight_map"])
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{index}: no index of shards: it has no readable 'weight_map'") from None
    shards = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or shard == ".." or not is_text(shard):
            raise UserError(f"{index}: shard '{shard}' is no file of this folder")
        shards[shard] = read(folder / shard)
    missing = [name for name, shard in weight_map.items() if name not in shards[shard]]
    if missing:
        raise UserError(f"{folder / weight_map[missing[0]]}: tensor '{missing[0]}' is not there, the index says so")
    return {name: shards[shard][name] for name, shard in weight_map.items()}
