"""Exceptions and answers that could act in the tester: none makes a pass, and those that tests expect still arrive."""

import shutil

import pytest

from megagpt.evaluate.sandbox import Limits, SandboxJob, SandboxRunner

LOOP = "for got, want in zip(map(f, [1, 2, 3]), [2, 3, 4]): assert got == want\n"
SEQUENCE = "class S:\n    def __getitem__(self, i): return f(i)\n"
MAPPING = (
    "from collections.abc import Mapping\nclass M(Mapping):\n    def __getitem__(self, key): return f(key)\n"
    "    def __iter__(self): return iter(())\n    def __len__(self): return 0\n"
)
PROPERTY = "class P:\n    @property\n    def value(self): return f(1)\n"
EXPECTS = "try:\n    f(-1)\nexcept {}:\n    pass\n"

INSIDE = "    {}\n    try:\n        f(1)\n    except ValueError:\n        pass\n    else: 1 / 0"

FORGED = {
    "StopIteration in map": ("raise StopIteration", LOOP),
    "StopIteration's heir": ("raise type('Stop', (StopIteration,), {})", LOOP),
    "StopIteration that the tests expect elsewhere": (
        "raise StopIteration",
        LOOP + "try:\n    next(iter([]))\nexcept StopIteration:\n    pass\n",
    ),
    "StopIteration as the heir of what the tests expect": (
        "raise type('Stop', (StopIteration, ValueError), {})",
        LOOP + "try:\n    int('x')\nexcept ValueError:\n    pass\n",
    ),
    "StopIteration in all": ("raise StopIteration", "assert all(map(lambda x: f(x) == x, [1]))"),
    "StopIteration in a sentinel's loop": (
        "raise StopIteration",
        "for got in iter(lambda: f(1), None): assert got == 2",
    ),
    "StopIteration in __next__": (
        "raise StopIteration",
        "class N:\n    def __iter__(self): return self\n    def __next__(self): return f(1)\n"
        "for got in N(): assert got == 2",
    ),
    "StopAsyncIteration": (
        "raise StopAsyncIteration",
        "import asyncio\nclass A:\n    def __aiter__(self): return self\n    async def __anext__(self): return f(1)\n"
        "async def main():\n    async for got in A(): assert got == 2\nasyncio.run(main())",
    ),
    "GeneratorExit": ("raise GeneratorExit", LOOP),
    "SystemExit": ("raise SystemExit(0)", LOOP),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", LOOP),
    "BaseException": ("raise type('Mine', (BaseException,), {})", LOOP),
    "IndexError in a sequence": ("raise IndexError", SEQUENCE + "for got in S(): assert got == 1"),
    "IndexError in a sequence and expected": (
        "raise IndexError",
        SEQUENCE + "assert list(S()) == []\n" + EXPECTS.format("IndexError"),
    ),
    "IndexError in a sequence with other handlers": (
        "raise IndexError",
        SEQUENCE.replace("return f(i)", "\n        try: return f(i)\n        except KeyError: return 1")
        + "assert list(S()) == []\n"
        + EXPECTS.format("IndexError"),
    ),
    "IndexError in a sequence with a lock": (
        "raise IndexError",
        "import threading\nlock = threading.Lock()\n"
        + SEQUENCE.replace("return f(i)", "\n        with lock: return f(i)")
        + "assert list(S()) == []\n"
        + EXPECTS.format("IndexError"),
    ),
    "AttributeError in hasattr": ("raise AttributeError", PROPERTY + "assert not hasattr(P(), 'value')"),
    "AttributeError in getattr and expected": (
        "raise AttributeError",
        PROPERTY + "assert getattr(P(), 'value', 2) == 2\n" + EXPECTS.format("AttributeError"),
    ),
    "KeyError in a library": ("raise KeyError", MAPPING + "assert M().get(1, 2) == 2"),
    "KeyError in a library and expected": (
        "raise KeyError",
        MAPPING + "assert 1 not in M()\n" + EXPECTS.format("LookupError"),
    ),
    "an exception in a thread": (
        "raise ValueError",
        "import threading\nt = threading.Thread(target=lambda: f(1))\nt.start()\nt.join()",
    ),
    "an exception in __del__": ("raise ValueError", "class D:\n    def __del__(self): assert f(1) == 2\nD()"),
    "an exception in a future": (
        "raise ValueError",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor() as pool: pool.submit(f, 1)",
    ),
    "an object instead of TypeError": ("return object()", EXPECTS.format("TypeError")),
    "an object, whatever is caught": ("return object()", EXPECTS.format("Exception")),
    "a generator that has not begun": ("raise ValueError\n    yield", EXPECTS.format("ValueError") + "else: assert 0"),
    "an iterator that fails": ("return map([].index, [1])", "for got in f(1): assert got == 2"),
    "an exception without a name": ("raise type('', (Exception,), {})", LOOP),
    "an exception without a name in a thread": (
        "raise type('', (Exception,), {})",
        "import threading\nt = threading.Thread(target=lambda: f(1))\nt.start()\nt.join()",
    ),
    "another exception": ("raise KeyError", EXPECTS.format("IndexError")),
    "an exception that hates its reader": (
        "raise type('E', (Exception,), {'args': property(lambda s: 1 / 0), '__str__': lambda s: 1 / 0})",
        LOOP,
    ),
    "an int that is equal to everything": (
        "return type('I', (int,), {'__eq__': lambda s, o: True, '__hash__': int.__hash__})(7)",
        LOOP,
    ),
    "a str that is equal to everything": (
        "return type('S', (str,), {'__eq__': lambda s, o: True, '__hash__': str.__hash__})()",
        LOOP,
    ),
    "a list that is as long as one likes": (
        "return type('L', (list,), {'__len__': lambda s: 3, '__eq__': lambda s, o: True, '__iter__': lambda s: s})()",
        "assert len(f(1)) == 3",
    ),
    "an object that says it is an int": (
        "return type('C', (), {'__class__': int, '__int__': lambda s: 0, '__eq__': lambda s, o: True})()",
        LOOP,
    ),
    "a truth that is always one": ("return type('B', (list,), {'__bool__': lambda s: True})()", "assert f(1)"),
    "a hash that fits": (
        "return type('H', (str,), {'__hash__': lambda s: hash('a'), '__eq__': lambda s, o: True})('b')",
        "assert f(1) in {'a'}",
    ),
    "an iterator that never ends": ("return iter(int, 1)", "assert next(f(1)) == 0"),
    "a trace function": ("import sys; sys.settrace(lambda *a: 1 / 0); raise StopIteration", LOOP),
    "a thread that outlives": (
        "import threading; threading.Thread(target=__import__('time').sleep, args=(99,)).start(); return 0",
        LOOP,
    ),
    "a patched json": ("import json; json.dumps = lambda *a, **k: '{\"value\": 2}'; return 0", "assert f(2) == 3"),
    "an answer in advance": (
        "import os\n    for d in range(3, 9):\n        try: os.write(d, b'{\"value\": 0}\\n')\n"
        "        except OSError: pass\n    return 0",
        LOOP,
    ),
    "an answer that is none, whatever is caught": (
        "import os\n    for d in range(3, 9):\n        try: os.write(d, b'{\"verdict\": true}\\n')\n"
        "        except OSError: pass\n    return 0",
        EXPECTS.format("Exception"),
    ),
    "an end, whatever is caught": ("import os; os._exit(0)", EXPECTS.format("BaseException")),
}

