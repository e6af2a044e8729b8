"""The program inside a box of `megagpt.evaluate.sandbox`: the candidate's side and the tester's side of one run.

This file is given to a bare interpreter: it imports the standard library only. The two sides are separate processes
in separate boxes with two pipes between them. Calls go to the candidate as pickles, since the tester is trusted;
answers come back as JSON, out of which the tester makes values of Python's own types and never anything else.
"""

import builtins
import collections
import contextlib
import json
import os
import pickle
import resource
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

MODULE = "solution"
"""Name of the module that a program runs as, on both sides: a pickled class is found under it."""

LONGEST_REASON = 300

_SEQUENCES = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "iterator": iter,
    "range": lambda items: range(*items),
    "complex": lambda items: complex(*items),
}


class CandidateError(Exception):
    """The candidate raised something, gave an answer that is no plain data, or has ended."""


def main(side: str, uid: str, limits: str, *descriptors: str) -> None:
    """Run a side under `limits`, JSON of {RLIMIT name: value}; as user and group `uid` unless it is empty."""
    if uid:
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    for name, value in json.loads(limits).items():
        resource.setrlimit(getattr(resource, name), (value, value))
    sys.set_int_max_str_digits(0)  # answers may be larger than 4300 digits
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    if side == "candidate":
        answer_calls(incoming, outgoing)
    else:
        requests, answers = (int(descriptor) for descriptor in descriptors)
        verdict = run_tests(json.load(incoming), os.fdopen(requests, "wb"), os.fdopen(answers, "rb"))
        outgoing.write(json.dumps(verdict).encode())
        outgoing.flush()


# The candidate's side


def answer_calls(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Run the program that comes first, then answer calls of its functions until there are no more."""

    def answer(act: Callable[[], Any]) -> None:
        try:
            line = json.dumps({"value": encode(act())})
        except BaseException as error:  # SystemExit, too, is an answer
            line = json.dumps({"error": type(error).__name__, "message": _text(error)})
        outgoing.write(line.encode() + b"\n")
        outgoing.flush()

    module = _module()
    program = _receive(incoming)
    answer(lambda: exec(compile(program, "<program>", "exec"), module.__dict__))
    while (call := _receive(incoming)) is not None:
        name, arguments, keywords = call
        answer(lambda: getattr(module, name)(*arguments, **keywords))  # noqa: B023 (called before the next turn)


def encode(value: Any) -> Any:
    """`value` as what JSON can hold: lists as lists, other containers as {name of the type: items}.

    Subclasses become their base. Raises TypeError for what is not made of Python's own plain types.
    """
    if value is None or isinstance(value, bool | str):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    for kind in (list, tuple, set, frozenset, collections.deque):
        if isinstance(value, kind):
            items = [encode(item) for item in value]
            return items if kind is list else {kind.__name__: items}
    if isinstance(value, Iterator):
        return {"iterator": [encode(item) for item in value]}
    raise TypeError(f"an answer of type {type(value).__name__} cannot be compared: it is no plain data")


# The tester's side


def run_tests(job: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> dict[str, Any]:
    """Run a job's tests against the candidate. Returns {"passed": bool, "reason": str, "ended": bool}.

    job: `program` (the candidate's), `reference` (source that gives the tests their helper functions and classes),
    `functions` (names that the tests call the candidate by), `tests` (source), `longest_answer` (bytes).
    """

    def ask(message: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):  # the end of `answers` says so
            _send(requests, message)
        line = answers.readline(job["longest_answer"] + 1)
        if len(line) > job["longest_answer"]:
            raise CandidateError(f"an answer is longer than {job['longest_answer']} bytes")
        if not line.endswith(b"\n"):
            ended.append(True)
            raise CandidateError("the program ended before its tests did")
        return read_answer(line)

    def stand_in(name: str) -> Callable[..., Any]:
        return lambda *arguments, **keywords: ask((name, arguments, keywords))

    ended: list[bool] = []
    try:
        module = _module()
        exec(compile(job["reference"], "<reference>", "exec"), module.__dict__)
        ask(job["program"])
        for name in job["functions"]:
            setattr(module, name, stand_in(name))
        exec(compile(job["tests"], "<tests>", "exec"), module.__dict__)
    except BaseException as error:
        reason = f"{type(error).__name__}: {_text(error)}".removesuffix(": ").removeprefix("CandidateError: ")
        return {"passed": False, "reason": reason, "ended": bool(ended)}
    # Tests may swallow exceptions; a candidate that has ended has passed nothing.
    return {"passed": not ended, "reason": "the program ended" if ended else "", "ended": bool(ended)}


def read_answer(line: bytes) -> Any:
    """The value in a candidate's answer. Raises the exception that it reports, or CandidateError."""
    try:
        answer = json.loads(line)
        if "value" in answer:
            return decode(answer["value"])
        name, message = str(answer["error"]), str(answer["message"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CandidateError(f"an answer is malformed ({type(error).__name__})") from None
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            raised = kind(message)
        except TypeError:  # an exception with other arguments, such as UnicodeDecodeError
            raised = CandidateError(f"{name}: {message}")
        raise raised
    raise CandidateError(f"{name}: {message}")


def decode(value: Any) -> Any:
    """The opposite of `encode`; the result holds objects of Python's own types only."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    return _SEQUENCES[kind]([decode(item) for item in content])


# Both sides


def _module() -> types.ModuleType:
    module = sys.modules[MODULE] = types.ModuleType(MODULE)
    return module


def _send(stream: BinaryIO, message: Any) -> None:
    content = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()


def _receive(stream: BinaryIO) -> Any:
    """The next message, None at the end."""
    header = stream.read(8)
    return pickle.loads(stream.read(*struct.unpack("<Q", header))) if len(header) == 8 else None


def _text(error: BaseException) -> str:
    """The exception's message, shortened; it may have a `__str__` of any kind."""
    try:
        return str(error)[:LONGEST_REASON]
    except BaseException:
        return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
