"""Formats of the code sets: files, prompts, programs, and the verdicts of solutions known to be right or wrong."""

import gzip
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.code_tasks import CODEX_STOP, Problem, prompt_hash, read_problems
from megagpt.evaluate.sandbox import SandboxRunner

PEER = """
import contextlib, gzip, io, json, multiprocessing, signal, sys

def passes(one):
    problem, completion = one
    program = problem["prompt"] + completion + "\\n" + problem["test"] + "\\n" + f"check({problem['entry_point']})"
    signal.alarm(10)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(program, {})

def judge(one):
    process = multiprocessing.get_context("fork").Process(target=passes, args=(one,))
    process.start()
    process.join()
    return process.exitcode == 0

problems = {one["task_id"]: one for one in map(json.loads, gzip.open(sys.argv[1]))}
print(json.dumps([judge((problems[task_id], completion)) for task_id, completion in json.load(sys.stdin)]))
"""
"""HumanEval's protocol (arXiv 2107.03374) without a sandbox, as its own package has it: the prompt, the completion and
the tests are one program, which passes when it ends without an error."""

MBPP = [
    {
        "text": "Write a function to add.",
        "code": "import math\r\ndef helper(a):\r\n    return a\r\ndef add(a, b):\r\n    return helper(a) + b",
        "task_id": 1,
        "test_setup_code": "",
        "test_list": ["assert add(1, 2) == 3", "assert set(add([1], [2])) == {1, 2}"],
        "challenge_test_list": [],
    },
    {
        "text": "Write a function to sum a linked list.",
        "code": "class Node:\n  def __init__(s, v):\n    s.v, s.next = v, None\n"
        "def total(n):\n  return n.v + total(n.next) if n else 0",
        "task_id": 2,
        "test_setup_code": "root = Node(1)\nroot.next = Node(4)",
        "test_list": ["assert total(root) == 5"],
        "challenge_test_list": [],
    },
    {
        "prompt": "Write a function for the area of a circle.",
        "code": "import math\ndef area(r):\n  return math.pi * r * r",
        "task_id": 3,
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(area(2), 4 * math.pi)"],
    },
]


@pytest.fixture(scope="module")
def passed_of():
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    runner = SandboxRunner()

    def passed_of(asked: list[tuple[Problem, str]]) -> list[bool]:
        with ThreadPoolExecutor(2) as pool:
            return [verdict.passed for verdict in pool.map(lambda one: runner.run(one[0].job(one[1])), asked)]

    return passed_of


def data(data_dir: Path, name: str) -> Path:
    path = data_dir / name
    if not path.exists():
        pytest.skip(f"{name} is not among the data sets beside the project")
    return path


@pytest.mark.slow
def test_humaneval_and_agreement_with_its_own_protocol(data_dir, passed_of):
    path = data(data_dir, "humaneval/HumanEval.jsonl.gz")
    problems = read_problems("humaneval", path)
    right = [(problem, problem.solution) for problem in problems]
    emptied = [(problem, "") for problem in problems]
    others = [(problem, other.solution) for problem, other in zip(problems[::8], problems[1::8], strict=False)]
    assert passed_of(right) == [True] * 164
    assert passed_of(emptied) == [False] * 164
    wrong = passed_of(others)
    assert not all(wrong)
    asked = [(problem.task_id, completion) for problem, completion in right + emptied[::4] + others]
    peer = subprocess.run(
        [sys.executable, "-c", PEER, str(path)], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    assert json.loads(peer.stdout) == [True] * 164 + [False] * 41 + wrong


@pytest.mark.parametrize("kind", ["SingleLine", "RandomSpan", "RandomSpanLight"])
def test_humaneval_infilling(data_dir, passed_of, kind):
    name = kind.removesuffix("Light") + "Infilling" + ("Light" if kind.endswith("Light") else "")
    problems = read_problems("humaneval_infilling", data(data_dir, f"humaneval_infilling/HumanEval-{name}.jsonl.gz"))
    some = problems[:: len(problems) // 20]
    assert all(passed_of([(problem, problem.solution) for problem in some]))
    assert not any(passed_of([(problem, problem.solution + "\n) syntax error") for problem in some[:5]]))
    for problem in problems if kind == "SingleLine" else ():
        assert problem.truncate(problem.solution + "more\nlines") == problem.solution  # a line ends the completion


@pytest.mark.parametrize("array", [False, True])
def test_mbpp(tmp_path, passed_of, array):
    path = tmp_path / ("mbpp.json" if array else "mbpp.jsonl.gz")
    if array:
        path.write_text(json.dumps(MBPP))
    else:
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, MBPP)).encode()))
    problems = read_problems("mbpp", path)
    assert [problem.functions for problem in problems] == [("add",), ("total",), ("area",)]
    assert problems[0].prompt.startswith('"""\nWrite a function to add.\nassert add(1, 2) == 3\n')
    assert problems[0].prompt.endswith('\n"""\n')
    wrong = ["def add(a, b):\n    return b", MBPP[1]["code"].replace("n.v +", "1 +"), "def area(r): return r"]
    asked = [(p, p.solution) for p in problems] + list(zip(problems, wrong, strict=True))
    assert passed_of(asked) == [True] * 3 + [False] * 3
    assert (
        problems[0].truncate("def add():\n  pass\ndef two(): 0\nassert add() == 1")
        == "def add():\n  pass\ndef two(): 0"
    )