EXPECTED = {
    "by except": (
        "raise ValueError('bad')",
        "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'bad'\nelse: 1 / 0",
    ),
    "by a base": (
        "raise KeyError('k')",
        "try:\n    f(1)\nexcept LookupError as e:\n    assert e.args == ('k',)\nelse: 1 / 0",
    ),
    "by Exception": ("raise KeyError", "try:\n    f(1)\nexcept Exception:\n    pass\nelse: 1 / 0"),
    "by an empty except": ("raise KeyError", "try:\n    f(1)\nexcept:\n    pass\nelse: 1 / 0"),
    "by an alias": (
        "raise FileNotFoundError(2, 'no')",
        "try:\n    f(1)\nexcept IOError as e:\n    assert e.errno == 2\nelse: 1 / 0",
    ),
    "an heir of it": (
        "raise type('Mine', (ValueError,), {})('x')",
        "try:\n    f(1)\nexcept ValueError:\n    pass\nelse: 1 / 0",
    ),
    "with arguments": (
        "b'\\xff'.decode()",
        "try:\n    f(1)\nexcept UnicodeDecodeError as e:\n    assert e.start == 0\nelse: 1 / 0",
    ),
    "by a helper": (
        "raise ValueError",
        "def raises(kind, call, *a):\n    try:\n        call(*a)\n    except kind:\n        return True\n"
        "assert raises(ValueError, f, 1) and not raises(ValueError, int, 1)",
    ),
    "by unittest": (
        "raise ValueError('bad')",
        "import unittest\nt = unittest.TestCase()\nt.assertRaises(ValueError, f, 1)\n"
        "with t.assertRaisesRegex(ValueError, 'b'): f(1)",
    ),
    "by a context manager": (
        "raise ValueError",
        "from contextlib import contextmanager, suppress\n@contextmanager\ndef raises(kind):\n    try:\n        yield\n"
        "    except kind:\n        return\n    assert 0\n"
        "with raises(ValueError): f(1)\nwith suppress(ValueError):\n    f(1)\n    assert 0",
    ),
    "in the second of two handlers": (
        "raise ValueError",
        "try:\n    try:\n        f(1)\n    except KeyError:\n        pass\nexcept ValueError:\n    pass\nelse: 1 / 0",
    ),
    "by a result of a thread": (
        "raise ValueError",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool:\n"
        "    for one in [pool.submit(f, n) for n in range(9)]:\n        try:\n            one.result()\n"
        "        except ValueError: continue\n        assert 0",
    ),
    "StopIteration by Exception": ("raise StopIteration", "try:\n    f(1)\nexcept Exception:\n    pass\nelse: 1 / 0"),
    "and another is raised for it": (
        "raise KeyError('k')",
        "class M(dict):\n    def __missing__(self, key): return f(key)\ndef get(m):\n    try:\n        return m[1]\n"
        "    except KeyError as error:\n        raise ValueError('no') from error\n"
        "try:\n    get(M())\nexcept ValueError:\n    pass\nelse: 1 / 0",
    ),
    "beside open files": (
        "raise ValueError",
        "with open('/dev/null') as file:\n" + INSIDE.format("assert file.read() == ''"),
    ),
    "late, by a generator": (
        "yield 1\n    raise ValueError('late')",
        "got = f(1)\nassert next(got) == 1\ntry:\n    next(got)\nexcept ValueError as e:\n    assert str(e) == 'late'\n"
        "else: 1 / 0",
    ),
    "of a class of the tests": (
        "raise Mine(3)",
        "try:\n    f(1)\nexcept Mine as e:\n    assert e.args == (3,)\nelse: 1 / 0",
    ),
}
CLASSES = "class Mine(Exception):\n    pass\n"


