"""What crosses between the two boxes: plain data arrives as it was, and nothing else arrives."""

import collections
import enum
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.evaluate.sandbox_worker import Candidate, CandidateError, answer, encode, expected_exceptions
from megagpt.evaluate.sandbox_worker import decode as decode_with

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
plain |= st.complex_numbers(allow_nan=False)
hashable = st.recursive(plain, lambda inner: st.lists(inner).map(tuple) | st.frozensets(inner), max_leaves=5)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(hashable, inner)
        | st.sets(hashable)
        | st.lists(inner).map(collections.deque)
    ),
    max_leaves=10,
)


def decode(value):
    return decode_with(value, lambda raised: AssertionError(raised))


def asked(line: bytes, tests: str = "") -> object:
    """What the tester gets when the candidate answers `line`."""
    candidate = Candidate(io.BytesIO(), io.BytesIO(line), 2**20)
    candidate.expected = expected_exceptions(tests, {})
    return candidate.ask(None)


@given(values)
def test_plain_data_arrives_as_it_was(value):
    arrived = decode(json.loads(json.dumps(encode(value))))
    assert type(arrived) is type(value)
    assert repr(arrived) == repr(value) or arrived == value


def test_special_values():
    assert math.isnan(decode(json.loads(json.dumps(encode(math.nan)))))
    assert decode(encode(range(2, 9, 3))) == range(2, 9, 3)
    assert list(decode(encode(iter([1, (2,)])))) == [1, (2,)]
    assert decode(encode(bytearray(b"\xff"))) == b"\xff"


def test_subclasses_become_their_base():
    class Always(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Color(enum.IntEnum):
        RED = 1

    for value, kind in ((Always(3), int), (Color.RED, int), (collections.Counter("aab"), dict)):
        assert type(decode(encode(value))) is kind
    assert decode(encode(Always(3))) != 4


@pytest.mark.parametrize("value", [object(), print, [object()], {"a": print}, ValueError("x"), (3).__class__])
def test_other_objects_are_refused(value):
    with pytest.raises(TypeError, match="no plain data"):
        encode(value)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"3",
        b"{}",
        b"[" * 100_000,
        b'{"value": {"exec": ["x"]}}',
        b'{"value": {"set": [[1]]}}',
        b'{"value": {"tuple": 3, "list": 4}}',
        b'{"value": {"bytes": "zz"}}',
        b'{"value": {"complex": [1, 2, 3]}}',
        b'{"value": {"dict": [1]}}',
        b"\xff\n",
    ],
)
def test_malformed_answers_are_faults(line):
    with pytest.raises(CandidateError, match=r"malformed|ended"):
        asked(line)
    with pytest.raises(CandidateError, match="malformed"):
        asked(line.strip() + b"\n", "ValueError, TypeError, RecursionError")
    candidate = Candidate(io.BytesIO(), io.BytesIO(line + b'\n{"value": 1}\n'), 2**20)
    for _ in range(2):  # what comes after it is not read
        with pytest.raises(CandidateError, match="malformed"):
            candidate.ask(None)
    assert "malformed" in candidate.fault


def test_exceptions_arrive_as_the_tests_expect_them():
    def fails(error: BaseException) -> bytes:
        def act():
            raise error

        return answer(act)

    with pytest.raises(KeyError) as caught:
        asked(fails(KeyError("x", 3)), "try: f()\nexcept KeyError: pass")
    assert caught.value.args == ("x", 3)
    with pytest.raises(UnicodeDecodeError, match="invalid start byte"):
        asked(fails(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")), "UnicodeError")
    for error in (SystemExit("x"), KeyboardInterrupt("x"), StopIteration("x"), type("Mine", (Exception,), {})("x")):
        with pytest.raises(CandidateError, match="x"):
            asked(fails(error), "SystemExit, KeyboardInterrupt, StopIteration, Exception, BaseException, Mine")
    with pytest.raises(CandidateError, match="x"):
        asked(fails(KeyError("x")), "ValueError, 'KeyError', it.KeyError")


def test_a_fault_without_a_reason_is_a_fault():
    candidate = Candidate(io.BytesIO(), io.BytesIO(b'{"unreadable": ""}\n'), 2**20)
    with pytest.raises(CandidateError):
        candidate.ask(None)
    assert candidate.fault


def test_an_answer_longer_than_allowed_is_a_fault():
    candidate = Candidate(io.BytesIO(), io.BytesIO(b'"' + b"x" * 99 + b'"\n{"value": 1}\n'), 50)
    for _ in range(2):
        with pytest.raises(CandidateError, match="longer than 50 bytes"):
            candidate.ask(None)
