"""Generates GPT-3's arithmetic tasks (arXiv 2005.14165, section 3.9.1) in the format of OpenAI's files.

Operands of n digits are uniform from 0 to 10^n - 1, so some have fewer digits. As in OpenAI's file,
single_digit_three_ops has digits from 1 to 9 and two operations among +, - and *, the first of them in brackets.
Problems do not repeat. sum_of_digits and the tasks with six digits are in OpenAI's files but not in the paper.
"""

import random
from collections.abc import Callable

from megagpt.errors import ConfigError

INSTANCES = 2_000
"""Number of problems in each of OpenAI's files."""

Problem = tuple[str, int]
"""(question, answer)."""


def arithmetic(task: str, count: int = INSTANCES, seed: int = 0) -> list[dict[str, str]]:
    """`count` different random problems of a task.

    Each is {"context": "\\n\\nQ: What is 2 plus 3?\\n\\nA:", "completion": " 5"}. task: the name of one of OpenAI's
    files. Raises ConfigError for an unknown task, or one with too few problems.
    """
    if task not in TASKS:
        raise ConfigError(f"there is no arithmetic task {task}; there are {', '.join(TASKS)}")
    make, possible = TASKS[task]
    if count > possible:
        raise ConfigError(f"{task} has {possible} different problems, fewer than the {count} asked for")
    rng = random.Random(f"{task} {seed}")
    problems: dict[str, int] = {}
    while len(problems) < count:
        question, answer = make(rng)
        problems[question] = answer
    return [
        {"context": f"\n\nQ: What is {question}?\n\nA:", "completion": f" {answer}"}
        for question, answer in problems.items()
    ]


def _two_operands(digits: int, name: str, operation: Callable[[int, int], int]) -> Callable[[random.Random], Problem]:
    def make(rng: random.Random) -> Problem:
        first, second = rng.randrange(10**digits), rng.randrange(10**digits)
        return f"{first} {name} {second}", operation(first, second)

    return make


def _three_digits(rng: random.Random) -> Problem:
    first, second, third = (rng.randint(1, 9) for _ in range(3))
    inner, outer = rng.choice("+-*"), rng.choice("+-*")
    value = _OPERATIONS[outer](_OPERATIONS[inner](first, second), third)
    return f"({first} {inner} {second}) {outer} {third}", value


def _sum_of_digits(rng: random.Random) -> Problem:
    number = rng.randrange(10_000)
    return f"the sum of the digits of the number {number}", sum(map(int, str(number)))


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
_DIGITS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
TASKS: dict[str, tuple[Callable[[random.Random], Problem], int]] = {
    **{
        f"{word}_digit_{task}": (_two_operands(digits, name, _OPERATIONS[sign]), 100**digits)
        for word, digits in _DIGITS.items()
        for task, name, sign in (("addition", "plus", "+"), ("subtraction", "minus", "-"))
    },
    "two_digit_multiplication": (_two_operands(2, "times", _OPERATIONS["*"]), 100**2),
    "single_digit_three_ops": (_three_digits, 9**3 * 9),
    "sum_of_digits": (_sum_of_digits, 10_000),
}
"""{name of OpenAI's file: (function that draws a problem, number of different problems)}."""
