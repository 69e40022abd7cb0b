"""Standard errors of evaluations: a numpy reference, correlated documents, pairs, and what is kept on disk."""

import math

import numpy as np
import pytest

from precisionlm.errors import UserError
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.run_directory import RunDirectory


def measured(sums, counts, documents):
    return Evaluation(np.array(sums, np.float32), np.array(counts, np.int32), np.array(documents, np.int32))


def drawn(rng, documents=40, length=12, shared=0.3):
    """Sequences of documents that are easier or harder as a whole, the last one shorter."""
    document = np.repeat(np.arange(documents), length)
    counts = np.full(len(document), 64)
    counts[-1] = 17
    means = 3 + shared * rng.normal(size=documents)[document] + 0.3 * rng.normal(size=len(document))
    return measured(means * counts, counts, document)


def test_the_error_is_the_cluster_robust_one_of_a_ratio():
    found = measured([30.0, 12.0, 44.0, 9.0, 27.0], [10, 5, 12, 3, 10], [0, 0, 2, 2, 7])
    ratio = 122 / 40
    by_document = [42 - ratio * 15, 53 - ratio * 15, 27 - ratio * 10]
    by_sequence = [30 - ratio * 10, 12 - ratio * 5, 44 - ratio * 12, 9 - ratio * 3, 27 - ratio * 10]
    assert found.loss == pytest.approx(ratio) and found.tokens == 40
    assert found.standard_error == pytest.approx(math.sqrt(3 / 2 * sum(e**2 for e in by_document)) / 40)
    assert found.standard_error_sequences == pytest.approx(math.sqrt(5 / 4 * sum(e**2 for e in by_sequence)) / 40)


def test_equal_windows_in_documents_of_their_own_give_the_error_of_a_mean():
    means = np.random.default_rng(0).normal(3, 0.2, 50).astype(np.float32)
    found = measured(means * 32, np.full(50, 32), np.arange(50))
    expected = np.std(means, ddof=1) / math.sqrt(50)
    assert found.standard_error == pytest.approx(expected, rel=1e-5) == found.standard_error_sequences


def test_correlated_documents_have_the_error_that_their_mean_has():
    rng = np.random.default_rng(1)
    draws = [drawn(rng) for _ in range(300)]
    true = np.std([found.loss for found in draws])
    assert np.mean([found.standard_error for found in draws]) == pytest.approx(true, rel=0.1)
    assert np.mean([found.standard_error_sequences for found in draws]) < 0.5 * true


def test_one_document_has_no_error_of_its_own():
    found = measured([30.0, 12.0], [10, 5], [4, 4])
    assert math.isnan(found.standard_error) and found.standard_error_sequences > 0
    assert math.isnan(measured([30.0], [10], [0]).standard_error_sequences)


def test_a_difference_is_paired():
    rng = np.random.default_rng(2)
    one = drawn(rng)
    noise = (0.01 + 0.001 * rng.normal(size=len(one.sums))) * one.counts
    other = measured(one.sums + noise, one.counts, one.documents)
    delta, error = other.minus(one)
    differences = other.sums.astype(np.float64) - one.sums
    of_documents = np.array([differences[one.documents == d].sum() for d in range(40)])
    tokens = np.array([one.counts[one.documents == d].sum() for d in range(40)])
    residuals = of_documents - delta * tokens
    assert delta == pytest.approx(differences.sum() / one.tokens) == pytest.approx(0.01, abs=5e-4)
    assert error == pytest.approx(math.sqrt(40 / 39 * (residuals**2).sum()) / one.tokens)
    assert error < one.standard_error / 100


def test_pairs_are_of_the_same_windows():
    one = measured([30.0, 12.0], [10, 5], [0, 1])
    assert one.pairs_with(measured([31.0, 11.0], [10, 5], [0, 1]))
    for other in (
        measured([30.0], [10], [0]),
        measured([1.0, 2.0], [10, 6], [0, 1]),
        measured([1, 2], [10, 5], [0, 0]),
    ):
        assert not one.pairs_with(other)


def test_files_are_small_exact_and_complete_or_named(tmp_path):
    directory = RunDirectory.at(tmp_path)
    found = drawn(np.random.default_rng(3), documents=100, length=10)
    assert Evaluation.read(directory, "evaluations/trained.npz") is None
    found.write(directory, "evaluations/trained.npz")
    again = Evaluation.read(directory, "evaluations/trained.npz")
    assert again is not None and again.pairs_with(found) and again.standard_error == found.standard_error
    np.testing.assert_array_equal(again.sums, found.sums)
    path = tmp_path / "evaluations" / "trained.npz"
    assert path.stat().st_size < 6000 and len(list(path.parent.iterdir())) == 1
    content = path.read_bytes()
    for damaged in (content[:-100], content[:50], b"", content.replace(b"sums", b"some")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"trained.npz: no losses of sequences"):
            Evaluation.read(directory, "evaluations/trained.npz")
