"""From a runs table to a law, an interval and a decision. Depends on no training code.

table.py      read and validate a runs table; count what is used and what is not, with reasons
laws/         the scaling laws with precision, one file a paper
objective.py  what a fit minimises
solve.py      the minimiser: all starts at once, exact derivatives
fit.py        law + table -> constants, status, conditioning
bootstrap.py  intervals and prediction bands
compare.py    laws against each other on rows they have not seen
optimum.py    compute-optimal N, D and precision; critical data; iso-loss sets
cost.py       what a training token costs at P bits
design.py     which runs to add next
figures.py    figures from data and laws;  report.py  one self-contained HTML page
cli.py        the verbs fit, compare, plan, figures, report
"""
