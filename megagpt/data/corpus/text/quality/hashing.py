"""GPT-3's classifier: logistic regression on counts of hashed words (arXiv 2005.14165, appendix A).

Lower-case words between white space, with their punctuation, are hashed into 2^18 buckets and counted, like Spark's
Tokenizer and HashingTF with their defaults. The hash is 64-bit xxh3 while Spark's is MurmurHash3, so other words share
a bucket. The paper does not publish GPT-3's regularization or its number of examples.
"""

import logging
import math
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.files import atomic_file
from megagpt.errors import ConfigError, DataError

log = logging.getLogger(__name__)

BUCKETS = 1 << 18
L2 = 1.0
MAX_ITERATIONS = 1000
TOLERANCE = 1e-6
"""The fit ends when no component of the gradient per document is larger."""

FILE = "model.npz"


class HashingModel:
    """A logistic regression with one weight for each bucket."""

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        """weights: float64 [BUCKETS]."""
        self.weights, self.bias = weights, bias

    def score(self, analysis: Analysis) -> float:
        """The probability that a document is one of the good ones: sigmoid(bias + sum of its words' weights)."""
        total = self.bias + float(self.weights[buckets(analysis)].sum())
        return 1 / (1 + math.exp(-max(total, -700.0)))

    def save(self, folder: Path) -> Path:
        """Write the weights into `folder`; returns the file."""
        with atomic_file(folder / FILE) as file:
            np.savez(file, weights=self.weights, bias=self.bias)
        return folder / FILE

    @classmethod
    def load(cls, path: Path) -> "HashingModel":
        """The saved model. Loading cannot run code of the file. Raises DataError for another file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                weights, bias = file["weights"], float(file["bias"])
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise DataError(f"{path} holds no weights: {error}") from None
        if weights.shape != (BUCKETS,) or weights.dtype != np.float64 or not np.isfinite([*weights, bias]).all():
            raise DataError(f"{path} does not hold {BUCKETS} finite weights")
        return cls(weights, bias)


class HashingLearner:
    """Collects documents (8 bytes of memory for each distinct word of each) and fits a HashingModel to them."""

    def __init__(self, l2: float = L2, balanced: bool = False, max_iterations: int = MAX_ITERATIONS) -> None:
        """The loss is the sum of the documents' log-losses + l2 / 2 * squared norm of the weights.

        balanced: give both classes the same total weight, whatever their numbers of documents
        """
        self.l2, self.balanced, self.max_iterations = l2, balanced, max_iterations
        self.rows: list[tuple[float, bool, np.ndarray, np.ndarray]] = []

    def add(self, analysis: Analysis, good: bool, order: float) -> None:
        """Add a document. The model depends on `order`, not on the order of the calls."""
        found, counts = np.unique(buckets(analysis), return_counts=True)
        self.rows.append((order, good, found.astype(np.int32), counts.astype(np.float32)))

    def fit(self) -> HashingModel:
        """Fit the model with L-BFGS. The loss has one minimum, and the result is deterministic."""
        linear_model, sparse = import_scientific("sklearn.linear_model"), import_scientific("scipy.sparse")
        rows = sorted(self.rows, key=lambda row: row[:2])
        ends = np.cumsum([0, *(len(row[2]) for row in rows)])
        columns, counts = (np.concatenate([row[part] for row in rows]) for part in (2, 3))
        used, columns = np.unique(columns, return_inverse=True)  # a bucket without words has the weight 0
        matrix = sparse.csr_matrix((counts.astype(np.float64), columns, ends), (len(rows), len(used)))
        regression = linear_model.LogisticRegression(
            C=1 / self.l2,
            class_weight="balanced" if self.balanced else None,
            max_iter=self.max_iterations,
            tol=TOLERANCE,
        )
        # Several threads would add in another order and give other weights. The warning below replaces sklearn's.
        with import_scientific("threadpoolctl").threadpool_limits(1), warnings.catch_warnings(action="ignore"):
            regression.fit(matrix, np.array([row[1] for row in rows]))
        if regression.n_iter_[0] >= self.max_iterations:
            log.warning("the classifier did not converge in %d iterations: raise --l2", self.max_iterations)
        weights = np.zeros(BUCKETS)
        weights[used] = regression.coef_[0]
        return HashingModel(weights, float(regression.intercept_[0]))

    def settings(self) -> dict[str, Any]:
        """All settings that affect the model."""
        given = {"l2": self.l2, "balanced": self.balanced, "max_iterations": self.max_iterations}
        return {"buckets": BUCKETS, **given, "tolerance": TOLERANCE}


def buckets(analysis: Analysis) -> np.ndarray:
    """The bucket of every word: int64 [words]."""
    return (analysis.lower_hashes & np.uint64(BUCKETS - 1)).astype(np.int64)


def import_scientific(module: str) -> Any:
    """A module of scikit-learn or scipy. Raises ConfigError when it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError('quality classifiers need scikit-learn: pip install "megagpt[corpora]"') from None
