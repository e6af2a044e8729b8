"""Runs inside a box of `megagpt.evaluate.sandbox`: the candidate's side and the tester's side of one run.

A bare interpreter runs this file, so it imports only the standard library. The two sides are separate processes in
separate boxes, connected by two pipes. Calls go to the candidate as pickles, because the tester is trusted; answers
come back as JSON, from which the tester only builds values of Python's built-in types.
"""

import ast
import builtins
import collections
import contextlib
import json
import os
import pickle
import resource
import struct
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

MODULE = "solution"
"""Name of the program's module on both sides; pickled classes refer to it."""

LONGEST_REASON = 300

ENDED = "the program ended before its tests did"

_SEQUENCES = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "range": lambda items: range(*items),
    "complex": lambda items: complex(*items),
}


class CandidateError(Exception):
    """Replaces, in the tests, an exception of the candidate whose own type the tests do not expect."""


def main(side: str, uid: str, limits: str, *descriptors: str) -> None:
    """Run a side. limits: JSON of {RLIMIT name: value}. uid: user and group to run as; "" for no change."""
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
    """Run the program, which is the first message, then answer calls of its functions until the pipe ends."""
    module = _module()
    program = _receive(incoming)
    outgoing.write(answer(lambda: exec(compile(program, "<program>", "exec"), module.__dict__)))
    outgoing.flush()
    while (call := _receive(incoming)) is not None:
        name, arguments, keywords = call
        outgoing.write(answer(lambda: getattr(module, name)(*arguments, **keywords)))  # noqa: B023 (called at once)
        outgoing.flush()


def answer(act: Callable[[], Any]) -> bytes:
    """A line of JSON with the result or the exception of `act()`, or the reason why the result is not plain data."""
    try:
        value = act()
    except BaseException as error:  # also SystemExit
        return _line({"raised": describe(error)})
    try:
        return _line({"value": encode(value)})
    except BaseException as error:
        return _line({"unreadable": _text(error) or type(error).__name__})


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as data: the names of its class and base classes, and its arguments if they are plain data."""
    try:
        arguments = [encode(argument) for argument in error.args]
    except BaseException:
        arguments = [_text(error)]
    return {"classes": [kind.__name__ for kind in type(error).__mro__], "arguments": arguments}


def encode(value: Any) -> Any:
    """`value` as JSON data: lists as lists, other containers as {name of the type: items}.

    Instances of subclasses become their built-in base; an iterator becomes its items and the exception that ended it.
    Raises TypeError for values of other types.
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
        return {"iterator": _read_to_the_end(value)}
    raise TypeError(f"an answer of type {type(value).__name__} cannot be compared: it is no plain data")


def _read_to_the_end(values: Iterator) -> list[Any]:
    """The items of an iterator, and the exception that ended it or None."""
    items: list[Any] = []
    while True:
        try:
            item = next(values)
        except StopIteration:
            return [items, None]
        except BaseException as error:
            return [items, describe(error)]
        items.append(encode(item))


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


# The tester's side


def run_tests(job: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> dict[str, Any]:
    """Run a job's tests against the candidate. Returns {"passed": bool, "reason": str, "ended": bool}.

    job: the fields of SandboxJob, and `longest_answer` in bytes.
    """
    module, passed = _module(), False
    candidate = Candidate(requests, answers, job["longest_answer"])
    try:
        module.__caught__ = lambda: candidate.caught(sys.exc_info()[1])
        module.__watched__ = lambda manager: Watched(manager, candidate.caught)
        exec(watch(job["reference"], "<reference>"), module.__dict__)
        candidate.expected = expected_exceptions(job["tests"], module.__dict__)
        candidate.ask(job["program"])
        for name in job["functions"]:
            setattr(module, name, candidate.stand_in(name))
        exec(watch(job["tests"], "<tests>"), module.__dict__)
        uncaught = candidate.uncaught()
        passed, reason = not (candidate.fault or uncaught), candidate.name_of(uncaught[0]) if uncaught else ""
    except BaseException as error:
        reason = candidate.name_of(error)
    return {"passed": passed, "reason": candidate.fault or reason, "ended": candidate.fault == ENDED}


def expected_exceptions(tests: str, namespace: dict[str, Any]) -> dict[str, type[Exception]]:
    """{name: class} of the exceptions that the tests expect: the classes that they name, and their subclasses.

    Excludes StopIteration and StopAsyncIteration, which would end loops of the tests, and classes that are not
    subclasses of Exception, which would end the tester. The name Exception itself adds nothing, because every arriving
    exception is one.
    """
    known = {name: kind for name, kind in (vars(builtins) | namespace).items() if isinstance(kind, type)}
    named = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)} - {"Exception"}
    meant = tuple(known[name] for name in named & known.keys() if issubclass(known[name], Exception))
    loops = (StopIteration, StopAsyncIteration)
    return {name: kind for name, kind in known.items() if issubclass(kind, meant) and not issubclass(kind, loops)}


