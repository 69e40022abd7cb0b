"""Every figure of a fit that its law and rows allow, and what each shows."""

from matplotlib.figure import Figure

from precisionlm.analysis.figures import checks, curves, effective
from precisionlm.analysis.figures.draw import styled
from precisionlm.analysis.figures.recipes import Recipes
from precisionlm.analysis.fitting.analysis import Analysis

CAPTIONS = {
    "loss_vs_tokens": "Loss against training tokens: points are runs, lines the law, bands its 95 % interval.",
    "loss_vs_size": "Loss against model size at equal tokens per parameter: points are runs, lines the law.",
    "loss_vs_bits": "Loss against the bits of each operand in training, the others at their commonest widths.",
    "effective_bits": "Share of the parameters that the bits of an operand keep, N_eff/N, the others unquantized.",
    "effective_recipes": "Share of the parameters that each recipe keeps, N_eff/N, with 95 % intervals.",
    "ptq_gap": "Loss added by quantizing the weights after training, against tokens per parameter.",
    "residuals": "Observed against predicted, and what the law leaves unexplained along width, N and D "
    "(bars: means and their standard errors).",
    "correlations": "Correlation of the fitted constants.",
    "held_out": "Observed against predicted for runs that the fit had not seen.",
    "learning": "Loss along training.",
}


@styled
def of_fit(analysis: Analysis, recipes: Recipes) -> dict[str, Figure]:
    """Figure by name. recipes: the looks that all figures of the table share (`recipes_of` the frame as read)."""
    made = {
        "loss_vs_tokens": curves.loss_vs_tokens(analysis, recipes),
        "loss_vs_size": curves.loss_vs_size(analysis, recipes),
        "loss_vs_bits": curves.loss_vs_bits(analysis),
        "effective_bits": effective.along_bits(analysis),
        "effective_recipes": effective.by_recipe(analysis, recipes),
        "ptq_gap": curves.ptq_gap(analysis),
        "residuals": checks.residuals(analysis, recipes),
        "correlations": checks.correlations(analysis),
    }
    return {name: figure for name, figure in made.items() if figure is not None}
