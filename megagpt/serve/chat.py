"""POST /v1/chat/completions, and POST /v1/edits, which rewrites a text with the same models."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from megagpt.data.shapes import edit_messages
from megagpt.data.tokenizer import Tokenizer
from megagpt.serve.answering import FINISH, Job, Json, envelope_of, json_response, stream, whole
from megagpt.serve.bodies import ChatBody, EditBody, parse
from megagpt.serve.interface import GenerateRequest, NewToken, ServedModel
from megagpt.serve.prompts import check_count, conversation, conversation_prompt, room_for_new, seed_of, settings
from megagpt.serve.running import Item
from megagpt.serve.service import Service
from megagpt.serve.spelling import Spelling, chat_logprob


class ChatWriter:
    """Writes an assistant's message, whole or in deltas."""

    def __init__(self, index: int, tokenizer: Tokenizer, logprobs: bool = False) -> None:
        """logprobs: whether to return the log-probabilities of tokens."""
        self._index, self._tokenizer = index, tokenizer
        self._spelling = Spelling(tokenizer) if logprobs else None
        self.text: list[str] = []
        self._logprobs: list[Json] = []
        self._finish: str | None = None
        self._begun = False

    def pieces(self, item: Item) -> list[Json]:
        """Deltas: the role before the first text, then text, then an empty delta with the finish reason."""
        assert isinstance(item, NewToken)  # chat requests ask for no prompt tokens
        found = [] if self._begun else [self._delta({"role": "assistant", "content": "", "refusal": None})]
        self._begun = True
        logprobs = []
        if self._spelling is not None and item.finish_reason != "end_of_text":  # end-of-text is not in the message
            logprobs = [chat_logprob(self._spelling, item)]
        text = item.text if any(self.text) else self._tokenizer.without_start(item.text)
        if text or logprobs:
            found.append(self._delta({"content": text}, logprobs))
        if item.finish_reason is not None:
            self._finish = FINISH[item.finish_reason]
            found.append(self._delta({}))
        self.text.append(text)
        self._logprobs += logprobs
        return found

    def whole(self) -> Json:
        """The choice with the whole message."""
        message = {"role": "assistant", "content": "".join(self.text), "refusal": None}
        return {"index": self._index, "message": message} | self._ending(self._logprobs)

    def _delta(self, delta: Json, logprobs: list[Json] | None = None) -> Json:
        return {"index": self._index, "delta": delta} | self._ending(logprobs)

    def _ending(self, logprobs: list[Json] | None) -> dict[str, Any]:
        content = None if self._spelling is None or logprobs is None else {"content": logprobs, "refusal": None}
        return {"logprobs": content, "finish_reason": self._finish}


async def create_chat(service: Service, request: Request) -> Response:
    """Respond to a conversation. Raises ApiError, ClientGone, and the model's errors."""
    body = parse(await service.read(request), ChatBody)
    model = service.able(body.model, "chat")
    check_count(service, 1, body.n)
    prompt = await conversation_prompt(model, conversation(body.messages), "messages")
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    (room,) = room_for_new(service, model, [prompt], body.n, getattr(body, name), name)
    writers = [ChatWriter(index, model.tokenizer, bool(body.logprobs)) for index in range(body.n)]
    job = _job(service, model, body, prompt, room, writers, body.top_logprobs or 0)
    if body.stream:
        return stream(job, envelope_of("chatcmpl", "chat.completion.chunk", model), body.include_usage)
    envelope = envelope_of("chatcmpl", "chat.completion", model)
    return await whole(job, request, envelope, lambda: [writer.whole() for writer in writers])


async def create_edit(service: Service, request: Request) -> Response:
    """Rewrite a text as an instruction says. Raises ApiError, ClientGone, and the model's errors."""
    body = parse(await service.read(request), EditBody)
    model = service.able(body.model, "edits")
    check_count(service, 1, body.n)
    prompt = await conversation_prompt(model, edit_messages(body.instruction, body.input), "input")
    (room,) = room_for_new(service, model, [prompt], body.n, None, "n")
    writers = [ChatWriter(index, model.tokenizer) for index in range(body.n)]
    job = _job(service, model, body, prompt, room, writers)
    await service.attend(job.finish(), request.receive)
    choices = [{"text": "".join(writer.text), "index": index} for index, writer in enumerate(writers)]
    return json_response({"object": "edit", "created": int(time.time()), "choices": choices, "usage": job.usage})


def _job(
    service: Service,
    model: ServedModel,
    body: ChatBody | EditBody,
    prompt: list[int],
    room: int,
    writers: list[ChatWriter],
    top_logprobs: int = 0,
) -> Job:
    """A job with one completion for each writer."""
    chosen = settings(body, model, room, seed_of(body))
    requests = [GenerateRequest(prompt, chosen, choice, top_logprobs) for choice in range(len(writers))]
    return Job(service, model, requests, writers, len(prompt))
