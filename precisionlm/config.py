"""The experiment: one typed frozen tree. Strict YAML in, canonical YAML out."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from precisionlm import words, yaml_text
from precisionlm.errors import UserError
from precisionlm.precision.recipe import parse_recipe
from precisionlm.sections import Section, validated

_COUNT = 2**31 - 1  # the largest: steps, tokens and places in arrays are int32


class RopeScaling(Section):
    """Llama 3's stretch of the rotary embedding to longer texts (`model.attention.frequencies`)."""

    factor: float = Field(ge=1, description="slow rotations are slower by it")
    low_frequency_factor: float = Field(1.0, gt=0, description="turns in original_length below which all of it counts")
    high_frequency_factor: float = Field(4.0, gt=0, description="turns in original_length above which none does")
    original_length: int = Field(8192, ge=1, description="tokens per sequence that it stretches")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor {self.low_frequency_factor:g} must be below high_frequency_factor "
                f"{self.high_frequency_factor:g}"
            )
        return self


class ModelConfig(Section):
    """A decoder-only transformer; sizes are counts. Letters of the model code in brackets."""

    layers: int = Field(ge=1, le=100_000, description="transformer blocks [L]")
    width: int = Field(ge=1, le=_COUNT, description="residual stream [D]")
    heads: int = Field(ge=1, le=_COUNT, description="query heads [N]")
    kv_heads: int | None = Field(
        None, ge=1, le=_COUNT, description="key/value heads [K]; as many as query heads if absent"
    )
    head_size: int | None = Field(None, ge=2, le=_COUNT, description="[H]; width / heads if absent")
    mlp_width: int = Field(ge=1, le=_COUNT, description="SwiGLU hidden width [F]")
    vocab_size: int | None = Field(None, ge=2, le=_COUNT, description="[V]; the tokenizer's if absent")
    tie_embeddings: bool = Field(False, description="one matrix for embedding and head")
    qk_norm: bool = Field(False, description="RMSNorm of queries and keys per head")
    projection_norm: bool = Field(False, description="another RMSNorm before out and down (BitNet style, Kumar et al.)")
    rope_base: float = Field(10000.0, gt=0, description="largest wavelength of the rotary embedding / 2 pi (tokens)")
    rope_scaling: RopeScaling | None = Field(None, description="Llama 3's, for longer texts; none if absent")
    norm_epsilon: float = Field(1e-6, gt=0, description="added to the mean square in RMSNorm")
    init_std: float = Field(0.02, gt=0, description="of weights; out and down are divided by sqrt(2 layers)")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.head_size is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; set head_size or change one")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if (self.head_size or self.width // self.heads) % 2:
            raise ValueError("head size must be even (rotary position embedding rotates pairs)")
        return self


class MixturePart(Section):
    """A prepared folder and how much of it."""

    path: str = Field(description="as data.path")
    weight: float = Field(gt=0, description="share of the sequences, relative to the other parts")


