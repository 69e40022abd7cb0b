"""A run of the same shape in PyTorch, as one would write it there: torch.compile, fused AdamW and attention, bfloat16.

Started by path in any interpreter that has torch: `python torch_peer.py JSON`, where JSON holds layers, width, heads,
mlp_width, vocab_size, sequences, length, steps, seed, data (a flat file of tokens) with its dtype, and bits of w, a and
kv. Prints JSON: seconds to the end of the first step, seconds of the others, mean loss of the last ten, device
and version.
"""

import json
import math
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def quantized(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x on the grid of signed integers scaled to the largest of its last axis; gradients pass straight through."""
    limit = 2 ** (bits - 1) - 1
    with torch.no_grad():
        full = x.float()
        scale = (full.abs().amax(-1, keepdim=True) / limit).clamp_min(1e-12)
        error = (torch.round(full / scale) * scale).to(x.dtype) - x
    return x + error


class QuantizedLinear(nn.Module):
    """A matrix product of weights [out, in], a scale an output, with activations, a scale a token."""

    def __init__(self, inside: int, outside: int, bits: dict[str, int]):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outside, inside).normal_(std=inside**-0.5))
        self.bits = bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = quantized(self.weight, self.bits["w"]).to(x.dtype)
        return F.linear(quantized(x, self.bits["a"]), weight)


class Layer(nn.Module):
    """Attention and gated MLP, normalised before and added after."""

    def __init__(self, width: int, heads: int, mlp_width: int, bits: dict[str, int]):
        super().__init__()
        self.heads, self.bits = heads, bits
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (QuantizedLinear(width, width, bits) for _ in range(4))
        self.gate, self.up = (QuantizedLinear(width, mlp_width, bits) for _ in range(2))
        self.down = QuantizedLinear(mlp_width, width, bits)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        y = self.attention_norm(x).to(x.dtype)
        q, k, v = (product(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for product in (self.q, self.k, self.v))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        k, v = quantized(k, self.bits["kv"]), quantized(v, self.bits["kv"])
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        y = self.mlp_norm(x).to(x.dtype)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on [B, heads, T, H]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Model(nn.Module):
    """Tokens [B, T + 1] → mean cross entropy (nats/token)."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, asked: dict[str, Any]):
        super().__init__()
        width, heads, length = asked["width"], asked["heads"], asked["length"]
        self.embedding = nn.Embedding(asked["vocab_size"], width)
        self.layers = nn.ModuleList(
            Layer(width, heads, asked["mlp_width"], asked["bits"]) for _ in range(asked["layers"])
        )
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, asked["vocab_size"], bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        size = width // heads // 2
        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(size) / size))
        self.register_buffer("cos", angles.cos().bfloat16())
        self.register_buffer("sin", angles.sin().bfloat16())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens[:, :-1]).bfloat16()
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x).bfloat16(), self.head.weight.bfloat16())
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def train(asked: dict[str, Any]) -> dict[str, Any]:
    """The run; what it prints."""
    began = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(asked["seed"])
    torch.set_float32_matmul_precision("high")
    model, length, steps = Model(asked).to(device), asked["length"], asked["steps"]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.55 + 0.45 * math.cos(math.pi * i / steps))
    compiled = torch.compile(model)
    corpus = torch.from_numpy(np.fromfile(asked["data"], asked["dtype"]).astype(np.int64)).to(device)
    order = torch.randperm((len(corpus) - 1) // length, device=device) * length
    within, losses, first = torch.arange(length + 1, device=device), [], 0.0
    for step in range(steps):
        windows = order[step * asked["sequences"] : (step + 1) * asked["sequences"]]
        loss = compiled(corpus[windows[:, None] + within])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay.step()
        losses.append(loss.detach())
        if not step:
            losses[0].item()  # waits for the device
            first = time.perf_counter() - began
    last = torch.stack(losses[-10:]).mean().item()
    others = time.perf_counter() - began - first
    name = torch.cuda.get_device_name() if device == "cuda" else device
    about = {"device": f"{name} x 1", "torch_version": torch.__version__}
    return {"first_step_s": first, "others_s": others, "loss": last, "about": about}


if __name__ == "__main__":
    print(json.dumps(train(json.loads(sys.argv[1]))))
