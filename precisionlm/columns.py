"""The runs table: one row a (run, evaluation). Every column and its unit, documented once, here.

`sweep.collect` writes these columns; `analysis` reads them. Neither imports the other.
"""

from dataclasses import dataclass

# Operands as columns. `w`, `a`: the forward product's weights and activations. `kv`, `q`, `p`: attention keys and
# values, queries, probabilities. `dgrad_*`, `wgrad_*`: the input-gradient and weight-gradient products (Sun et al.
# 2025 §2: P1 = a, P2 = w, P3 = dgrad_dy, P4 = dgrad_w, P5 = wgrad_dy, P6 = wgrad_x). Each is described by what the
# value that enters its product went through: P4 and P6 by P2's and P1's format where they take those values over.
OPERANDS = ("w", "a", "kv", "q", "p", "dgrad_dy", "dgrad_w", "wgrad_dy", "wgrad_x", "embed_w", "head_w", "head_a")

_PER_OPERAND = {
    "format": ("str", "name of the value grid: bf16, int4, e4m3, mxfp4, ..."),
    "bits": ("float", "bits per value, without scales (16 for bf16; log2(levels) for odd level counts)"),
    "exponent": ("float", "exponent bits (8 for bf16, 0 for integers)"),
    "mantissa": ("float", "mantissa bits (7 for bf16, bits - 1 for integers)"),
    "scale": (
        "str",
        "who shares a scale: none, tensor, channel (all along the contracted axis), group, block; token, token-group: "
        "along the channels of a token in a weight-gradient product; '(forward)': as in the forward product, whose "
        "value a gradient product takes over",
    ),
    "group": ("float", "elements that share one scale along that axis; inf for tensor, channel and token"),
    "scale_type": ("str", "number format of the scale itself: f32, bf16, e8m0, e8m0up (rounded up), e4m3"),
    "clip": ("str", "where the largest value lies: absmax, edge, mse, or trained: lsq, lac; none without quantization"),
    "rounding": ("str", "nearest, stochastic; none without quantization"),
    "rotation": (
        "int",
        "size of the Hadamard blocks that rotate the operand, negative with random signs; 0: none",
    ),
    "trust": ("bool", "no gradient passes through clipped values (QuEST's trust estimator)"),
}
_SHARE = "share of the operand's values (over sites and layers) that the columns describe; below 1: a mixture"


@dataclass(frozen=True)
class Column:
    """One column of the runs table: name, dtype (`str`, `int`, `float`, `bool`) and meaning with its unit."""

    name: str
    dtype: str
    meaning: str