def problem(**changes) -> dict:
    record = {"task_id": "a", "prompt": "def f():\n", "canonical_solution": "  return 1\n", "entry_point": "f"}
    return record | {"test": "def check(candidate):\n  assert candidate() == 1"} | changes


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_completions_end_at_codex_stop_strings(tmp_path):
    [found] = read_problems("humaneval", write(tmp_path / "x.jsonl", problem()))
    assert found.stop == CODEX_STOP
    body = "    x = 1\n    if x:\n        print(x)  # def\n    return x"
    for stop in CODEX_STOP:
        assert found.truncate(body + stop + " more") == body
    assert found.truncate(body + "\nprint\nclass") == body
    assert found.truncate(body) == body


def test_prompt_hash_is_of_what_is_asked(tmp_path):
    first, same, other = (
        read_problems("humaneval", write(tmp_path / "x.jsonl", problem(**changes)))
        for changes in ({}, {"test": "def check(c): pass"}, {"prompt": "def f(): \n"})
    )
    assert prompt_hash(first) == prompt_hash(same) != prompt_hash(other)


def test_code_of_a_chat_response_gets_what_it_needs_of_the_prompt(tmp_path):
    prompt = 'import math\n\ndef helper(x):\n  return x\n\ndef f():\n  """Call helper."""\n'
    [found] = read_problems("humaneval", write(tmp_path / "x.jsonl", problem(prompt=prompt)))
    start = "import math\n\ndef helper(x):\n  return x\n\n"
    whole = "def f():\n  return helper(1)\n"
    assert found.chat_job(f"```\n{whole}```")[0].program == start + whole
    assert found.chat_job("```\n  return helper(1)\n```")[0].program == f"{prompt}  return helper(1)\n"
    assert found.chat_job(f"```\n{whole}```")[0].tests == found.job("").tests
    assert prompt.strip() in found.question
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(one) + "\n" for one in MBPP))
    for one, record in zip(read_problems("mbpp", tmp_path / "mbpp.jsonl"), MBPP, strict=True):
        assert one.chat_job(f"```\n{record['code']}\n```")[0].program == record["code"] + "\n"
        assert all(test in one.question for test in record["test_list"])


def test_humaneval_in_chat(data_dir):
    problems = read_problems("humaneval", data(data_dir, "humaneval/HumanEval.jsonl.gz"))
    for one in problems:  # the whole function, its imports and helpers left out, as chat models do
        whole = (one.prefix + one.solution).removeprefix(one.context)
        assert whole.startswith("def ")
        assert one.context + whole == one.reference
        program = one.chat_job(f"Sure!\n\n```python\n{whole}\n```")[0].program
        assert program.rstrip() == one.reference.rstrip()


def test_broken_files_are_named(tmp_path):
    def refused(content: str | bytes, message: str, task: str = "humaneval", name: str = "x.jsonl") -> None:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=message):
            read_problems(task, path)

    record = problem()
    del record["entry_point"]
    refused(json.dumps(problem()) + "\n" + json.dumps(record), r"x.jsonl:2: .* needs the field 'entry_point'")
    refused("{", r"x.jsonl:1: not JSON")
    refused("3", r"x.jsonl:1: not a problem of humaneval")
    refused("", "holds no problem")
    refused(f"{json.dumps(problem())}\n" * 2, "task_id a occurs twice")
    refused(b"no gzip", "cannot read problems", name="x.jsonl.gz")
    refused(json.dumps(MBPP[0] | {"test_list": ["assert other()"]}), "call no function", task="mbpp")
    with pytest.raises(DataError, match="cannot read problems"):
        read_problems("humaneval", tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match="must be one of humaneval, humaneval_infilling, mbpp"):
        read_problems("apps", tmp_path / "x.jsonl")


def test_a_problem_of_another_language_is_refused(tmp_path):
    record = {
        "task_id": "Java/0",
        "prompt": "",
        "canonical_solution": "",
        "entry_point": "f",
        "test": "",
        "language": "Java",
    }
    (tmp_path / "set.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=r"set\.jsonl:1: .*its language is java, but only Python programs can be run"):
        read_problems("humaneval", tmp_path / "set.jsonl")
