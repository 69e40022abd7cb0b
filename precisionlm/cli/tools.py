"""Verbs that train nothing: compile for other machines, explain recipes, measure speed."""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

from precisionlm.cli.data_bench import add_data_bench
from precisionlm.cli.fit_arguments import names_of
from precisionlm.cli.verbs import add_verb, check_counts
from precisionlm.errors import BAD_INPUT, DONE, UserError
from precisionlm.json_text import dumps


def add_tools(verbs: Any) -> None:
    """Register compile, precision explain and the verbs of bench."""
    compile_ = add_verb(
        verbs,
        "compile",
        _compile,
        "Compile the real train step for a TPU that is not here: memory against HBM, types of every matrix product,\n"
        "bytes over links, an estimate of the step. Needs libtpu (extra tpu-aot), no TPU and no data. Overrides as for "
        "train.",
        "precisionlm compile configs/kumar2024/experiment.yaml --topology v5e:2x2",
        overrides=True,
    )
    compile_.add_argument("config", type=Path, help="experiment YAML; with --sweep a sweep YAML")
    compile_.add_argument("--topology", required=True, help="v5e:2x2, v5e:16x16, v5p:2x2x4, v6e:4x4, …")
    compile_.add_argument("--sweep", action="store_true", help="every program of a grid; stops where one does not fit")
    compile_.add_argument("--pack", type=int, metavar="N", help="a step of N such runs on every device")
    compile_.add_argument("--timeout", type=float, default=3600.0, help="seconds for one program")
    compile_.add_argument("--json", action="store_true", help="print the reports as JSON")

    recipes = verbs.add_parser("precision", help="Explain precision recipes", allow_abbrev=False)
    explain = add_verb(
        recipes.add_subparsers(required=True, metavar="VERB"),
        "explain",
        _explain,
        "Print what every operand of every site gets: format, bits with and without scales, scale sharing, values.",
        'precisionlm precision explain "W4A4-g128@down:A8" --plot grids.png',
    )
    explain.add_argument("recipe", help="docs/recipes.md has the words; W4A8KV8, W4A4-g128@down:A8, mxfp4, ...")
    explain.add_argument("--layers", type=int, default=4, help="of the model, for rules that name layers")
    explain.add_argument("--plot", type=Path, help="draw the formats' grids to this PNG or SVG file")
    explain.add_argument("--json", action="store_true", help="print the rows as JSON")

    bench = verbs.add_parser("bench", help="Measure speed on the machine at hand", allow_abbrev=False)
    bench_verbs = bench.add_subparsers(required=True, metavar="VERB")
    add_data_bench(bench_verbs)
    precision = add_verb(
        bench_verbs,
        "precision",
        _bench_precision,
        "Time whole training steps at many recipes against bf16, in turns, and print a table of ratios.",
        "precisionlm bench precision --size 85M,1.2B",
    )
    precision.add_argument("--size", default="85M", help="tiny, 3M, 85M, 1.2B, wide (4096), separated by commas")
    precision.add_argument(
        "--recipes", help="separated by spaces, native:RECIPE for native products; twelve of all kinds if absent"
    )
    precision.add_argument("--rounds", type=int, default=5, help="turns of eight steps for every recipe")
    precision.add_argument("--json", action="store_true", help="print the rows as JSON")

    scaling = add_verb(
        bench_verbs,
        "scaling",
        _bench_scaling,
        "Time the training step over 1, 2, 4, … of this machine's devices, in turns.",
        "precisionlm bench scaling --size 1.2B --mesh fsdp,replica --reduce-dtype bfloat16,float32",
    )
    scaling.add_argument("--size", default="85M", help="tiny, 3M, 85M, 1.2B or wide (4096)")
    scaling.add_argument("--recipe", default="bf16", help="recipe of the model")
    scaling.add_argument("--mesh", default="fsdp", help="axes that the devices are along: fsdp, replica or both")
    scaling.add_argument(
        "--reduce-dtype", default="bfloat16", help="what devices add up gradients in: bfloat16, float32 or both"
    )
    scaling.add_argument("--rounds", type=int, default=5, help="turns of eight steps for every row")
    scaling.add_argument("--json", action="store_true", help="print the rows as JSON")

    training = add_verb(
        bench_verbs,
        "training",
        _bench_training,
        "Time whole training commands on random tokens: seconds to the first loss, cold and with a warm compilation "
        "cache,\nand what checkpoints cost.",
        "precisionlm bench training --size 85M",
    )
    training.add_argument("--size", default="85M", help="tiny, 3M, 85M, 1.2B or wide (4096)")
    training.add_argument("--recipe", default="bf16", help="recipe of the model")
    training.add_argument("--steps", type=int, default=320, help="of every run")
    training.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    training.add_argument("--rounds", type=int, default=3, help="pairs of runs with and without checkpoints")
    training.add_argument("--json", action="store_true", help="print the findings as JSON")

    sweep = add_verb(
        bench_verbs,
        "sweep",
        _bench_sweep,
        "Time a grid of small runs as whole jobs: packed, unpacked, as separate commands, by another version, in "
        "PyTorch;\nor the packed steps alone.",
        "precisionlm bench sweep --sizes 1.8M --baseline ../older",
    )
    sweep.add_argument("--sizes", default="0.44M,1.8M,6M,14M", help="separated by commas; tiny too")
    sweep.add_argument("--runs", type=int, default=16, help="of every size: 16 precisions, then other seeds")
    sweep.add_argument("--tokens", type=float, default=5e6, help="of every run")
    sweep.add_argument("--data", type=Path, help="prepared folder; random tokens if absent")
    sweep.add_argument("--jobs", default="packed,unpacked,separate", help="which of these")
    sweep.add_argument(
        "--baseline", type=Path, metavar="DIR", help="source tree of another version: the same grid by it"
    )
    sweep.add_argument(
        "--torch", nargs="?", const=sys.executable, metavar="PYTHON", help="also in PyTorch, by this Python if given"
    )
    sweep.add_argument(
        "--measured", type=int, default=3, help="separate commands of a size that are run, the rest reckoned"
    )
    sweep.add_argument("--rounds", type=int, help="times that every job is done (1), or that steps are timed (5)")
    sweep.add_argument("--steps-only", action="store_true", help="packed steps alone, without anything around them")
    sweep.add_argument("--dispatch", type=int, default=10, help="with --steps-only: steps of a dispatch")
    sweep.add_argument(
        "--remat", choices=("none", "dots", "full"), help="with --steps-only; what a sweep takes if absent"
    )
    sweep.add_argument("--json", action="store_true", help="print the rows as JSON")

    fit = add_verb(
        bench_verbs,
        "fit",
        _bench_fit,
        "Time the fitter, compilation included: 4500 starts, 4000 bootstrap refits, the unified law.",
        "precisionlm bench fit --runs chinchilla_epoch.csv --where in_published_fit",
    )
    fit.add_argument("--runs", type=Path, help="runs table for the Chinchilla fit; a simulated one if absent")
    fit.add_argument("--where", help="use only its rows where this column or expression is true")

    coverage = add_verb(
        bench_verbs,
        "coverage",
        _bench_coverage,
        "Measure how often 95 % intervals hold the truth, on simulated tables whose runs share the noise of their "
        "(N, D) or do not.",
        "precisionlm bench coverage --laws chinchilla,sun --tables 100",
    )
    coverage.add_argument("--laws", help="separated by commas; all that tables are simulated for if absent")
    coverage.add_argument("--tables", type=int, default=100, help="simulated tables of every kind")
    coverage.add_argument("--bootstrap", type=int, default=200, metavar="N", help="refits for every table")
    coverage.add_argument("--objective", default="huber:1e-3", help="as for fit")
    coverage.add_argument("--json", action="store_true", help="print the rows as JSON")