COLUMNS: tuple[Column, ...] = (
    Column("run_id", "str", "hash of the canonical experiment tree; equal ids are the same experiment"),
    Column("schema", "int", "numerics that trained it (docs/identity.md); rows of two schemas do not compare"),
    Column("name", "str", "the experiment's own name, free text"),
    Column(
        "evaluation",
        "str",
        "trained: at the precision trained at; bf16: unquantized; recipe: at another one (`precisionlm evaluate`); "
        "ptq: after quantization; checkpoint: as trained, but of an intermediate checkpoint",
    ),
    Column(
        "intermediate",
        "bool",
        "of a checkpoint before the end of the run: D_tokens, steps and all that follows from them are those up to it",
    ),
    Column("eval_recipe", "str", "the recipe evaluated at, in its canonical spelling; of ptq, for all but the weights"),
    Column("eval_execution", "str", "simulated or native, of the evaluation"),
    Column(
        "status",
        "str",
        "done, or diverged: loss not finite or too high, or most steps skipped (100 in a row, or half of all)",
    ),
    Column("N_params", "int", "non-embedding parameters (count): everything but embedding table and head"),
    Column("N_total", "int", "all parameters (count)"),
    Column("D_tokens", "int", "tokens trained on (count), repetitions included"),
    Column("D_unique", "int", "distinct tokens among them (count)"),
    Column("epochs", "float", "D_tokens / D_unique's source size: passes over the training split"),
    Column("val_loss", "float", "cross entropy on the fixed validation set (nats/token)"),
    Column("val_loss_se", "float", "standard error of val_loss, clustered by document (nats/token); NaN below two"),
    Column("val_loss_se_sequences", "float", "the same if the validation sequences were independent (nats/token)"),
    Column(
        "delta",
        "float",
        "val_loss less that of `delta_to` on the same sequences (nats/token); NaN without one, or where the losses of "
        "sequences were not kept",
    ),
    Column("delta_se", "float", "standard error of delta, paired and clustered by document (nats/token)"),
    Column(
        "delta_to",
        "str",
        "run_id/evaluation of the partner: of ptq and recipe, the same weights as they were trained; of trained and "
        "bf16, the one run at bf16 that differs in its recipe alone; else empty",
    ),
    Column("val_tokens", "int", "validation tokens evaluated (count)"),
    Column("train_loss", "float", "mean training cross entropy over the last 5 % of steps (nats/token)"),
    Column("recipe", "str", "the precision recipe in its canonical spelling"),
    Column("execution", "str", "simulated or native"),
    Column("leaks_future", "bool", "a scale of this recipe is shared over time steps, so positions see later ones"),
    Column("backward", "str", "gradient products take the forward operands quantized or unquantized"),
    Column("precision_hash", "str", "hash of what every operand of every site and layer gets; equal: one precision"),
    *(
        Column(f"{operand}_{field}", dtype, f"{operand}: {meaning}")
        for operand in OPERANDS
        for field, (dtype, meaning) in (_PER_OPERAND | {"share": ("float", _SHARE)}).items()
    ),
    Column(
        "ptq_method",
        "str",
        "post-training quantization: none, rtn, gptq, awq; +mse: scales searched, +qep: earlier layers' errors made up "
        "for, +seq: matrix by matrix within a block",
    ),
    *(
        Column(
            f"ptq_{field}", dtype, f"weights after post-training quantization (empty where there was none): {meaning}"
        )
        for field, (dtype, meaning) in _PER_OPERAND.items()
    ),
    Column(
        "ptq_damping",
        "float",
        "largest λ that a Hessian needed (share of its mean diagonal; 0.01 at first); NaN where none was used",
    ),
    Column(
        "ptq_fallbacks",
        "str",
        "weights (layer.site) whose Hessian could not be used: rounded to nearest by gptq, not corrected by qep; else "
        "empty",
    ),
    Column("ptq_calibration", "str", "calibration text: its split and sha256, first 12 hex digits; empty without it"),
    Column("ptq_calibration_sequences", "int", "calibration sequences (count)"),
    Column("ptq_calibration_seed", "int", "seed by which they were drawn"),
    Column("ptq_calibration_tokens", "int", "tokens in them (count)"),
    Column("schedule", "str", "learning-rate schedule: cosine, wsd, linear"),
    Column("learning_rate", "float", "peak learning rate"),
    Column("final_lr_fraction", "float", "learning rate of the last update / largest one of the run"),
    Column("decay_share", "float", "share of the steps in which the learning rate falls (0 to 1)"),
    Column("warmup_steps", "int", "linear warm-up (steps), cut to the length of the run"),
    Column("weight_decay", "float", "decoupled weight decay"),
    Column("batch_tokens", "int", "tokens per optimizer step (count)"),
    Column("sequence_length", "int", "tokens per sequence (count)"),
    Column("steps", "int", "optimizer steps done, skipped ones included"),
    Column("skipped_steps", "int", "of the steps, those without a finite gradient, whose update was skipped (on_nan)"),
    Column(
        "stated_by_others",
        "str",
        "of an imported model: the columns that its maker states (or that follow from those), not measured here; what "
        "nobody states is empty. Else empty",
    ),
    Column("weights_from", "str", "run whose weights this one began with (its tokens are not in D_tokens); else empty"),
    Column("branch_from", "str", "run whose state of a shared trunk (wsd) this one began from; empty: fresh weights"),
    Column("branch_steps", "int", "of the steps, those taken over from that run"),
    Column("seed", "int", "seed of weights and data order; equal seeds are paired arms"),
    Column("layers", "int", "transformer blocks"),
    Column("width", "int", "residual stream width"),
    Column("vocab_size", "int", "tokenizer entries"),
    Column(
        "dataset", "str", "sha256 of the training tokens, first 12 hex digits; of a mixture, of its parts' and weights"
    ),
    Column("mixture", "str", "share, sha256, path and epochs of every part of a mixture; empty for one folder"),
    Column("validation", "str", "sha256 of the validation tokens, first 12 hex digits"),
    Column("tokenizer", "str", "sha256 of the tokenizer file, first 12 hex digits"),
    Column("flops", "float", "training FLOPs by formula, 16-bit-equivalent operations (count)"),
    Column(
        "tokens_per_second",
        "float",
        "batch_tokens / median time of a step (after the first ten, if there are more), whole job (tokens/s)",
    ),
    Column("mfu", "float", "model FLOPs (formula) per second and device / its bf16 peak; NaN for an unknown chip"),
    Column("wall_seconds", "float", "wall time in training, over all resumes (s)"),
    Column(
        "goodput", "float", "share of wall_seconds spent in training steps, without compilation, evaluation and waits"
    ),
    Column(
        "peak_memory", "float", "of the fullest device of process 0 since it started (bytes); NaN where not counted"
    ),
    Column(
        "segments", "int", "starts of the run (count), the resumes among them; result.json says what each ran under"
    ),
    Column("device", "str", "device kind x count; where starts differ, all of them in order, between them '; '"),
    Column("jax_version", "str", "version of jax; all of them, like device"),
    Column("package_version", "str", "version of precisionlm, +COMMIT where it runs from a checkout; like device"),
    Column("audit_dots", "int", "matrix products in the training step's program that carry a quantized operand"),
    Column("audit_clipped", "float", "largest share of clipped values over quantized operands"),
    Column("audit_zeros", "float", "largest share of non-zero values quantized to zero over quantized operands"),
    Column("audit_relative_mse", "float", "largest mean squared error / mean square over quantized operands"),
)

NAMES = tuple(column.name for column in COLUMNS)


def describe() -> str:
    """The table's documentation, a line a column."""
    return "\n".join(f"{c.name} ({c.dtype}): {c.meaning}" for c in COLUMNS)
