"""POST /v1/completions: continue prompts, or insert between a prompt and a suffix."""

from collections import Counter
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from megagpt.serve.answering import FINISH, Job, Json, envelope_of, stream, whole
from megagpt.serve.bodies import CompletionBody, parse
from megagpt.serve.interface import GenerateRequest, NewToken, ServedModel
from megagpt.serve.prompts import check_count, completion_prompts, room_for_new, seed_of, settings
from megagpt.serve.running import Item
from megagpt.serve.service import Service
from megagpt.serve.spelling import CompletionLogprobs, Spelled, Spelling


class CompletionWriter:
    """Writes a completion as {"text", "index", "logprobs", "finish_reason"}."""

    def __init__(self, index: int, echoed: str, logprobs: CompletionLogprobs | None, prompt_only: bool) -> None:
        """echoed: text of the prompt to return before the completion, or "". prompt_only: no token is generated."""
        self.index, self._echoed, self._logprobs, self._prompt_only = index, echoed, logprobs, prompt_only
        self._text: list[str] = []
        self._lists = CompletionLogprobs.empty()
        self._finish: str | None = None
        self._sum, self._count = 0.0, 0

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability per generated token, by which `best_of` ranks completions."""
        return self._sum / max(1, self._count)

    def pieces(self, item: Item) -> list[Json]:
        """One piece for the item, or none if the item adds nothing."""
        text, self._echoed = self._echoed, ""
        tokens: Sequence[Spelled]
        if isinstance(item, NewToken):
            text += item.text
            tokens = [item]
            self._sum, self._count = self._sum + item.logprob, self._count + 1
            self._finish = item.finish_reason and FINISH[item.finish_reason]
        else:
            tokens = item
            self._finish = "length" if self._prompt_only else None
        self._text.append(text)
        if self._logprobs is None:
            return [self._choice(text, None)] if text or self._finish else []
        lists = self._logprobs.lists(tokens)
        for name, values in lists.items():
            self._lists[name] += values
        return [self._choice(text, lists)]

    def whole(self) -> Json:
        """The complete choice."""
        return self._choice("".join(self._text), None if self._logprobs is None else self._lists)

    def _choice(self, text: str, logprobs: Json | None) -> Json:
        return {"text": text, "index": self.index, "logprobs": logprobs, "finish_reason": self._finish}


async def create(service: Service, request: Request) -> Response:
    """Complete prompts. Raises ApiError, ClientGone, and the model's errors."""
    body = parse(await service.read(request), CompletionBody)
    model = service.able(body.model, "completions")
    if body.suffix is not None:
        service.able(body.model, "suffix", "suffix")
    check_count(service, len(body.prompt), body.sampled)  # before the prompts are encoded, which takes time
    prompts = await completion_prompts(model, body.prompt, body.suffix)
    asked = body.max_tokens if "max_tokens" in body.model_fields_set else None
    room = room_for_new(service, model, prompts, body.sampled, asked, "max_tokens")
    job, writers = _job(service, model, body, prompts, [min(body.max_tokens, one) for one in room])
    envelope = envelope_of("cmpl", "text_completion", model)
    if body.stream:
        return stream(job, envelope, body.include_usage)
    return await whole(job, request, envelope, lambda: _best(writers, body))


def _job(
    service: Service, model: ServedModel, body: CompletionBody, prompts: list[list[int]], room: list[int]
) -> tuple[Job, list[CompletionWriter]]:
    """A job with the completions of every prompt, in the order of the prompts, and the completions' writers."""
    spelling, seed, prompt_only = Spelling(model.tokenizer), seed_of(body), body.max_tokens == 0
    scored = prompt_only or (body.echo and body.logprobs is not None)
    requests, writers, repeats = [], [], Counter[tuple[int, ...]]()
    for prompt, most in zip(prompts, room, strict=True):
        chosen = settings(body, model, max(1, most), seed)
        echoed = model.tokenizer.decode(prompt) if body.echo else ""
        for _ in range(body.sampled):
            choice = repeats[tuple(prompt)]  # a repeated prompt gets new random numbers, as with n
            repeats[tuple(prompt)] += 1
            top = body.logprobs or 0
            requests.append(GenerateRequest(prompt, chosen, choice, top, top if scored else None))
            logprobs = None if body.logprobs is None else CompletionLogprobs(spelling)
            writers.append(CompletionWriter(len(writers), echoed, logprobs, prompt_only))
    tokens = sum(map(len, prompts))
    return Job(service, model, requests, writers, tokens, prompt_only), writers


def _best(writers: Sequence[CompletionWriter], body: CompletionBody) -> list[Json]:
    """For every prompt, the `n` of its `best_of` completions with the highest mean log-probability per token."""
    choices = []
    for first in range(0, len(writers), body.sampled):
        several = list(writers[first : first + body.sampled])
        if body.sampled > body.n:
            several.sort(key=lambda writer: -writer.mean_logprob)
        choices += [writer.whole() for writer in several[: body.n]]
    return [choice | {"index": index} for index, choice in enumerate(choices)]