def _compile(args: argparse.Namespace) -> int:
    from precisionlm.model.presets import load_experiment
    from precisionlm.sweep.grid import load_sweep

    # Errors of the file come before JAX does.
    asked = load_sweep(args.config, args.rest) if args.sweep else [load_experiment(args.config, args.rest)]
    from precisionlm.compiling.ahead_of_time import compile_for, compile_sweep
    from precisionlm.compiling.report import answered, as_json, as_text, details
    from precisionlm.progress import reporting

    with reporting("compile") as report:
        if args.sweep:
            rows = compile_sweep(asked, args.topology, args.timeout, report, args.pack)
        else:
            rows = [compile_for(asked[0], args.topology, args.timeout, args.pack)]
    if args.json:
        print(as_json(rows))
    else:
        print(as_text(rows) if args.sweep else details(rows[0]))
    return DONE if answered(rows) else BAD_INPUT


def _explain(args: argparse.Namespace) -> int:
    from precisionlm.precision.explain import as_text, explain, plot
    from precisionlm.precision.recipe import parse_recipe

    check_counts(args, layers=(1, 10_000))
    recipe = parse_recipe(args.recipe)
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {args.plot}: the name must end in .png or .svg")
    print(dumps(explain(recipe, args.layers)) if args.json else as_text(recipe, args.layers))
    if args.plot:
        plot(recipe, args.plot, args.layers)
    return DONE


