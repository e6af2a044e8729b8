"""Docstrings and functions, of Python and of the languages that tree-sitter parses."""

import argparse
import ast
import inspect
import json.decoder
import statistics

import pytest

from megagpt.data.pair_sources.code import Functions, SourceText, code_pairs, source_text
from megagpt.data.pair_sources.docstrings import comment_text, summary
from megagpt.data.pair_sources.found import Tally
from megagpt.data.pair_sources.parsed_functions import LANGUAGES
from megagpt.data.pair_sources.python_functions import python_functions
from megagpt.data.pair_sources.records import Record
from megagpt.errors import ConfigError

PYTHON = '''
class Tree:
    @cached
    def depth(self, node):
        """Count the levels below a node.

        Leaves count as one.
        """
        # the root is a level too
        levels = [self.depth(child) for child in node]
        return 1 + max(levels, default=0)

    def size(self):
        """Return the size of this tree."""
        return self._size

    async def grow(self, by):
        "Add as many leaves as asked."; self.n += by; self.changed()
        return self.n


def join(parts, mark):
    """Put a mark between all parts."""
    text = """
first
"""
    return text + mark.join(parts)


def undocumented(a):
    b = a + 1
    return b
'''

SOURCES = {
    "javascript": """
/**
 * Adds up all the prices.
 * @param {number[]} prices
 */
export function total(prices) {
  let sum = 0;
  for (const price of prices) sum += price;
  return sum;
}
""",
    "typescript": """
// Adds up all
// the prices.
const total = (prices: number[]): number => {
  let sum = 0;
  prices.forEach((price) => { sum += price; });
  return sum;
};
""",
    "java": """
class Shop {
    /**
     * Adds up all the <b>prices</b>.
     *
     * @return the sum
     */
    @Override
    public int total(int[] prices) {
        int sum = 0;
        for (int price : prices) sum += price;
        return sum;
    }
}
""",
    "go": """package shop

// Adds up all the prices.
func (s *Shop) Total(prices []int) int {
\tsum := 0
\tfor _, price := range prices { sum += price }
\treturn sum
}
""",
    "ruby": """
class Shop
  # Adds up all the prices.
  def total(prices)
    sum = 0
    prices.each { |price| sum += price }
    sum
  end
end
""",
    "php": """<?php
/** Adds up all the prices. */
function total($prices) {
    $sum = 0;
    foreach ($prices as $price) { $sum += $price; }
    return $sum;
}
""",
    "rust": """
impl Shop {
    /// Adds up all the prices.
    ///
    /// # Examples
    #[inline]
    pub fn total(&self, prices: &[u32]) -> u32 {
        let mut sum = 0;
        for price in prices { sum += price; }
        sum
    }
}
""",
    "c": """
/* Adds up all the prices. */
static int total(const int *prices, int count)
{
    int sum = 0;
    for (int i = 0; i < count; i++) sum += prices[i];
    return sum;
}
""",
    "c++": """
/// Adds up all the prices.
template <typename T>
T total(const std::vector<T>& prices) {
  T sum{};
  for (const auto& price : prices) sum += price;
  return sum;
}
""",
    "c#": """
class Shop {
    /// <summary>
    /// Adds up all the prices.
    /// </summary>
    public int Total(int[] prices) {
        var sum = 0;
        foreach (var price in prices) sum += price;
        return sum;
    }
}
""",
}


def found(text: str, language: str, path: str = "shop/main", **options):
    tally = Tally()
    return list(code_pairs(SourceText(text, path, language, "shop"), Functions(**options), tally)), tally


def test_python_functions_lose_their_docstring_and_nothing_else():
    pairs, tally = found(PYTHON, "python")
    depth = next(pair for pair in pairs if "levels below" in pair.query)
    assert depth.query == "Count the levels below a node."
    assert depth.positive == (
        "@cached\ndef depth(self, node):\n    # the root is a level too\n"
        "    levels = [self.depth(child) for child in node]\n    return 1 + max(levels, default=0)"
    )
    join = next(pair for pair in pairs if pair.query.startswith("Put"))
    assert join.positive == 'def join(parts, mark):\n    text = """\nfirst\n"""\n    return text + mark.join(parts)'
    assert len(pairs) == 2
    assert tally.read["functions"] == 5
    assert tally.dropped == {
        "function: trivial": 1,
        "function: no docstring": 1,
        "function: docstring on a line with code": 1,
    }