@pytest.fixture(scope="module")
def runner() -> SandboxRunner:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    return SandboxRunner(limits=Limits(wall_seconds=60, cpu_seconds=2, memory_mib=128))


def job(body: str, tests: str) -> SandboxJob:
    return SandboxJob(f"{CLASSES}def f(x):\n    {body}\n", f"{CLASSES}def f(x): return x + 1\n", ("f",), tests)


@pytest.mark.parametrize("name", FORGED)
def test_nothing_of_a_program_acts_in_the_tester(runner, name):
    verdict = runner.run(job(*FORGED[name]))
    assert not verdict.passed
    assert verdict.reason


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_tests_expect_arrives(runner, name):
    verdict = runner.run(job(*EXPECTED[name]))
    assert verdict.passed, verdict.reason
    assert not runner.run(job("return x", EXPECTED[name][1])).passed  # the tests do look


def test_reasons_name_the_exception_of_the_program(runner):
    assert runner.run(job("raise KeyError('k')", LOOP)).reason == "KeyError: k"
    assert runner.run(job("raise StopIteration(3)", LOOP)).reason == "StopIteration: 3"
    assert runner.run(job("raise Mine('m' * 999)", LOOP)).reason == f"Mine: {'m' * 300}"
    assert runner.run(job("return object()", LOOP)).reason.startswith("an answer of type object cannot be compared")