def _bench_precision(args: argparse.Namespace) -> int:
    from precisionlm.bench.precision import print_bench

    check_counts(args, rounds=(1, 1000))

    print_bench(args.size, args.recipes, args.rounds, args.json, partial(print, file=sys.stderr, flush=True))
    return DONE


def _bench_scaling(args: argparse.Namespace) -> int:
    from precisionlm.bench.scaling import as_table, bench_scaling

    check_counts(args, rounds=(1, 1000))
    axes, dtypes = args.mesh.split(","), args.reduce_dtype.split(",")
    rows = bench_scaling(args.size, args.recipe, axes, dtypes, args.rounds, partial(print, file=sys.stderr, flush=True))
    print(dumps(rows) if args.json else as_table(rows))
    return DONE


def _bench_training(args: argparse.Namespace) -> int:
    from precisionlm.bench.training import as_text, bench_training

    check_counts(args, steps=(1, 2**31 - 1), every=(1, 2**31 - 1), rounds=(1, 1000))

    found = bench_training(
        args.size,
        args.recipe,
        args.steps,
        args.every,
        args.rounds,
        partial(print, file=sys.stderr, flush=True),
    )
    print(dumps(found) if args.json else as_text(found))
    return DONE


def _bench_sweep(args: argparse.Namespace) -> int:
    from precisionlm.bench import packed, sweep

    check_counts(args, rounds=(1, 1000), runs=(1, 10_000), dispatch=(1, 10_000), measured=(1, 10_000))
    if not 0 < args.tokens < math.inf:
        raise UserError(f"--tokens {args.tokens:g}: must be a positive number")

    say, sizes = partial(print, file=sys.stderr, flush=True), tuple(args.sizes.split(","))
    if args.steps_only:
        rows = packed.bench_packed(sizes, args.runs, args.dispatch, args.remat, _or(args.rounds, 5), say)
        print(dumps(rows) if args.json else packed.as_table(rows))
        return DONE
    asked = sweep.Asked(
        sizes,
        args.runs,
        args.tokens,
        args.data,
        tuple(filter(None, args.jobs.split(","))),
        args.baseline,
        args.torch,
        args.measured,
        _or(args.rounds, 1),
    )
    jobs = sweep.bench_sweep(asked, say)
    print(dumps(sweep.as_rows(jobs)) if args.json else sweep.as_table(jobs))
    return DONE


def _or(given: int | None, default: int) -> int:
    return default if given is None else given


def _bench_fit(args: argparse.Namespace) -> int:
    from precisionlm.analysis.table import read as table
    from precisionlm.bench.fit import bench_fit

    print(dumps(bench_fit(table.read(args.runs) if args.runs else None, args.where), indent=1))
    return DONE


def _bench_coverage(args: argparse.Namespace) -> int:
    from precisionlm.analysis.fitting.objective import parse_objective
    from precisionlm.analysis.laws import LAWS
    from precisionlm.bench.coverage import bench_coverage

    known = [name for name, law in LAWS.items() if law.arms]
    names = known if args.laws is None else names_of(args.laws)
    if not names or not set(names) <= set(known):
        raise UserError(f"--laws {args.laws}: tables are simulated for {', '.join(known)}")
    if args.tables < 1 or args.bootstrap < 2:
        raise UserError("--tables must be at least 1 and --bootstrap at least 2")
    say = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    rows = bench_coverage(names, args.tables, args.bootstrap, objective=parse_objective(args.objective), say=say)
    if args.json:
        print(dumps(rows))
    return DONE
