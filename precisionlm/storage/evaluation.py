"""What an evaluation measured of every validation sequence, and how sure its mean and its differences are.

Sequences are fixed windows of packed documents: those of one long document are not independent, so standard errors
cluster sequences by document. A sequence that spans several documents counts for that of its first target.
"""

import io
import math
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from precisionlm.errors import UserError
from precisionlm.storage.run_directory import RunDirectory

_ARRAYS = ("sums", "counts", "documents")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One number a validation sequence, in the order of the split, however many devices and processes there were.

    sums: float32 [S], cross entropy summed over its targets (nats); counts: int32 [S], its targets (tokens, at least
    1); documents: int32 [S], the document of its first target, by position in the validation split from 0.
    """

    sums: np.ndarray
    counts: np.ndarray
    documents: np.ndarray

    @property
    def loss(self) -> float:
        """Mean cross entropy (nats/token)."""
        return float(self.sums.sum(dtype=np.float64) / self.tokens)

    @property
    def tokens(self) -> int:
        """Targets counted."""
        return int(self.counts.sum())

    @property
    def standard_error(self) -> float:
        """Of the loss, clustered by document (nats/token); NaN for fewer than two documents."""
        return clustered_error(self.sums, self.counts, self.documents)

    @property
    def standard_error_sequences(self) -> float:
        """Of the loss if sequences were independent (nats/token); NaN for fewer than two sequences."""
        return clustered_error(self.sums, self.counts, np.arange(len(self.sums)))

    def pairs_with(self, other: "Evaluation") -> bool:
        """Whether both are of the same windows of one split."""
        return np.array_equal(self.counts, other.counts) and np.array_equal(self.documents, other.documents)

    def minus(self, other: "Evaluation") -> tuple[float, float]:
        """This loss less another one on the same sequences, and the standard error of that difference, paired and
        clustered by document (both nats/token)."""
        differences = np.asarray(self.sums, np.float64) - np.asarray(other.sums, np.float64)
        return float(differences.sum() / self.tokens), clustered_error(differences, self.counts, self.documents)

    def write(self, directory: RunDirectory, name: str) -> None:
        """A compressed .npz in the run directory, complete or not at all. Raises UserError."""
        content = io.BytesIO()
        np.savez_compressed(content, **{array: getattr(self, array) for array in _ARRAYS})
        directory.write_bytes(name, content.getvalue())

    @staticmethod
    def read(directory: RunDirectory, name: str) -> "Evaluation | None":
        """What `write` wrote; None if it is not there. Raises UserError where it cannot be read."""
        path = directory.path / name
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
                arrays = [found[array] for array in _ARRAYS]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            raise UserError(f"{path}: no losses of sequences, so cut short or damaged; restore or remove it") from None
        return Evaluation(*arrays)


def clustered_error(sums: np.ndarray, counts: np.ndarray, clusters: np.ndarray) -> float:
    """The cluster-robust standard error of sum(sums) / sum(counts), a ratio of two random totals; NaN for fewer than
    two clusters.

    sums, counts [S] and the cluster [S] of each. To first order the ratio R errs by the mean of the clusters' residuals
    e_g = sums_g - R counts_g (Cochran, Sampling Techniques, 1977, §9A), with G / (G - 1) for small numbers of clusters.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    of_clusters = np.bincount(cluster, np.asarray(sums, np.float64))
    counts_of_clusters = np.bincount(cluster, np.asarray(counts, np.float64))
    size = len(of_clusters)
    if size < 2:
        return math.nan
    total = counts_of_clusters.sum()
    residuals = of_clusters - of_clusters.sum() / total * counts_of_clusters
    return float(math.sqrt(size / (size - 1) * np.sum(residuals**2)) / total)
