"""Interface of models that turn texts into vectors, and its implementation for sentence-transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from megagpt.data.files import atomic_file
from megagpt.data.text_batch import Side
from megagpt.errors import ConfigError, DataError
from megagpt.log import progress

PIECE = 1024
"""Number of texts that are embedded between two saves."""


class TextEmbedder(Protocol):
    """A model for evaluations of embeddings."""

    size: int
    """Numbers per vector."""

    def embed(self, texts: Sequence[str], side: Side, dimensions: int | None = None, label: str = "") -> np.ndarray:
        """Vectors of norm 1, float32 [texts, dimensions or size]. label: title of the progress bar."""


class SentenceTransformerEmbedder:
    """A model of the library sentence-transformers, on the device that the library chooses.

    Queries and documents get the model's own prompts. Raises ConfigError without the library or the model.
    """

    def __init__(self, name: str, batch_size: int) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ConfigError(
                "sentence_transformer=... needs that library: pip install sentence-transformers"
            ) from None
        try:
            self.model = SentenceTransformer(name)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"sentence_transformer={name} cannot be loaded: {error}") from None
        self.batch_size = batch_size
        self.size: int = self.model.get_embedding_dimension()

    def embed(self, texts: Sequence[str], side: Side, dimensions: int | None = None, label: str = "") -> np.ndarray:
        """See `TextEmbedder`."""
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))  # little padding
        vectors = np.empty((len(texts), dimensions or self.size), np.float32)
        with progress(len(texts), "texts", label or "embedding") as bar:
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                vectors[chosen] = encode(
                    [texts[number] for number in chosen],
                    batch_size=self.batch_size,
                    normalize_embeddings=True,
                    truncate_dim=dimensions,
                    show_progress_bar=False,
                )
                bar.update(len(chosen))
        return vectors


def embed_saved(
    embedder: TextEmbedder, texts: Sequence[str], side: Side, dimensions: int | None, folder: Path, name: str
) -> np.ndarray:
    """`embedder.embed` in pieces, saved as folder/name_<first>.npy, so that an interrupted call can continue.

    The caller must use one folder for the same texts and model only. Raises ConfigError for more `dimensions` than the
    vectors have, DataError for vectors that are not finite.
    """
    if dimensions and dimensions > embedder.size:
        raise ConfigError(f"dimensions is {dimensions}, but the model's vectors have only {embedder.size}")
    pieces, width = [], dimensions or embedder.size
    for start in range(0, len(texts), PIECE):
        path, chosen = folder / f"{name}_{start:09d}.npy", texts[start : start + PIECE]
        if not path.exists():
            label = f"{name} {start // PIECE + 1}/{-(-len(texts) // PIECE)}" if len(texts) > PIECE else name
            vectors = embedder.embed(chosen, side, dimensions, label=label)
            if not np.isfinite(vectors).all():
                raise DataError(f"the model's vectors of {name} hold NaN or infinity: its weights are broken")
            with atomic_file(path) as file:
                np.save(file, vectors)
        pieces.append(_load(path, (len(chosen), width)))
    return np.concatenate(pieces)


def _load(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        vectors = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}; remove it and run again") from None
    if vectors.shape != shape:
        raise DataError(f"{path} holds {vectors.shape} numbers instead of {shape}; remove it and run again")
    return vectors