class DataConfig(Section):
    """Packed tokens, made by `precisionlm data prepare`: one folder, or several with weights (docs/data.md)."""

    path: str | None = Field(None, description="folder with meta.json, on a disk or as gs://…, s3://…")
    mixture: tuple[MixturePart, ...] | None = Field(None, description="folders with weights, instead of a path")
    sequence_length: int = Field(ge=2, le=_COUNT, description="tokens per sequence")
    unique_tokens: int | None = Field(None, ge=1, description="train on the first U tokens only; all if absent")
    cache: str | None = Field(None, description="folder for shards of a bucket; ~/.cache/precisionlm/shards if absent")
    cache_gib: float = Field(32.0, ge=0, description="GiB that it may hold; 0: read in ranges only")

    @field_validator("mixture", mode="before")
    @classmethod
    def _parts(cls, parts: Any) -> Any:
        return tuple(parts) if isinstance(parts, list) and parts else parts

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.mixture is None):
            raise ValueError("key 'data.path' is missing" if self.path is None else "give either path or mixture")
        return self


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    learning_rate: float = Field(gt=0, description="peak")
    scale_learning_rate: float = Field(
        1e-3, ge=0, description="peak for learned scales (lsq, lac), which are logarithms; same schedule"
    )
    schedule: Literal["cosine", "wsd", "linear"] = Field(
        "cosine", description="of the learning rate after warm-up; wsd: constant, then linear decay"
    )
    warmup_steps: int | None = Field(None, ge=0, description="linear warm-up; warmup_fraction of all steps if absent")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="of all steps, for linear warm-up")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="of all steps, for wsd's linear decay")
    final_fraction: float = Field(0.0, ge=0, le=1, description="last learning rate / peak")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay a step of the mean gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: decay a step of the mean squared gradient")
    epsilon: float = Field(1e-8, gt=0, description="AdamW: added to the root of the mean squared gradient")
    weight_decay: float = Field(0.1, ge=0, description="decoupled, on matrices only")
    clip_norm: float = Field(1.0, gt=0, description="global gradient norm")
    depth_scale: int | None = Field(
        None, ge=1, description="depth-muP: learning rate times sqrt(depth_scale / layers); off if absent"
    )
    z_loss: float = Field(0.0, ge=0, description="weight of the squared log-normalizer")

    def warmup(self, steps: int) -> int:
        """Steps of linear warm-up in a run of `steps`."""
        return round(self.warmup_fraction * steps) if self.warmup_steps is None else self.warmup_steps


class PrecisionConfig(Section):
    """Which operand of which site gets which number format."""

    recipe: str = Field("bf16", description="see precisionlm.precision.recipe")
    backward: Literal["quantized", "unquantized"] = Field(
        "quantized", description="whether gradient products take the quantized operands of the forward pass"
    )
    execution: Literal["simulated", "native"] = Field("simulated", description="native: int4, int8, fp8 products")

    @field_validator("recipe")
    @classmethod
    def _canonical(cls, text: str) -> str:
        try:
            return str(parse_recipe(text))
        except UserError as error:
            raise ValueError(str(error)) from None


class TrainingConfig(Section):
    """How long, how large a batch, how often evaluated."""

    steps: int = Field(ge=1, le=_COUNT, description="optimizer steps")
    batch_size: int = Field(ge=1, le=_COUNT, description="sequences per step")
    accumulate: int = Field(1, ge=1, description="parts of a batch that gradients are summed over, one after the other")
    loss_chunks: int = Field(1, ge=1, description="parts of a sequence whose logits are in memory one after the other")
    seed: int = Field(0, ge=0, le=_COUNT, description="of initial weights and data order; equal seeds are paired arms")
    weights_from: str | None = Field(
        None,
        pattern=r"(^|/)[0-9a-f]{12}/*$",
        description="finished run directory, under its run id, whose weights to begin with",
    )
    imported: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{12}$",
        description="hash of weights that came from elsewhere (`precisionlm import`); such a run is never trained",
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of activations; weights are float32")
    reduce_dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="in which gradients of weights are summed over devices; float32 sends twice the bytes"
    )
    eval_tokens: int = Field(1_000_000, ge=1, description="validation tokens; fewer if the split is smaller")
    eval_every: int | None = Field(None, ge=1, description="steps between evaluations; only at the end if absent")
    eval_bf16: bool = Field(False, description="also evaluate without quantization")
    remat: Literal["none", "dots", "full"] = Field("dots", description="the backward pass recomputes all but products")
    unroll: int | None = Field(
        None, ge=1, description="layers per iteration of the loop over layers; if absent all on GPUs, else 1"
    )
    deterministic: bool = Field(
        False, description="on GPUs too: every run gives the same bits; slower, without flash attention"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="non-finite loss or gradient: end as diverged, or skip the update, and end so after 100 skipped in "
        "a row, or if more than half of all steps were",
    )
    divergence_loss: float = Field(20.0, gt=0, description="nats/token above which a run counts as diverged")


