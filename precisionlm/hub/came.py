"""What an imported model came with besides weights: its config, and the scales of quantized weights, so that it goes
out again bit for bit as it came in."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.config import ModelConfig
from precisionlm.hub import tensors
from precisionlm.hub.layouts import Layout, Tensors, pack_again
from precisionlm.hub.names import linear, split
from precisionlm.hub.quantized import group_of
from precisionlm.precision.recipe import BLOCK_LINEAR
from precisionlm.ptq.blocks import PART
from precisionlm.storage.run_directory import RunDirectory

RECORD = "imported.json"
_SCALES = "imported_scales.safetensors"
_KEPT = ("weight_scale", "weight_global_scale")


@dataclass(frozen=True)
class Came:
    """quantization_config: of its config.json. scales: name → tensor, of every quantized linear layer."""

    quantization_config: dict[str, Any]
    scales: Tensors

    @staticmethod
    def of(directory: RunDirectory) -> "Came | None":
        """Of a run that was imported with quantized weights; None of all others. Raises UserError."""
        record = directory.read_json(RECORD)
        config = (record or {}).get("config", {}).get("quantization_config")
        return None if config is None else Came(config, tensors.read(directory.path / _SCALES))

    @staticmethod
    def keep(directory: RunDirectory, model: dict[str, np.ndarray]) -> None:
        """The scales among the tensors of a model, into the run directory."""
        scales = {name: tensor for name, tensor in model.items() if name.rpartition(".")[2] in _KEPT}
        tensors.write(directory.path / _SCALES, scales)

    def tensors(self, model: ModelConfig, params: Any) -> Tensors:
        """name → tensor of the quantized linear layers, from the values that they were imported as."""
        found: Tensors = {}
        for layer in range(model.layers):
            for site in BLOCK_LINEAR:
                values = np.asarray(params["blocks"][PART[site]][site]["w"][layer])
                for projection, matrix in split(model, site, values).items():
                    name = linear(layer, projection)
                    layout = layout_named(self.quantization_config, name)
                    if layout is not None:
                        came_with = {k: self.scales[f"{name}.{k}"] for k in _KEPT if f"{name}.{k}" in self.scales}
                        found |= {f"{name}.{k}": t for k, t in pack_again(layout, matrix, came_with).items()}
        return found


def layout_named(config: dict[str, Any], name: str) -> Layout | None:
    """The layout of a linear layer under a quantization_config; None where it is not quantized. Raises UserError."""
    group = group_of(config, name)
    return None if group is None else Layout.read(group.get("format") or config["format"], group.get("weights") or {})
