"""Small functions to put mistakes into, with arguments that test them.

They have no input or output and end quickly. Versions with a mistake run with a limit on their steps.
"""

# The source of these functions is training data: a docstring would reveal the mistake, and loops give more mistakes.
# ruff: noqa: D103, SIM110

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any


def largest(values: list[int]) -> int:
    best = values[0]
    for value in values:
        if value > best:
            best = value
    return best


def smallest(values: list[int]) -> int:
    best = values[0]
    for value in values:
        if value < best:
            best = value
    return best


def total(values: list[int]) -> int:
    result = 0
    for value in values:
        result = result + value
    return result


def product(values: list[int]) -> int:
    result = 1
    for value in values:
        result = result * value
    return result


def count_even(values: list[int]) -> int:
    count = 0
    for value in values:
        if value % 2 == 0:
            count = count + 1
    return count


def count_of(values: list[int], wanted: int) -> int:
    count = 0
    for value in values:
        if value == wanted:
            count = count + 1
    return count


def clamp(value: int, low: int, high: int) -> int:
    if value < low:
        return low
    if value > high:
        return high
    return value


def factorial(number: int) -> int:
    result = 1
    for factor in range(2, number + 1):
        result = result * factor
    return result


def power(base: int, exponent: int) -> int:
    result = 1
    for _ in range(exponent):
        result = result * base
    return result


def mean(values: list[int]) -> float:
    return sum(values) / len(values)


def is_palindrome(text: str) -> bool:
    return text == text[::-1]


def is_sorted(values: list[int]) -> bool:
    for index in range(1, len(values)):
        if values[index - 1] > values[index]:
            return False
    return True


def is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def is_prime(number: int) -> bool:
    if number < 2:
        return False
    for divisor in range(2, number):
        if number % divisor == 0:
            return False
    return True


def index_of(values: list[int], wanted: int) -> int:
    for index in range(len(values)):
        if values[index] == wanted:
            return index
    return -1


def difference(first: int, second: int) -> int:
    return first - second


def absolute(number: int) -> int:
    if number < 0:
        return -number
    return number


def last(values: list[int]) -> int:
    return values[len(values) - 1]


def every(values: list[int], step: int) -> list[int]:
    return [values[index] for index in range(0, len(values), step)]


def between(value: int, low: int, high: int) -> bool:
    return low <= value and value <= high


def greatest_divisor(first: int, second: int) -> int:
    while second > 0:
        first, second = second, first % second
    return first


def fibonacci(number: int) -> int:
    first, second = 0, 1
    for _ in range(number):
        first, second = second, first + second
    return first


def running_sums(values: list[int]) -> list[int]:
    sums = []
    current = 0
    for value in values:
        current = current + value
        sums.append(current)
    return sums


def without(values: list[int], unwanted: int) -> list[int]:
    return [value for value in values if value != unwanted]


_LISTS = ([3], [4, 1, 7], [2, 2, 5, 9, 1], [-3, 0, 8, 4], [6, 5, 4, 3, 2, 1], [1, 2, 2, 3])
_PAIRS = tuple((values, wanted) for values in _LISTS for wanted in (2, 3, 4))
_TRIPLES = tuple((value, 2, 6) for value in range(9))
_NUMBERS = tuple((number,) for number in range(8))

FUNCTIONS: dict[Callable, Sequence[tuple[Any, ...]]] = {
    **{f: tuple((v,) for v in _LISTS) for f in (largest, smallest, total, product, count_even, mean, is_sorted)},
    **{f: tuple((v,) for v in _LISTS) for f in (last, running_sums)},
    **dict.fromkeys((count_of, index_of, without), _PAIRS),
    every: tuple((values, step) for values in _LISTS for step in (1, 2, 3)),
    **dict.fromkeys((clamp, between), _TRIPLES),
    **dict.fromkeys((factorial, fibonacci, is_prime), _NUMBERS),
    power: ((2, 0), (2, 5), (3, 3), (7, 1)),
    difference: ((5, 2), (2, 5), (0, 3)),
    absolute: ((5,), (-5,), (0,), (-1,)),
    is_palindrome: (("",), ("a",), ("abba",), ("abc",), ("level",)),
    is_leap: ((2000,), (1900,), (2024,), (2023,)),
    greatest_divisor: ((12, 8), (7, 3), (9, 0), (21, 14)),
}
"""The arguments of the test calls of each function."""


def source_of(function: Callable) -> str:
    """The source of a function, without annotations."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.unparse(tree)
