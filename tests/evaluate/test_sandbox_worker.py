"""What crosses between the two boxes: plain data arrives as it was, and nothing else arrives."""

import collections
import enum
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.evaluate.sandbox_worker import CandidateError, decode, encode, read_answer

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
def test_malformed_answers_are_errors(line):
    with pytest.raises(CandidateError, match="malformed"):
        read_answer(line)


def test_reported_exceptions():
    with pytest.raises(KeyError, match="x"):
        read_answer(b'{"error": "KeyError", "message": "x"}')
    for name in ("SystemExit", "KeyboardInterrupt", "Mine", "print", "UnicodeDecodeError"):
        with pytest.raises(CandidateError, match=f"{name}: x"):
            read_answer(json.dumps({"error": name, "message": "x"}).encode())
