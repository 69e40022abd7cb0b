"""The figures that a law's own paper shows: a law names the module that draws them."""

import importlib
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import styled
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.base import Law


@styled
def of_constants(law: Law, params: Mapping[str, float]) -> dict[str, Figure]:
    """Those that follow from constants alone, by name; none for a law without a module."""
    return importlib.import_module(law.figures).draw(law, params) if law.figures else {}


@styled
def of_runs(frame: pd.DataFrame, analysis: Analysis) -> dict[str, Figure]:
    """Those that show runs beside the law, by name; none where the module has none."""
    if not analysis.law.figures:
        return {}
    module = importlib.import_module(analysis.law.figures)
    return module.of_runs(frame, analysis) if hasattr(module, "of_runs") else {}
