"""95 % intervals hold the truth about 95 times in 100, also where arms share the noise of their (N, D)."""

import pytest

from precisionlm.bench.coverage import NOISES, bench_coverage


def test_the_default_covers_shared_noise_and_runs_alone_do_not():
    shared = bench_coverage(["chinchilla"], tables=20, resamples=100, noises=NOISES[:1])
    by_cell, by_run = shared
    assert by_cell["groups"] == "25 cells" and by_run["groups"] == "150 runs"
    assert by_cell["bootstrap"] >= 0.9 and by_cell["linearised"] >= 0.9
    assert by_run["bootstrap"] <= 0.8 and by_run["linearised"] <= 0.8


@pytest.mark.long
@pytest.mark.parametrize("name", ["chinchilla", "kumar_neff", "frantar", "sun", "chen"])
def test_intervals_cover_the_truth(name):
    for row in bench_coverage([name], tables=100, over=("auto",)):
        print(row)
        assert row["bootstrap"] >= 0.92 and row["linearised"] >= 0.92
