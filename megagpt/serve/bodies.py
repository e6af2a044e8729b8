"""Request bodies: validates JSON strictly into frozen objects, with errors that name the wrong field.

null means that a field was left out. Unknown fields are refused by name. Fields of OpenAI's API that are not supported
are refused too, unless their value has no effect.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from megagpt.data.text_batch import Side
from megagpt.data.tokenizer import END_OF_TEXT
from megagpt.serve.errors import ApiError

MOST_STOPS = 16  # OpenAI takes 4; tasks of lm-eval have more
MOST_INPUTS = 2048
MOST_MESSAGES = 2048
MOST_BIASES = 10_000
MOST_FIELDS = 100
STOP_CHARS = 256

TokenIds = list[int]
Texts = list[str] | list[TokenIds]
"""Several texts, or several lists of token ids."""


def wrong(reason: str, param: str = "") -> PydanticCustomError:
    """An error whose reason continues a sentence: "it ..." for a value; "the request ..." with `param`, the field to
    change."""
    return PydanticCustomError("wrong", "{reason}", {"reason": reason, "param": param})


def _texts(value: Any) -> Any:
    """Accepts a text, texts, token ids, or lists of token ids; returns a list of texts or of lists of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if _are_ids(value):
            return [value]
        if all(isinstance(item, list) and item and _are_ids(item) for item in value):
            return value
    raise wrong("must be a text, a list of texts, a list of token ids, or a list of such lists, none of them empty")


def _are_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)  # bool is an int to isinstance


def _inputs(value: Any) -> Any:
    texts = _texts(value)
    if len(texts) > MOST_INPUTS:
        raise wrong(f"must have at most {MOST_INPUTS:,} texts, but it has {len(texts):,}")
    return texts


def _messages(value: Any) -> Any:
    """Limits the number of messages before validation, because each message can have errors."""
    if isinstance(value, list) and len(value) > MOST_MESSAGES:
        raise wrong(f"must have at most {MOST_MESSAGES:,} messages, but it has {len(value):,}")
    return value


def _same(value: Any, other: Any) -> bool:
    """JSON equality, in which 0 is not false."""
    return type(value) is type(other) and value == other


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if (
        isinstance(stops, list)
        and len(stops) <= MOST_STOPS
        and all(isinstance(stop, str) and 0 < len(stop) <= STOP_CHARS for stop in stops)
    ):
        return tuple(stops)
    raise wrong(f"must be a text or a list of at most {MOST_STOPS}, each of 1 to {STOP_CHARS} characters")


def _biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MOST_BIASES:
        raise wrong(f"must have at most {MOST_BIASES:,} tokens, but it has {len(value):,}")
    if isinstance(value, dict) and all(key.isascii() and key.isdecimal() and len(key) < 10 for key in value):
        return {int(key): bias for key, bias in value.items()}
    raise wrong('must be an object whose keys are token ids, such as {"50256": -100}')