class MeshConfig(Section):
    """Devices by role; the product is the number of devices, and one of them may be -1 (the rest)."""

    replica: int = Field(1, description="data parallel, over slices")
    fsdp: int = Field(-1, description="data parallel with sharded weights")
    tensor: int = Field(1, description="tensor parallel")

    @field_validator("replica", "fsdp", "tensor")
    @classmethod
    def _size(cls, devices: int) -> int:
        if devices != -1 and not 1 <= devices <= _COUNT:
            raise ValueError(f"{devices}: must be at least 1, or -1 for the rest of the devices")
        return devices


class CheckpointConfig(Section):
    """When state is saved; also at the end and when the machine is taken away."""

    folder: str | None = Field(None, description="where they go, such as gs://bucket/runs; else the run directory")
    every_steps: int | None = Field(None, ge=1, description="steps between saves; by time alone if absent")
    every_seconds: float | None = Field(600.0, gt=0, description="seconds between saves; by steps alone if null")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    notice: Literal["gce", "aws"] | None = Field(None, description="ask this cloud whether it takes the machine away")
    trunk: bool = Field(False, description="wsd: keep the state before the decay; longer runs begin from it")


class TrackingConfig(Section):
    """What is written besides the run directory's own record."""

    tensorboard: bool = Field(False, description="also as TensorBoard events, in the run directory")
    wandb_project: str | None = Field(None, description="also to this Weights & Biases project")
    profile_from: int | None = Field(None, ge=1, description="first step of a profiler trace; none if absent")
    profile_steps: int = Field(3, ge=1, description="steps of that trace")
    log_hlo: bool = Field(False, description="write the training step's StableHLO to the run directory")
    quantization_every: int | None = Field(
        None, ge=1, description="steps between measurements of every site's quantization error; none if absent"
    )


class Experiment(Section):
    """One training run: a point (N, D, precision)."""

    name: str = Field("", description="free text that groups runs in tables; no part of the run id")
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    precision: PrecisionConfig = PrecisionConfig()
    training: TrainingConfig
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _parts(self) -> Self:
        t = self.training
        if t.batch_size % t.accumulate:
            raise ValueError(f"training.accumulate {t.accumulate} does not divide training.batch_size {t.batch_size}")
        if self.data.sequence_length % t.loss_chunks:
            raise ValueError(
                f"training.loss_chunks {t.loss_chunks} does not divide data.sequence_length {self.data.sequence_length}"
            )
        return self

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.training.batch_size * self.data.sequence_length

    @property
    def tokens(self) -> int:
        """Tokens trained on (D)."""
        return self.training.steps * self.batch_tokens


def load(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from YAML and apply `--a.b value` overrides. Raises UserError with file and key path."""
    return build(apply_overrides(yaml_text.read_yaml(path), overrides or []), str(path))


def to_yaml(experiment: Experiment) -> str:
    """Canonical YAML: every key, in the tree's order."""
    return yaml_text.dump(experiment.model_dump())


_TEXTS = (
    "recipe",
    "path",
    "name",
    "weights_from",
    "folder",
    "cache",
)  # taken as they are (1e5 is a name too), but for null


def apply_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`['--training.steps', '50']` or `['--training.steps=50']` onto a copy of the tree. Raises UserError."""
    tree = deepcopy(tree)
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2 or any(not flag.startswith("--") for flag in words[::2]):
        raise UserError(f"overrides must come as '--section.key value'; got '{' '.join(overrides)}'")
    for flag, value in zip(words[::2], words[1::2], strict=True):
        *parents, key = flag.removeprefix("--").split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"override {flag}: '{parent}' is no section")
        node[key] = _value(flag, key, value)
    return tree


def _value(flag: str, key: str, text: str) -> Any:
    if not yaml_text.is_text(text):
        raise UserError(f"override {flag}: the value holds characters that no file can")
    if key in _TEXTS and text != "null":
        return text
    try:
        return yaml_text.parse(text)
    except UserError as error:
        raise UserError(f"override {flag} {text[:80]}: {error}") from None


def build(tree: dict[str, Any], source: str) -> Experiment:
    """Validate a tree. Raises UserError: file, key path, what is wrong and the nearest valid key or the range."""
    return validated(Experiment, tree, source, words.KEYS)
