"""POST /v1/embeddings: vectors of texts."""

import asyncio
import base64
from collections.abc import Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from megagpt.serve.answering import json_response
from megagpt.serve.bodies import EmbeddingBody, parse
from megagpt.serve.errors import ApiError
from megagpt.serve.interface import ServedModel
from megagpt.serve.prompts import check_ids, check_lengths, too_long
from megagpt.serve.service import Service


async def create(service: Service, request: Request) -> Response:
    """Compute the vectors of texts. Raises ApiError, ClientGone, and the model's errors."""
    body = parse(await service.read(request), EmbeddingBody)
    model = service.able(body.model, "embeddings")
    if body.dimensions is not None and body.dimensions > model.dimensions:
        raise ApiError(
            f"dimensions is {body.dimensions:,}, but vectors of {model.name} have {model.dimensions:,} numbers: ask for"
            " fewer",
            param="dimensions",
            code="invalid_value",
        )
    tokens = await _count(model, body.input)
    vectors = await service.attend(model.embed(body.input, body.dimensions, body.side), request.receive)
    return await asyncio.to_thread(_response, model.name, vectors, body.encoding_format, tokens)


async def _count(model: ServedModel, inputs: Sequence[str] | Sequence[Sequence[int]]) -> int:
    """Number of tokens in all texts. Raises ApiError for a text that is empty, too long, or has unknown ids."""
    texts = [one for one in inputs if isinstance(one, str)]
    if not texts:
        ids = [one for one in inputs if not isinstance(one, str)]
        check_ids(model, ids, "input")
        around = model.count_tokens([""])  # delimiters and end-of-text, which the model reads around a text
        counts = [len(one) + around for one in ids]
    else:
        if not all(texts):
            raise ApiError(f"text {texts.index('')} is empty: an empty text has no vector", param="input")
        check_lengths(model, texts, "input")
        counts = await asyncio.to_thread(lambda: [model.count_tokens([text]) for text in texts])
    if (longest := max(counts)) > model.window:
        raise too_long(model, f"a text of {longest:,} tokens", "input")
    return sum(counts)


def _response(name: str, vectors: np.ndarray, form: str, tokens: int) -> Response:
    written = [_base64(vector) if form == "base64" else _floats(vector) for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(written)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "data": data, "model": name, "usage": usage})


def _base64(vector: np.ndarray) -> str:
    """The vector as base64 of little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _floats(vector: np.ndarray) -> list[float]:
    """The numbers with the fewest digits that determine each float32."""
    return [float(str(number)) for number in vector]
