"""Words and numbers of fits that a command line offers, apart from what fits, which takes seconds to import."""

OVER = ("auto", "row", "run", "seed", "cell")  # rows that share their noise: `grouping`
LEAST_ROWS, LEAST_CELLS = 10, 3  # to be held out; fewer rows, or fewer (N, D) pairs, say little about a law
