"""Score all documents of files."""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.quality.keep import pareto_probability, top_threshold
from megagpt.data.corpus.text.quality.model import Model
from megagpt.data.corpus.text.quality.texts import Texts
from megagpt.data.files import atomic_file
from megagpt.data.readers import Rejection
from megagpt.errors import ConfigError, DataError


def score_files(model: Model, texts: Texts, output: str | Path, shares: Sequence[float] = ()) -> dict[str, Any]:
    """Score every document and write `output`. Returns counts and the threshold of each top share.

    .npy: float64 [records] in the order of the input, NaN for malformed records. .jsonl: one line per record,
    {"record": number from 0, "score": number, or null and "reason"}. Raises ConfigError for another suffix, DataError
    without documents.
    """
    output = Path(output)
    if output.suffix not in (".npy", ".jsonl"):
        raise ConfigError(f"--output {output}: scores are written as .npy or .jsonl")
    scores, size = array("d"), 0
    with atomic_file(output) as file:
        for text in texts.records("scoring"):
            malformed = isinstance(text, Rejection)
            scores.append(float("nan") if malformed else model.score(Analysis(text)))
            size += 0 if malformed else len(text.encode())
            if output.suffix == ".jsonl":
                line = {"record": len(scores) - 1, "score": None if malformed else scores[-1]}
                line |= {"reason": str(text)} if malformed else {}
                file.write(json.dumps(line).encode() + b"\n")
        values = np.array(scores)
        if np.isnan(values).all():
            raise DataError("the inputs hold no document to score")
        if output.suffix == ".npy":
            np.save(file, values, allow_pickle=False)
    known = values[~np.isnan(values)]
    return {
        "documents": len(known),
        "rejected": texts.rejected,
        "bytes": size,
        "mean_score": float(known.mean()),
        "kept_by_pareto": float(pareto_probability(known).mean()),
        "thresholds": {f"{share:g}": top_threshold(known, share) for share in shares},
    }
