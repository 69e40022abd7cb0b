"""One damaged call of the command line: which files are changed how, and the words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

NASTY = (
    "", " ", "0", "-1", "1e7", "1e-9", "nan", ".nan", "inf", "-inf", "1e999", "9" * 25, "2147483648", "null",
    "~", "true",
    "[", "]", "{a", "}", "*x", "&a [*a]", "@", "%", "!!set {a}", "!!python/name:os.system", "? [1]",
    "2020-01-01", "1:30",
    "010", "0x", "\u0663", "\u00b2", "\x00", "\x1b[2J", "\ud800", "\u202e", "'", '"', "\\", "\t", "\n", "\r",
    "---", "...",
    "<<: *a", "[" * 200, "{a: " * 200, "x" * 5000, "../../etc/passwd", "/dev/null", "/dev/zero",
    "/proc/self/mem", "gs://b/x",
    "=", ":", ",", ";", "-", "--", "#", "`", "$(id)", "None", "Infinity", "NaN", '{"a": 1}', "[1, 2]",
    "W4A8", "W0", "W99",
    "int4/g0", "mxfp4", "e9m9", "W4A8@layer", "W4[99999]", "(((", "N/0", "D**999", "a.b.c", "1,2,3", "1/0", "auto",
)  # fmt: skip
KEYS = ("model.layers", "model.width", "model.heads", "model.kv_heads", "model.head_size", "model.vocab_size",
        "model.rope_scaling", "data.path", "data.sequence_length", "data.unique_tokens", "optimizer.learning_rate",
        "optimizer.warmup_steps", "optimizer.schedule", "precision.recipe", "precision.execution", "training.steps",
        "training.batch_size", "training.accumulate", "training.seed", "training.weights_from", "training.eval_tokens",
        "mesh.fsdp", "checkpoint.folder", "tracking.tensorboard", "training", "name", "preset", "x",
        "model.layers.x")  # fmt: skip
OUT = ("o", "run.yaml/x", "data/o")
Change = Callable[[bytes], bytes]


@dataclass
class Case:
    """words of the call; changes: of which files, as (name below the folder, a `*` for any one, new bytes from old)."""

    words: list[str]
    changes: list[tuple[str, Change]] = field(default_factory=list)


@st.composite
def damage(draw: Any) -> Change:
    """Cut, repeat, replace or insert somewhere; or put something else in the place of all of it."""
    kind = draw(st.sampled_from(("cut", "drop", "repeat", "insert", "replace", "line", "flip", "empty", "other")))
    where, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    nasty = draw(st.sampled_from(NASTY)).encode("utf-8", "surrogatepass")
    noise = draw(st.binary(min_size=1, max_size=20))

    def change(old: bytes) -> bytes:
        at = int(where * len(old))
        begin, rest = old[:at], old[at:]
        match kind:
            case "cut":
                return begin
            case "drop":
                return begin + rest[length:]
            case "repeat":
                return begin + rest[:length] * 3 + rest[length:]
            case "insert":
                return begin + nasty + rest
            case "replace":
                return begin + nasty + rest[length:]
            case "line":  # what stands after the next colon or comma
                cut = min((i for i in (rest.find(b":"), rest.find(b",")) if i >= 0), default=0) + 1
                end = rest.find(b"\n", cut) if b"\n" in rest[cut:] else len(rest)
                return begin + rest[:cut] + b" " + nasty + rest[end:]
            case "flip":
                return begin + noise + rest[len(noise) :]
            case "empty":
                return b""
        return nasty if length % 2 else noise

    return change


def _word(draw: Any) -> str:
    return str(
        draw(st.one_of(st.sampled_from(NASTY), st.text(max_size=8), st.integers().map(str), st.floats().map(str)))
    )


def _options(draw: Any, names: tuple[str, ...]) -> list[str]:
    chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    return [f"{name}={_word(draw)}" for name in chosen]


def _overrides(draw: Any) -> list[str]:
    keys = draw(st.lists(st.sampled_from(KEYS), max_size=2))
    return [word for key in keys for word in (f"--{key}", _word(draw))]


PLAN = ("--compute", "--size", "--tokens", "--bits", "--block", "--at", "--cost", "--inference-tokens", "--iso-loss",
        "--next", "--quantity", "--format")  # fmt: skip
FIT = ("--where", "--columns", "--objective", "--starts", "--bootstrap", "--fix", "--bound", "--start", "--reference")
RUN_FILES = ("result.json", "config.yaml", "metrics.jsonl", "ptq/*.json", "evaluations/*.json")


@st.composite
def cases(draw: Any) -> Case:
    """Any damaged call that trains nothing."""
    verb = draw(st.sampled_from(("train", "sweep", "status", "explain", "plan", "fit", "compare", "table", "ptq",
                                 "evaluate", "data", "predict", "score", "publish", "words")))  # fmt: skip
    some = draw(st.lists(damage(), max_size=2))
    out = draw(st.sampled_from(OUT))
    run_file = f"runs/*/{draw(st.sampled_from(RUN_FILES))}"
    match verb:
        case "train":
            file = draw(st.sampled_from(("run.yaml", "data/meta.json", "data/tokenizer.json", "data/val.bin")))
            words = ["train", "run.yaml", "--out", out, "--dry-run", *_options(draw, ("--mfu", "--chip"))]
            return Case([*words, *_overrides(draw)], [(file, one) for one in some])
        case "sweep":
            words = ["sweep", "sweep.yaml", "--out", out, "--dry-run"]
            return Case([*words, *_options(draw, ("--pack", "--shard", "--ptq")), *_overrides(draw)],
                        [("sweep.yaml", one) for one in some])  # fmt: skip
        case "status":
            return Case(["sweep", "status", "sweep.yaml", "--out", "runs"], [(run_file, one) for one in some])
        case "explain":
            recipe = draw(st.one_of(st.lists(st.sampled_from(NASTY), max_size=3).map("".join),
                                    st.text("WAKVGQ0123456789-@:,|[]=/_.gefmintcadsr+", max_size=20)))  # fmt: skip
            return Case(["precision", "explain", *_options(draw, ("--layers",)), "--", recipe])
        case "plan":
            law = draw(st.sampled_from(("kumar", "chinchilla", "sun", "frantar", "chen", "x")))
            sane = draw(
                st.sampled_from(([], ["--compute=1e21"], ["--size=1e9", "--tokens=1e10"], ["--size=1e9", "--critical"]))
            )
            return Case(["plan", "--law", law, "--published", *sane, *_options(draw, PLAN)])
        case "fit":
            words = ["fit", "--runs", "table.csv", "--law", "kumar", "--dry-run", *_options(draw, FIT)]
            return Case(words, [("table.csv", one) for one in some])
        case "compare":
            words = ["compare", "--runs", "table.csv", "--laws", "kumar,chinchilla", "--dry-run"]
            return Case(
                [*words, *_options(draw, ("--where", "--folds", "--starts"))], [("table.csv", one) for one in some]
            )
        case "table":
            return Case(["table", "runs", "-o", f"{out}/runs.csv"], [(run_file, one) for one in some])
        case "ptq":
            words = [
                "ptq",
                "runs",
                "--dry-run",
                *_options(draw, ("--weights", "--method", "--steps", "--at", "--seed")),
            ]
            return Case([*words, *_options(draw, ("--calibration", "--recipe"))], [(run_file, one) for one in some])
        case "evaluate":
            keys = draw(
                st.lists(st.sampled_from(("precision.recipe", "training.eval_tokens", "data.path")), max_size=1)
            )
            words = [word for key in keys for word in (f"--{key}", _word(draw))]
            return Case(["evaluate", "runs", "--dry-run", *words], [(run_file, one) for one in some])
        case "predict":
            file = draw(st.sampled_from(("cells.yaml", "sweep.yaml", "table.csv")))
            words = ["predict", "--runs", "table.csv", "--law", "chinchilla,kumar", "--cells", file, "--dry-run"]
            return Case([*words, *_options(draw, ("-o", "--law", "--where"))], [(file, one) for one in some])
        case "score":
            file = draw(st.sampled_from(("predictions.csv", "table.csv")))
            words = ["score", "predictions.csv", "table.csv", *_options(draw, ("--by",))]
            return Case(words, [(file, one) for one in some])
        case "publish":
            options = draw(st.sampled_from(("--law chinchilla", "--law kumar --where w_bits<16")))
            words = ["publish", "table.csv", "--out", f"{out}/new", f"--fit={options}{draw(st.sampled_from(NASTY))}"]
            more = _options(draw, ("--date", "--data", "--title", "--license"))
            return Case([*words, "--dry-run", *more], [("table.csv", one) for one in some])
        case "data":
            file = draw(st.sampled_from(("docs.jsonl", "tokenizer.json")))
            words = ["data", "prepare", "docs.jsonl", "--out", "o", "--tokenizer", "tokenizer.json", "--dry-run"]
            return Case([*words, *_options(draw, ("--eos-id", "--validation-every"))], [(file, one) for one in some])
    return Case(draw(st.lists(st.one_of(st.sampled_from(("train", "table", "run.yaml", "runs", "--json", "--dry-run")),
                                        st.sampled_from(NASTY)), max_size=4)))  # fmt: skip
