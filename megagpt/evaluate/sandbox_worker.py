"""The program inside a box of `megagpt.evaluate.sandbox`: the candidate's side and the tester's side of one run.

This file is given to a bare interpreter: it imports the standard library only. The two sides are separate processes
in separate boxes with two pipes between them. Calls go to the candidate as pickles, since the tester is trusted;
answers come back as JSON, out of which the tester makes values of Python's own types and never anything else.
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
"""Name of the module that a program runs as, on both sides: a pickled class is found under it."""

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
    """Stands in the tests for an exception of the candidate's whose own type could act in the tester."""


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
    module = _module()
    program = _receive(incoming)
    outgoing.write(answer(lambda: exec(compile(program, "<program>", "exec"), module.__dict__)))
    outgoing.flush()
    while (call := _receive(incoming)) is not None:
        name, arguments, keywords = call
        outgoing.write(answer(lambda: getattr(module, name)(*arguments, **keywords)))  # noqa: B023 (called at once)
        outgoing.flush()


def answer(act: Callable[[], Any]) -> bytes:
    """A line that says what `act` returned or raised, or that what it returned is no plain data."""
    try:
        value = act()
    except BaseException as error:  # SystemExit, too, is an answer
        return _line({"raised": describe(error)})
    try:
        return _line({"value": encode(value)})
    except BaseException as error:
        return _line({"unreadable": _text(error) or type(error).__name__})


def describe(error: BaseException) -> dict[str, Any]:
    """What crosses of an exception: the names of its class and that one's bases, and its arguments if plain."""
    try:
        arguments = [encode(argument) for argument in error.args]
    except BaseException:
        arguments = [_text(error)]
    return {"classes": [kind.__name__ for kind in type(error).__mro__], "arguments": arguments}


def encode(value: Any) -> Any:
    """`value` as what JSON can hold: lists as lists, other containers as {name of the type: items}.

    Subclasses become their base, an iterator what it gives and raises. Raises TypeError for what is not made of
    Python's own plain types.
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
    """The items of an iterator, and None or the exception that ended it."""
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

    job: `program` (the candidate's), `reference` (source that gives the tests their helper functions and classes),
    `functions` (names that the tests call the candidate by), `tests` (source), `longest_answer` (bytes).
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
    """The exceptions, by their names, that the tests can mean: those they name, and subclasses of these.

    Never StopIteration and StopAsyncIteration, which no caller can tell from the end of a loop, and never what is no
    Exception, which a tester takes for an exit. To name Exception itself expects nothing: all that arrive are one.
    """
    known = {name: kind for name, kind in (vars(builtins) | namespace).items() if isinstance(kind, type)}
    named = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)} - {"Exception"}
    meant = tuple(known[name] for name in named & known.keys() if issubclass(known[name], Exception))
    loops = (StopIteration, StopAsyncIteration)
    return {name: kind for name, kind in known.items() if issubclass(kind, meant) and not issubclass(kind, loops)}


class Candidate:
    """The candidate as the tester has it: asks it, and knows of everything that no test may overlook.

    Of what comes from it, two things are no data, and both could end a loop or fill in a default in the tester where
    the tests mean a failure. A **fault** (it ended, or an answer is none) fails the program, whoever catches what is
    raised for it. An **exception** has its own type only when the tests expect it, and fails the program unless a
    statement of the tests catches it.
    """

    def __init__(self, requests: BinaryIO, answers: BinaryIO, longest_answer: int) -> None:
        self.requests, self.answers, self.longest_answer = requests, answers, longest_answer
        self.expected: dict[str, type[Exception]] = {}
        """Exceptions that arrive as themselves."""
        self.fault = ""
        self.raised: dict[int, tuple[str, Exception]] = {}
        """Every exception that arrived, with the name of its class, by its id."""
        self.handled: set[int] = set()
        """Those that a statement of the tests caught."""
        self._turn = threading.Lock()  # tests may have threads

    def stand_in(self, name: str) -> Callable[..., Any]:
        """A function that has the candidate call its function `name`."""
        return lambda *arguments, **keywords: self.ask((name, arguments, keywords))

    def ask(self, message: Any) -> Any:
        """What the candidate answers to `message`. Raises what it raised, or CandidateError for a fault."""
        with self._turn:
            if not self.fault:
                with contextlib.suppress(BrokenPipeError):  # the end of `answers` says so
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
                except Exception:  # it now has a traceback, even where C code ends it
                    raise
            self.fault = content or "an answer cannot be compared"
        raise CandidateError(self.fault)

    def exception(self, raised: dict[str, Any]) -> Exception:
        """The exception to raise for one of the candidate's, as `describe` has it."""
        name, *_ = classes = [str(kind) for kind in raised["classes"]]
        arguments = [decode(argument, self.exception) for argument in raised["arguments"]]
        kind = next((self.expected[each] for each in classes if each in self.expected), CandidateError)
        try:
            error = kind(*arguments)
        except Exception:  # it wants other arguments
            error = CandidateError(*arguments)
        self.raised[id(error)] = name, error
        return error

    def caught(self, error: BaseException | None) -> None:
        """Note that a statement of the tests caught `error`, and with it what that one was raised for."""
        while error is not None:
            if id(error) in self.raised:
                self.handled.add(id(error))
            error = error.__context__

    def uncaught(self) -> list[Exception]:
        """The exceptions that nothing of the tests caught."""
        left = [error for number, (_, error) in self.raised.items() if number not in self.handled]
        return [error for error in left if error.__traceback__]  # unittest's assertRaises clears it

    def name_of(self, error: BaseException) -> str:
        """An exception as a reason, under the name that it has in the candidate."""
        name, _ = self.raised.get(id(error), (type(error).__name__, error))
        return f"{name}: {_text(error)[:LONGEST_REASON]}".removesuffix(": ")


def watch(source: str, file_name: str) -> types.CodeType:
    """The tester's source, compiled so that its `except` and `with` tell `Candidate` of every exception they catch."""
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
    """A context manager that tells `caught` of the exception that another one swallows."""

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
    """("value", value), ("raised", exception) or ("unreadable", why). Raises anything for a malformed line."""
    [(kind, content)] = json.loads(line).items()
    if kind == "value":
        return kind, decode(content, exception)
    if kind == "raised":
        return kind, exception(content)
    return "unreadable", str(content)[:LONGEST_REASON]


def decode(value: Any, exception: Callable[[dict[str, Any]], Exception]) -> Any:
    """The opposite of `encode`; the result holds objects of Python's own types only.

    exception: makes the exception that ends an iterator.
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
    """The next message, None at the end."""
    header = stream.read(8)
    return pickle.loads(stream.read(*struct.unpack("<Q", header))) if len(header) == 8 else None


def _text(error: BaseException) -> str:
    """The exception's message; it may have a `__str__` of any kind."""
    try:
        return str(error)
    except BaseException:
        return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