class Candidate:
    """The tester's connection to the candidate: sends calls, and records faults and exceptions.

    The tests could overlook both by accident, for example in a loop that ends or a default value that is used. So a
    **fault** (the candidate ended, or an answer is invalid) fails the program even if the tests catch the exception
    that is raised for it. An **exception** of the candidate has its own type only if the tests expect it, and fails the
    program unless a statement of the tests catches it.
    """

    def __init__(self, requests: BinaryIO, answers: BinaryIO, longest_answer: int) -> None:
        self.requests, self.answers, self.longest_answer = requests, answers, longest_answer
        self.expected: dict[str, type[Exception]] = {}
        """Exceptions that keep their types; see `expected_exceptions`."""
        self.fault = ""
        self.raised: dict[int, tuple[str, Exception]] = {}
        """{id: (name of its class in the candidate, exception)} of all exceptions that arrived."""
        self.handled: set[int] = set()
        """Ids of the exceptions that a statement of the tests caught."""
        self._turn = threading.Lock()  # tests may have threads

    def stand_in(self, name: str) -> Callable[..., Any]:
        """A function that calls the candidate's function `name`."""
        return lambda *arguments, **keywords: self.ask((name, arguments, keywords))

    def ask(self, message: Any) -> Any:
        """The candidate's answer to `message`. Raises the candidate's exception, or CandidateError for a fault."""
        with self._turn:
            if not self.fault:
                with contextlib.suppress(BrokenPipeError):  # reading `answers` below detects it
                    _send(self.requests, message)
                line = self.answers.readline(self.longest_answer + 1)
                if len(line) > self.longest_answer:
                    self.fault = f"an answer is longer than {self.longest_answer} bytes"
                elif not line.endswith(b"\n"):
                    self.fault = ENDED
        if not self.fault:
            try:
                kind, content = read_answer(line, self.exception)
            except Exception as error:
                kind, content = "unreadable", f"an answer is malformed ({type(error).__name__})"
            if kind == "value":
                return content
            if kind == "raised":
                try:
                    raise content
                except Exception:  # it now has a traceback, even if C code catches it
                    raise
            self.fault = content or "an answer cannot be compared"
        raise CandidateError(self.fault)

    def exception(self, raised: dict[str, Any]) -> Exception:
        """The exception to raise in the tests. raised: the candidate's exception as data, from `describe`."""
        name, *_ = classes = [str(kind) for kind in raised["classes"]]
        arguments = [decode(argument, self.exception) for argument in raised["arguments"]]
        kind = next((self.expected[each] for each in classes if each in self.expected), CandidateError)
        try:
            error = kind(*arguments)
        except Exception:  # its constructor needs other arguments
            error = CandidateError(*arguments)
        self.raised[id(error)] = name, error
        return error

    def caught(self, error: BaseException | None) -> None:
        """Record that a statement of the tests caught `error` and, with it, the exceptions in its context."""
        while error is not None:
            if id(error) in self.raised:
                self.handled.add(id(error))
            error = error.__context__

    def uncaught(self) -> list[Exception]:
        """The exceptions that no statement of the tests caught."""
        left = [error for number, (_, error) in self.raised.items() if number not in self.handled]
        return [error for error in left if error.__traceback__]  # unittest's assertRaises clears it

    def name_of(self, error: BaseException) -> str:
        """An exception as the reason of a failure, with the name of its class in the candidate."""
        name, _ = self.raised.get(id(error), (type(error).__name__, error))
        return f"{name}: {_text(error)[:LONGEST_REASON]}".removesuffix(": ")


def watch(source: str, file_name: str) -> types.CodeType:
    """The tests' source, compiled so that `except` and `with` report every exception that they catch to `Candidate`."""
    return compile(ast.fix_missing_locations(_Watching().visit(ast.parse(source))), file_name, "exec")


class _Watching(ast.NodeTransformer):
    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.ExceptHandler:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(ast.Call(ast.Name("__caught__", ast.Load()), [], [])))
        return node

    def visit_With(self, node: ast.With) -> ast.With:
        self.generic_visit(node)
        for item in node.items:
            item.context_expr = ast.Call(ast.Name("__watched__", ast.Load()), [item.context_expr], [])
        return node


class Watched:
    """Wraps a context manager, and calls `caught` with an exception that it suppresses."""

    def __init__(self, manager: Any, caught: Callable[[BaseException], None]) -> None:
        self.manager, self.caught = manager, caught

    def __enter__(self) -> Any:
        return self.manager.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> Any:
        swallowed = self.manager.__exit__(kind, error, trace)
        if swallowed and error:
            self.caught(error)
        return swallowed


def read_answer(line: bytes, exception: Callable[[dict[str, Any]], Exception]) -> tuple[str, Any]:
    """("value", value), ("raised", exception) or ("unreadable", reason). Raises any exception for a malformed line."""
    [(kind, content)] = json.loads(line).items()
    if kind == "value":
        return kind, decode(content, exception)
    if kind == "raised":
        return kind, exception(content)
    return "unreadable", str(content)[:LONGEST_REASON]


def decode(value: Any, exception: Callable[[dict[str, Any]], Exception]) -> Any:
    """The inverse of `encode`; the result only has objects of Python's built-in types.

    exception: creates the exception that ends an iterator.
    """
    if isinstance(value, list):
        return [decode(item, exception) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decode(key, exception): decode(item, exception) for key, item in content}
    if kind == "iterator":
        items, raised = content
        items = [decode(item, exception) for item in items]
        return _iterate(items, lambda: exception(raised)) if raised else iter(items)
    return _SEQUENCES[kind]([decode(item, exception) for item in content])


def _iterate(items: list[Any], exception: Callable[[], Exception]) -> Iterator[Any]:
    yield from items
    raise exception()


# Both sides


def _module() -> types.ModuleType:
    module = sys.modules[MODULE] = types.ModuleType(MODULE)
    return module


def _send(stream: BinaryIO, message: Any) -> None:
    content = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()


def _receive(stream: BinaryIO) -> Any:
    """The next message; None at the end of the stream."""
    header = stream.read(8)
    return pickle.loads(stream.read(*struct.unpack("<Q", header))) if len(header) == 8 else None


def _text(error: BaseException) -> str:
    """The exception's message; "" if its `__str__` raises."""
    try:
        return str(error)
    except BaseException:
        return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
