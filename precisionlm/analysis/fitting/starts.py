"""Starting values: spread evenly over the non-linear constants, projected onto the data in the linear ones."""

from collections.abc import Mapping

import numpy as np

from precisionlm.analysis.laws.base import Law

BATCH = 512


def spread(law: Law, count: int, skip: int = 0) -> np.ndarray:
    """(count, p) natural values: an additive-recurrence sequence (Roberts 2018) over the start ranges.

    Even in every number of dimensions and free of chance, so a fit gives the same answer every time. Entries
    skip..skip + count of the sequence. Linear parameters stand at 1.
    """
    shape = [p for p in law.parameters if not p.projected and p.held is None]
    golden = 2.0
    for _ in range(64):
        golden = (1.0 + golden) ** (1.0 / (len(shape) + 1))
    index = np.arange(skip + 1, skip + count + 1)[:, None]
    unit = np.mod(0.5 + index * golden ** -np.arange(1.0, len(shape) + 1), 1.0)
    out = np.ones((count, len(law.parameters)))
    for j, p in enumerate(shape):
        low, high = p.begin or p.start
        low, high = (np.log(low), np.log(high)) if p.log else (low, high)
        value = low + (high - low) * unit[:, j]
        out[:, law.names.index(p.name)] = np.exp(value) if p.log else value
    for i, p in enumerate(law.parameters):
        if p.held is not None:
            out[:, i] = p.held
    return out


def starting_points(
    law: Law, columns: Mapping[str, np.ndarray], observed: np.ndarray, weights: np.ndarray, count: int
) -> np.ndarray:
    """(S, p) natural values, S ≤ count, at each of which the law is defined on every row with weight.

    columns: symbol -> (n,). Looks at up to 8 * count points of the sequence for `count` usable ones.
    """
    columns = law.with_logs(dict(columns))
    found: list[np.ndarray] = []
    have, seen = 0, 0
    while have < count and seen < 8 * count:
        values = spread(law, min(count, BATCH), seen)
        seen += len(values)
        points = project(law, columns, observed, weights, values)
        found.append(points)
        have += len(points)
    return np.concatenate(found)[:count]


def project(
    law: Law, columns: Mapping[str, np.ndarray], observed: np.ndarray, weights: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Least squares of prediction/observation - 1 in the linear parameters, for each row of `values`.

    Parameters bounded by 0 are kept positive. columns with their logarithms; values (S, p). Returns the rows at which
    the law is defined.
    """
    linear = [i for i, p in enumerate(law.parameters) if p.projected]

    def ratio(points: np.ndarray) -> np.ndarray:
        return (
            np.broadcast_to(law.evaluate(list(points.T[:, :, None]), columns), (len(points), len(observed))) / observed
        )

    def usable(ratios: np.ndarray, points: np.ndarray) -> np.ndarray:
        return (np.isfinite(ratios) | (weights == 0)).all(axis=1) & np.isfinite(points).all(axis=1)

    if not linear:
        return values[usable(ratio(values), values)]
    at_ones = values.copy()
    at_ones[:, linear] = 1.0
    rest = ratio(at_ones)
    defined = usable(rest, at_ones)
    at_ones, rest = at_ones[defined], rest[defined]
    columns_of = []
    for i in linear:  # the law is linear in these, so differences are derivatives
        stepped = at_ones.copy()
        stepped[:, i] = 2.0
        columns_of.append(ratio(stepped) - rest)
    design = np.stack(columns_of, axis=2)  # (S, n, k)
    rest = rest - design.sum(axis=2)
    size = np.einsum("n,snk->sk", weights, np.abs(design)) / weights.sum()
    size = np.where(size > 0, size, 1.0)
    scaled = design / size[:, None, :]
    gram = np.einsum("n,snk,snl->skl", weights, scaled, scaled)
    ridge = 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(len(linear))
    target = np.einsum("n,snk,sn->sk", weights, scaled, 1.0 - rest)
    solved = np.linalg.solve(gram + ridge, target[:, :, None])[:, :, 0]
    positive = np.array([law.parameters[i].bounds[0] >= 0 for i in linear])
    at_ones[:, linear] = np.where(positive, np.maximum(solved, 1e-2), solved) / size
    predicted = rest + np.einsum("snk,sk->sn", design, at_ones[:, linear])
    return at_ones[usable(predicted, at_ones)]
