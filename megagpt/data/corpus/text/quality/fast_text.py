"""DCLM's classifier: fastText on words and bigrams (arXiv 2406.11794; fastText: arXiv 1607.01759).

Learning rate, dimension, epochs and bigrams are DCLM's. fastText's default table of two million bigrams would make a
model of 800 MB; this one has 2^18 rows, 105 MB, and 400 bytes for each word. Training uses one thread, because several
threads would give a different model each time.

The library is fasttext-community. With one thread, fasttext-numpy2-wheel 0.9.2 and fasttext-numpy2 0.10.4 initialize
only a tenth of the vectors and leave the others uninitialized: the model differs each time, or "Encountered NaN".
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.errors import ConfigError, DataError

FILE = "model.bin"
LABEL = "__label__"
GOOD, BAD = f"{LABEL}good", f"{LABEL}bad"
SETTINGS = {"lr": 0.1, "dim": 100, "epoch": 5, "wordNgrams": 2, "minCount": 1, "bucket": 1 << 18}
PARTS = 64
"""Number of files into which documents are divided for sorting."""


class FastTextModel:
    """A model of fastText with the labels good and bad."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def score(self, analysis: Analysis) -> float:
        """The probability that a document is one of the good ones."""
        found = self.model.f.predict(line_of(analysis), 2, 0.0, "strict")
        return min(1.0, next((probability for probability, label in found if label == GOOD), 0.0))

    def save(self, folder: Path) -> Path:
        """Write the model into `folder`; returns the file."""
        temporary = folder / f"{FILE}.tmp"
        try:
            self.model.save_model(str(temporary))
            temporary.replace(folder / FILE)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot write {folder / FILE}: {error}") from None
        finally:
            temporary.unlink(missing_ok=True)
        return folder / FILE

    @classmethod
    def load(cls, path: Path) -> "FastTextModel":
        """The saved model, or any fastText model with these two labels. Raises DataError for another file."""
        try:
            model = _fasttext().load_model(str(path))
        except ValueError as error:
            raise DataError(f"{path} is not a fastText model: {error}") from None
        if set(model.get_labels()) != {GOOD, BAD}:
            raise DataError(f"{path} has the labels {', '.join(model.get_labels())}, not {GOOD} and {BAD}")
        return cls(model)


class FastTextLearner:
    """Collects documents in a folder and trains a FastTextModel on them."""

    def __init__(self, folder: Path, seed: int = 0, **settings: Any) -> None:
        """settings: settings of fastText, in addition to SETTINGS or in place of them"""
        self.given = SETTINGS | settings | {"seed": seed}
        self.library = _fasttext()
        self.folder = tempfile.TemporaryDirectory(prefix="documents.", dir=folder)
        self.parts = [Path(self.folder.name, str(number)).open("w", encoding="utf-8") for number in range(PARTS)]  # noqa: SIM115

    def add(self, analysis: Analysis, good: bool, order: float) -> None:
        """Add a document. fastText reads the documents of both classes by ascending `order` (0 to 1)."""
        self.parts[int(order * PARTS)].write(f"{order!r} {GOOD if good else BAD} {line_of(analysis)}")

    def fit(self) -> FastTextModel:
        """Train the model."""
        with self.folder:
            whole = Path(self.folder.name, "all")
            with whole.open("w", encoding="utf-8") as file:
                file.writelines(self._sorted())
            return FastTextModel(
                self.library.train_supervised(str(whole), label=LABEL, thread=1, verbose=0, **self.given)
            )

    def _sorted(self) -> Iterator[str]:
        for part in self.parts:
            part.close()
            with Path(part.name).open(encoding="utf-8", newline="\n") as file:
                lines = sorted((float(line.partition(" ")[0]), line.partition(" ")[2]) for line in file)
            yield from (line for _, line in lines)

    def settings(self) -> dict[str, Any]:
        """All settings that affect the model."""
        return {**self.given, "thread": 1}


def line_of(analysis: Analysis) -> str:
    """A document in fastText's input format: its words on one line, with words that look like labels changed."""
    text = " ".join(analysis.words).replace("\0", " ").replace(LABEL, "_ _label__")
    return text.encode("utf-8", "replace").decode() + "\n"


def _fasttext() -> Any:
    try:
        import fasttext
    except ImportError:
        raise ConfigError('fastText needs its library: pip install "megagpt[corpora]"') from None
    return fasttext