@pytest.mark.parametrize(
    "module", [argparse, ast, inspect, json.decoder, statistics], ids=lambda module: module.__name__
)
def test_of_the_standard_library_the_syntax_trees_are_the_same_but_for_the_docstring(module):
    source = inspect.getsource(module)
    definitions = {
        node.lineno: node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    checked = 0
    for function in python_functions(source.replace("\n", "\r\n")):
        node = definitions[function.line]
        if function.docstring and not function.trivial:
            assert ast.get_docstring(node) == function.docstring
            node.body = node.body[1:]
            assert ast.dump(ast.parse(function.code).body[0]) == ast.dump(node)
            checked += 1
    assert checked > 2


def test_the_whole_docstring_by_option():
    pairs, _ = found(PYTHON, "python", docstring="whole")
    assert "Count the levels below a node.\n\nLeaves count as one." in [pair.query for pair in pairs]


def test_every_language_has_a_source_here():
    assert set(SOURCES) == set(LANGUAGES)


@pytest.mark.parametrize("language", SOURCES)
def test_the_comment_above_a_function_is_its_query(language):
    pairs, _ = found(SOURCES[language], language)
    assert [pair.query for pair in pairs] == ["Adds up all the prices."]
    code = pairs[0].positive
    assert "Adds up" not in code
    assert "total" in code.lower()
    assert code.splitlines()[-1].strip() in ("}", "};", "end")
    start = {"rust": "#[inline]", "java": "@Override", "c++": "template", "javascript": "export"}.get(language, "")
    assert code.startswith(start)
    assert code.splitlines()[-1] == code.splitlines()[-1].lstrip()  # the indentation of its class is gone


def test_a_comment_with_a_gap_or_beside_code_belongs_to_nobody():
    gap = "// Adds up all the prices.\n\n" + SOURCES["c"].split("*/\n")[1]
    beside = "int limit; // Adds up all the prices.\n" + SOURCES["c"].split("*/\n")[1]
    for source in (gap, beside):
        pairs, tally = found(source, "c")
        assert not pairs
        assert tally.dropped == {"function: no docstring": 1}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ('def f(x):\n    """Too short."""\n    y = x\n    return y + 1', "docstring too short"),
        ('def test_it(x):\n    """Check that it works."""\n    y = x\n    return y + 1', "test"),
        ('def f(x):\n    """TODO: write all of this."""\n    y = x\n    return y + 1',
         "docstring that is not a description"),
        ('def f(x):\n    """Give back the same."""\n    return g(x)', "too short"),
        ('def f(x):\n    """Give back the same."""\n    # Give back the same\n    y = x\n    return y + 1',
         "docstring repeated in the code"),
        ('def f(x):\n    """Raise an error always."""\n    raise NotImplementedError(\n        x,\n    )', "trivial"),
    ],
)  # fmt: skip
def test_what_teaches_nothing_is_left_out_with_a_reason(source, reason):
    pairs, tally = found(source, "python")
    assert not pairs
    assert tally.dropped == {f"function: {reason}": 1}


def test_files_of_tests_generated_files_and_broken_ones_are_left_out():
    for text, path, reason in (
        (PYTHON, "shop/tests/main.py", "file: tests"),
        (PYTHON, "shop/test_main.py", "file: tests"),
        ("# Generated by protoc. DO NOT EDIT\n" + PYTHON, "shop/main.py", "file: generated by a program"),
        ("print 'Python 2'", "shop/main.py", "file: not Python 3"),
    ):
        pairs, tally = found(text, "python", path)
        assert not pairs
        assert list(tally.dropped) == [reason]
    assert len(found(PYTHON, "python", "shop/tests/main.py", tests=True)[0]) == 2


def test_a_file_with_a_mistake_still_gives_its_other_functions():
    broken = SOURCES["javascript"] + "\nfunction ( {{{\n"
    assert len(found(broken, "javascript")[0]) == 1


def test_the_unit_of_a_split_is_the_repository_or_the_top_level_folder(tmp_path):
    def unit(value, path="corpus.jsonl", inputs=()):
        return source_text(Record(path, 1, value), "text", inputs).unit

    assert unit({"text": "x = 1", "path": "a/b.py", "repo_name": "me/mine"}) == "me/mine"
    assert unit({"text": "x = 1", "path": "repos/mine/src/b.py"}) == "repos/mine"
    assert unit({"text": "x = 1", "path": "Lib/ast.py"}) == "Lib/ast"
    (tmp_path / "src" / "pkg").mkdir(parents=True)
    assert unit("x = 1", str(tmp_path / "src" / "pkg" / "a.py"), [str(tmp_path / "src")]) == "src/pkg"


def test_comments_lose_the_marks_of_their_language():
    assert (
        comment_text("/**\n * Reads a {@link File} now.\n *\n * @param x y\n */") == "Reads a File now.\n\n@param x y"
    )
    assert comment_text("/// Reads\n/// a file.") == "Reads\na file."
    assert comment_text("# Reads *all* of it\n# ------") == "Reads *all* of it"
    assert summary("Reads a\nfile.\n:param x: y") == "Reads a file."
    assert summary("Reads a file.\nArgs:\n  x: y") == "Reads a file."


def test_languages_without_a_parser_are_refused():
    with pytest.raises(ConfigError, match="cobol"):
        Functions(languages=("cobol",))
    record = Record("corpus.jsonl", 1, {"text": "x = 1"})
    assert source_text(record, "text", (), ("go",)).language == "go"  # nothing else can be wanted
    assert source_text(record, "text", ()).language is None
    assert found("x", None)[1].dropped == {"file: language not known": 1}
    assert found("x", "perl")[1].dropped == {"file: no parser for perl": 1}
