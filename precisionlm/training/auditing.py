"""The audit of one run: `precision.audit` on the very program that trains it, with its first batch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax

from precisionlm.cluster.processes import on_first
from precisionlm.precision import audit, marks
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.evaluate import place
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import Run
from precisionlm.training.step import Program, State, abstract_state, train_step

Measure = Callable[[tuple[Any, ...], Any], Any]  # (arguments of the training step, expected grids) → marks.Statistics


def audited(
    run: Run,
    directory: RunDirectory,
    state: State,
    products: Counter[str] | None = None,
    measure: Measure | None = None,
) -> dict[str, Any]:
    """audit.json's content, made and written where it is not there. Raises UserError as `audit_run` does."""
    applied = on_first(lambda: directory.read_json("audit.json"))
    if applied is None:
        applied = audit_run(run, state, products, measure)
        on_first(lambda: directory.write_json("audit.json", applied))
    return applied


def audit_run(
    run: Run, state: State, products: Counter[str] | None = None, measure: Measure | None = None
) -> dict[str, Any]:
    """audit.json's content, from the training step's program and the first batch. products: those of a step of the
    program that trains the run, where it is not the run's own (`marks.count_products`); measure: what `lower_measure`
    compiles to, if it was called. Raises UserError where a recipe entry reached no product."""
    tokens = place(next(run.train_batches())["tokens"], run.program)
    structure, layers = run.program.structure, run.experiment.model.layers
    counts = marks.count_products(_traced_step(run, state, tokens).jaxpr) if products is None else products
    audit.check_applied(run.recipe, structure, counts)
    measured = _measured(run, state, tokens, measure) if structure.sites else {}
    return audit.report(run.recipe, structure, counts, measured, layers)


def quantization_errors(run: Run, state: State, tokens: jax.Array) -> dict[str, float]:
    """`quantization/site.operand/NAME` → clipped, zeros, mse and relative_mse, as in audit.json, in the training step
    that takes these tokens from this state; the program is the audit's."""
    if not run.program.structure.sites:
        return {}
    measured = _measured(run, state, tokens, None)
    found = audit.errors(run.recipe, run.program.structure, measured, run.experiment.model.layers)
    return {f"quantization/{at}/{name}": value for at, values in found.items() for name, value in values.items()}


def _measured(run: Run, state: State, tokens: jax.Array, measure: Measure | None) -> Any:
    """The statistics of every quantized operand, on the host."""
    expected = audit.expected_grids(run.recipe, run.program.structure, run.experiment.model.layers)
    return jax.device_get((measure or _measuring(run.program))(_arguments(run, state, tokens), expected))


def lower_measure(run: Run) -> Any:
    """What measures the operands of runs of one program, traced: it compiles to a `Measure`."""
    tokens = place(next(run.train_batches())["tokens"], run.program)
    expected = audit.expected_grids(run.recipe, run.program.structure, run.experiment.model.layers)
    return _measuring(run.program).lower(_arguments(run, abstract_state(run.program), tokens), expected)


@cache
def _measuring(program: Program) -> Any:
    """Jitted (arguments of the training step, expected grids) → statistics of every quantized operand."""
    wanted = frozenset(f"{site}.{operand}" for site, operand, _ in program.structure.entries())
    program = replace(program, unroll=1)  # the same values, from a program that compiles in a third of the time

    def measure(arguments: Any, expected: Any) -> marks.Statistics:
        jaxpr = train_step(program).trace(*arguments).jaxpr
        return marks.statistics(jaxpr, expected, wanted, jax.tree.leaves(arguments))

    # It runs seldom, so finding the fastest kernels would take longer than they save.
    return jax.jit(measure, compiler_options={"xla_gpu_autotune_level": 0} if program.on_gpu else None)


def step_text(run: Run, state: State) -> str:
    """The training step's program in StableHLO, as the compiler gets it."""
    return str(_traced_step(run, state, place(next(run.train_batches())["tokens"], run.program)).lower().as_text())


def _traced_step(run: Run, state: State, tokens: jax.Array) -> Any:
    return train_step(run.program).trace(*_arguments(run, state, tokens))


def _arguments(run: Run, state: State, tokens: jax.Array) -> tuple[Any, ...]:
    """Of the training step."""
    return state, tokens, run.grids, hyperparameters(run.experiment), run.experiment.training.seed
