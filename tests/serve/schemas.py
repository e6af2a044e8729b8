"""Responses as OpenAI's specification (openai/openai-openapi, version 2.3.0) describes them, as JSON Schema.

Written out by hand from its schemas CreateCompletionResponse, CreateChatCompletionResponse,
CreateChatCompletionStreamResponse, CreateEmbeddingResponse, ListModelsResponse, ErrorResponse, and, for edits, from
CreateEditResponse of version 1.0.4. They are stricter in that no other field may appear, but those that are named here.
Where the specification's numbers can be null in practice (the first token of an echoed prompt), they may be so here.
"""

from typing import Any

import jsonschema

Schema = dict[str, Any]
TEXT, NUMBER, COUNT, NULL = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}, {"type": "null"}
NEGATIVE = {"type": "number", "maximum": 1e-6}


def exactly(**fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def optional(schema: Schema, **fields: Schema) -> Schema:
    return schema | {"properties": schema["properties"] | fields}


def many(schema: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": schema} | bounds


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


USAGE = exactly(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)
FINISH = one_of("stop", "length", "content_filter")
LISTS = exactly(
    tokens=many(TEXT),
    token_logprobs=many(or_null(NEGATIVE)),
    top_logprobs=many(or_null({"type": "object", "additionalProperties": NEGATIVE})),
    text_offset=many(COUNT),
)


def completion(finish: Schema) -> Schema:
    choice = exactly(text=TEXT, index=COUNT, logprobs=or_null(LISTS), finish_reason=finish)
    return exactly(
        id={"type": "string", "pattern": "^cmpl-"},
        object=one_of("text_completion"),
        created=COUNT,
        model=TEXT,
        system_fingerprint=TEXT,
        choices=many(choice),
    )


TOKEN = exactly(token=TEXT, logprob=NEGATIVE, bytes=or_null(many({"type": "integer", "minimum": 0, "maximum": 255})))
MESSAGE_LOGPROBS = exactly(
    content=or_null(many(exactly(**TOKEN["properties"], top_logprobs=many(TOKEN)))), refusal=or_null(many(TOKEN))
)


def chat(kind: str, **choice: Schema) -> Schema:
    return exactly(
        id={"type": "string", "pattern": "^chatcmpl-"},
        object=one_of(kind),
        created=COUNT,
        model=TEXT,
        system_fingerprint=TEXT,
        choices=many(exactly(index=COUNT, logprobs=or_null(MESSAGE_LOGPROBS), **choice)),
    )


MESSAGE = exactly(role=one_of("assistant"), content=TEXT, refusal=NULL)
DELTA = {
    "type": "object",
    "properties": {"role": one_of("assistant"), "content": TEXT, "refusal": NULL},
    "additionalProperties": False,
}
COMPLETION = completion(FINISH)
CHAT = chat("chat.completion", message=MESSAGE, finish_reason=FINISH)
MODEL = exactly(id=TEXT, object=one_of("model"), created=COUNT, owned_by=TEXT)
OWN = {"abilities": many(TEXT), "context_length": COUNT, "dimensions": COUNT}
SCHEMAS = {
    "completions": exactly(**COMPLETION["properties"], usage=USAGE),
    "completions chunk": optional(completion(or_null(FINISH)), usage=or_null(USAGE)),
    "chat/completions": exactly(**CHAT["properties"], usage=USAGE),
    "chat/completions chunk": optional(
        chat("chat.completion.chunk", delta=DELTA, finish_reason=or_null(FINISH)), usage=or_null(USAGE)
    ),
    "edits": exactly(object=one_of("edit"), created=COUNT, choices=many(exactly(text=TEXT, index=COUNT)), usage=USAGE),
    "embeddings": exactly(
        object=one_of("list"),
        model=TEXT,
        usage=exactly(prompt_tokens=COUNT, total_tokens=COUNT),
        data=many(
            exactly(object=one_of("embedding"), index=COUNT, embedding={"anyOf": [many(NUMBER, minItems=1), TEXT]})
        ),
    ),
    "models": exactly(object=one_of("list"), data=many(exactly(**MODEL["properties"], **OWN))),
    "error": exactly(error=exactly(message=TEXT, type=TEXT, param=or_null(TEXT), code=or_null(TEXT))),
}
VALIDATORS = {name: jsonschema.Draft202012Validator(schema) for name, schema in SCHEMAS.items()}


def check(name: str, value: Any) -> None:
    """Raises ValidationError for a response that is not as it is described."""
    VALIDATORS[name].validate(value)
