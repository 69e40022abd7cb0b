"""Loss along training, from the metrics that runs wrote: `FOLDER/RUN_ID/metrics.jsonl`, a JSON object a line."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import bins, canvas, contain, legend, log_axis, span, styled
from precisionlm.analysis.figures.recipes import Recipes

COLUMNS = ("run_id", "N_params", "batch_tokens")
EARLY = 0.01  # of the longest run: what lies before it is not shown
WINDOW = 0.02  # share of a run that the training loss is averaged over


def curves(frame: pd.DataFrame, recipes: Recipes, folder: Path) -> Figure | None:
    """Loss against tokens, a panel a model size, a look a recipe: training loss as a line, evaluations as points.

    frame: the table as read. None where it lacks the columns or no run of it has metrics in the folder.
    """
    if not set(COLUMNS) <= set(frame.columns):
        return None
    rows = frame.assign(_recipe=recipes.labels).drop_duplicates("run_id")
    runs = [run for run in map(str, rows["run_id"]) if Path(run).name == run != ".."]  # others lie elsewhere
    found = {run: metrics(folder / run / "metrics.jsonl") for run in runs}
    return curves_of(rows.assign(run=rows["run_id"].astype(str)), recipes, found)


@styled
def curves_of(rows: pd.DataFrame, recipes: Recipes, found: Mapping[str, pd.DataFrame]) -> Figure | None:
    """The same for any runs. rows: a row a run, with its N_params, batch_tokens and _recipe, the label of its look;
    found: the metrics of each by the column `run`. None where no run has metrics."""
    rows = rows[[len(found.get(run, ())) > 0 for run in rows["run"]]]
    if not len(rows):
        return None
    panels = bins(rows["N_params"].to_numpy(float))
    figure, axes = canvas(len(panels), sharey=True)
    seen = []
    for ax, (_, inside) in zip(axes[0], panels, strict=True):
        here = rows[inside]
        for name in recipes.order(here["_recipe"].to_numpy()):
            look = recipes.looks[name]
            ax.plot([], [], **look.points() | look.line(), label=name)
            for _, run in here[here["_recipe"] == name].iterrows():
                lines = found[run["run"]]
                for column, style in (("loss", look.line() | {"lw": 0.8, "alpha": 0.7}), ("val_loss", look.points())):
                    if column in lines.columns:
                        known = lines[lines[column].notna()]
                        x, y = (
                            (known["step"] * float(run["batch_tokens"])).to_numpy(float),
                            known[column].to_numpy(float),
                        )
                        y = smooth(y) if column == "loss" else y
                        ax.plot(x, y, **style)
                        seen.append(y[len(y) // 20 :])
        ax.set(title=f"N = {span(here['N_params'].to_numpy(float))}", xlabel="training tokens")
        ax.set_xlim(left=ax.get_xlim()[1] * EARLY)
        log_axis(ax)
    contain(axes[0, 0], np.concatenate(seen))
    axes[0, 0].set_ylabel("loss (nats/token)")
    legend(figure, axes[0], "lines: training; points: validation")
    return figure


def metrics(path: Path) -> pd.DataFrame:
    """The lines of a metrics file, up to one that was cut short; empty where there is no such file."""
    rows = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return pd.DataFrame([row for row in rows if isinstance(row, dict) and "step" in row])


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the values up to each one, over a window of a fixed share of them all."""
    width = max(1, int(len(values) * WINDOW))
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - width, 0)
    return (total[ends] - total[begins]) / (ends - begins)