def _content(value: Any) -> Any:
    """A message's text, from a string or from a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise wrong("must be a text or a list of text parts")
    for number, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise wrong(f'must have parts of the form {{"type": "text", "text": "..."}} only, but part {number} is not')
    return "".join(part["text"] for part in value)


Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Prompts = Annotated[Texts, BeforeValidator(_texts)]
Stops = Annotated[tuple[str, ...], BeforeValidator(_stops)]


class Body(BaseModel):
    """A JSON object; null fields count as left out."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """{unsupported field: values that have no effect and are accepted}."""

    @model_validator(mode="before")
    @classmethod
    def _drop_fields_without_effect(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: item
            for name, item in value.items()
            if item is not None and not any(_same(item, value) for value in cls.neutral.get(name, ()))
        }


class StreamOptions(Body):
    """The field `stream_options`."""

    neutral = {"include_obfuscation": (False,)}

    include_usage: bool = False


class Sampling(Body):
    """Fields of all requests for generated text."""

    model: str
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0


class Generation(Sampling):
    """Fields of completion and chat requests."""

    stop: Stops = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_biases)] = Field(default_factory=dict)
    user: str | None = None
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its token usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> "Generation":
        if self.stream_options is not None and not self.stream:
            raise wrong("has stream_options, which need stream: true", "stream_options")
        return self


class CompletionBody(Generation):
    """POST /v1/completions."""

    prompt: Prompts = Field(default_factory=lambda: [END_OF_TEXT])
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] = 16
    suffix: str | None = None

    @property
    def sampled(self) -> int:
        """Number of completions to generate per prompt."""
        return self.n if self.best_of is None else self.best_of

    @model_validator(mode="after")
    def _fields_agree(self) -> "CompletionBody":
        if self.sampled < self.n:
            raise wrong(f"has best_of {self.sampled} below n {self.n}: best_of must be at least n", "best_of")
        if self.sampled > self.n and self.stream:
            raise wrong("has best_of above n with stream: the best is known only after all have ended", "best_of")
        if self.suffix is not None and self.echo:
            raise wrong("has suffix with echo: with a suffix only the completion can be returned", "echo")
        return self


class MessageBody(Body):
    """One message of a conversation."""

    neutral = {"tool_calls": ([],), "annotations": ([],)}

    role: Literal["developer", "system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]


class ChatBody(Generation):
    """POST /v1/chat/completions."""

    neutral = {
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "reasoning_effort": ("none",),
    }

    messages: Annotated[list[MessageBody], BeforeValidator(_messages), Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("has top_logprobs, which need logprobs: true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise wrong("has both max_tokens and max_completion_tokens, and they differ", "max_tokens")
        return self


class EditBody(Sampling):
    """POST /v1/edits."""

    instruction: str
    input: str = ""
    n: Annotated[int, Field(ge=1, le=20)] = 1


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    model: str
    input: Annotated[Texts, BeforeValidator(_inputs)]
    encoding_format: Literal["float", "base64"] = "float"
    side: Side = "document"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


Kind = TypeVar("Kind", bound=Body)

UNSUPPORTED = frozenset().union(
    *(kind.neutral for kind in (StreamOptions, MessageBody, ChatBody)),
    {"audio", "moderation", "prediction", "prompt_cache_options", "prompt_cache_retention", "web_search_options"},
    {"name", "refusal", "tool_call_id"},
)
"""Fields of OpenAI's API, in bodies and in messages, that are not supported."""

WORDS = {
    "Input should be ": "must be ",
    "List should ": "must ",
    " after validation": "",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid dictionary": "an object",
    "a valid list": "a list",
}
"""Replacements in pydantic's messages."""


def parse(content: bytes, kind: type[Kind]) -> Kind:
    """The parsed body of a request. Raises ApiError that names the wrong field."""
    try:
        value = from_json(content, allow_inf_nan=False, cache_strings="keys")  # users' texts are not cached
    except ValueError as error:
        raise ApiError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object", code="invalid_json")
    if len(value) > MOST_FIELDS:  # pydantic would create an error for each unknown field
        raise ApiError(f"the body has {len(value):,} fields; no request has so many", code="invalid_value")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    raise next(filter(None, (_unknown(error, kind) for error in errors)), None) or _wrong(errors[0])


def _unknown(error: ErrorDetails, kind: type[Body]) -> ApiError | None:
    """The error of an unknown or unsupported field. It has priority, because it may cause other errors."""
    if error["type"] != "extra_forbidden":
        return None
    place, name = _place(error["loc"]), error["loc"][-1]
    reason = f"{place} is not a field of this request: leave it out"
    if name in UNSUPPORTED:
        neutral = " or ".join(map(_shown, kind.neutral.get(str(name), ())))
        reason = f"{place} is not supported: leave it out" + (f", or give {neutral}" if neutral else "")
    return ApiError(reason, param=place, code="unsupported_parameter")


def _wrong(error: ErrorDetails) -> ApiError:
    """The error of a missing field, of a wrong value, or of fields that contradict each other."""
    place = _place(error["loc"])
    if error["type"] == "missing":
        return ApiError(f"{place} is missing", param=place, code="missing_required_parameter")
    reason = error["msg"]
    if not place:
        return ApiError(f"the request {reason}", param=error["ctx"]["param"], code="invalid_value")
    for theirs, ours in WORDS.items():
        reason = reason.replace(theirs, ours)
    return ApiError(f"{place} is {_shown(error['input'])}; it {reason}", param=place, code="invalid_value")


def _place(location: tuple[int | str, ...]) -> str:
    """The location as text, such as messages[0].content."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."
