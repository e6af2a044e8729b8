"""Turns a client's prompt into token ids that fit the model.

A client's text never becomes special tokens, even if it contains their names. The one exception is a prompt that is
exactly "<|endoftext|>", OpenAI's default, which means the start of a document.
"""

import asyncio
import secrets
from collections.abc import Sequence

from megagpt.data.chat import Message, Role, chat_prompt
from megagpt.data.tokenizer import END_OF_TEXT
from megagpt.errors import DataError
from megagpt.model.generation_config import GenerationConfig
from megagpt.serve.bodies import EditBody, Generation, MessageBody, Texts
from megagpt.serve.errors import ApiError
from megagpt.serve.interface import ServedModel
from megagpt.serve.service import Service

COLDEST = 1e-5
"""Lower temperatures mean greedy decoding; logits divided by them might not be finite."""

LEAST_TOP_P = 1e-9
"""Replaces a top_p of 0, which keeps only the most likely token."""


async def completion_prompts(model: ServedModel, given: Texts, suffix: str | None) -> list[list[int]]:
    """Token ids of every prompt. Raises ApiError for a prompt that does not fit or has unknown ids."""
    if suffix is not None:
        return await _around(model, given, suffix)
    texts = [one for one in given if isinstance(one, str)]
    if not texts:
        ids = [list(one) for one in given]
        check_ids(model, ids, "prompt")
    else:
        texts = ["" if text == END_OF_TEXT else text for text in texts]
        check_lengths(model, texts, "prompt")
        ids = await asyncio.to_thread(model.tokenizer.encode_prompts, texts)
    for one in ids:
        check_fits(model, len(one), "prompt")
    return ids


async def _around(model: ServedModel, given: Texts, suffix: str) -> list[list[int]]:
    prefixes = [one for one in given if isinstance(one, str)]
    if len(prefixes) < len(given):
        raise ApiError("a prompt of token ids cannot have a suffix: give both as text", param="prompt")
    check_lengths(model, [suffix], "suffix")
    check_lengths(model, prefixes, "prompt")
    found = []
    for prefix in prefixes:
        prefix = "" if prefix == END_OF_TEXT else prefix
        found.append(await asyncio.to_thread(model.infill_prompt, prefix, suffix))
        check_fits(model, len(found[-1]), "prompt")
    return found


async def conversation_prompt(model: ServedModel, messages: Sequence[Message], param: str) -> list[int]:
    """Token ids of a conversation up to the start of the assistant's message. Raises ApiError when they do not fit."""
    check_lengths(model, [message.content for message in messages], param)
    try:
        ids = await asyncio.to_thread(chat_prompt, model.tokenizer, messages)
    except DataError as error:  # from the model's chat template
        raise ApiError(str(error), param=param) from None
    check_fits(model, len(ids), param)
    return ids


def conversation(messages: Sequence[MessageBody]) -> list[Message]:
    """The messages in the roles that models know; developer becomes system, and adjacent system messages are joined."""
    turns: list[Message] = []
    for message in messages:
        role: Role = "system" if message.role == "developer" else message.role
        if role == "system" and turns and turns[-1].role == "system":
            turns[-1] = Message("system", f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(Message(role, message.content))
    return turns


def check_ids(model: ServedModel, ids: Sequence[Sequence[int]], param: str) -> None:
    """Raises ApiError for an id outside the model's vocabulary."""
    size = model.tokenizer.vocab_size
    for one in ids:
        if min(one) < 0 or max(one) >= size:
            strange = min(one) if min(one) < 0 else max(one)
            raise ApiError(
                f"{strange} is not a token id of the model {model.name}: its ids are 0 to {size - 1}", param=param
            )


def check_lengths(model: ServedModel, texts: Sequence[str], param: str) -> None:
    """Raises ApiError for a text that is too long for any tokenization; a quick check before encoding."""
    most = model.window * int(model.tokenizer.token_bytes.max())
    for text in texts:
        if len(text) > most:  # a character has at least one byte
            raise too_long(model, f"a text of {len(text):,} characters", param)


def check_fits(model: ServedModel, tokens: int, param: str) -> None:
    """Raises ApiError for a prompt that leaves no room for a new token."""
    if tokens >= model.window:
        raise too_long(model, f"a prompt of {tokens:,} tokens", param)


def too_long(model: ServedModel, what: str, param: str) -> ApiError:
    """The error for a request that exceeds the model's context. what: for example "a prompt of 300 tokens"."""
    return ApiError(
        f"{what} leaves no room in the context of {model.name}, which has {model.window:,} tokens: shorten it",
        param=param,
        code="context_length_exceeded",
    )


def check_count(service: Service, prompts: int, each: int) -> None:
    """Raises ApiError if `each` completions for each of the prompts exceed the limit."""
    if prompts * each > service.bounds.completions:
        raise ApiError(
            f"the request asks for {prompts * each:,} completions, {each} for each of {prompts:,} prompts, "
            f"but {service.bounds.completions} are allowed",
            param="n" if prompts == 1 else "prompt",
            code="too_many_completions",
        )


def room_for_new(
    service: Service, model: ServedModel, prompts: Sequence[Sequence[int]], each: int, asked: int | None, param: str
) -> list[int]:
    """Largest number of new tokens for the completions of each prompt; `each` completions per prompt.

    asked: the client's number, which must fit; None means as many as fit. Raises ApiError if `asked` does not fit.
    """
    share = service.bounds.new_tokens // (len(prompts) * each)
    if asked is None:
        return [min(share, model.window - len(prompt)) for prompt in prompts]
    if asked > share:
        raise ApiError(
            f"{param} {asked:,} for each of {len(prompts) * each:,} completions is more than the "
            f"{service.bounds.new_tokens:,} tokens that a request may generate",
            param=param,
            code="too_many_tokens",
        )
    longest = max(map(len, prompts))
    if longest + asked > model.window:
        raise ApiError(
            f"the context of {model.name} has {model.window:,} tokens, but {longest + asked:,} were asked for: "
            f"{longest:,} in the prompt and {asked:,} to generate; ask for {model.window - longest:,} at most",
            param=param,
            code="context_length_exceeded",
        )
    return [asked] * len(prompts)


def settings(body: Generation | EditBody, model: ServedModel, max_new_tokens: int, seed: int) -> GenerationConfig:
    """The generator's settings for a request. Raises ApiError for a bias on an unknown token."""
    common = {
        "max_new_tokens": max_new_tokens,
        "temperature": 0.0 if body.temperature < COLDEST else body.temperature,
        "top_p": max(body.top_p, LEAST_TOP_P),
        "seed": seed,
    }
    if isinstance(body, EditBody):
        return GenerationConfig(**common)
    if body.logit_bias:
        check_ids(model, [list(body.logit_bias)], "logit_bias")
    return GenerationConfig(
        **common,
        top_k=body.top_k,
        stop=body.stop,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=body.logit_bias,
    )


def seed_of(body: Generation | EditBody) -> int:
    """The client's seed, or a random one."""
    given = body.seed if isinstance(body, Generation) else None
    return secrets.randbits(63) if given is None else given
