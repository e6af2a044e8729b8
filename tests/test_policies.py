"""Rules of the house that a program can hold: who imports whom, what is used where, which documented commands work."""

import ast
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import dropwhile
from pathlib import Path

import click
import pytest

from megagpt import cli
from megagpt.__main__ import main
from megagpt.cli.evaluate import parse as parse_evaluation
from megagpt.config import help as config_help
from megagpt.config.load import load
from megagpt.config.rules import check

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 400

# A package imports only from those to its left and from itself; packages in one place do not import each other.
ORDER = [
    {"config"},
    {"data"},
    {"model"},
    {"parallel"},
    {"train"},
    {"checkpoint"},
    {"rl", "evaluate", "plan"},
    {"stages"},
    {"serve"},
    {"cli"},
]
# Modules beside the packages, which every package may import, in the order in which they may import each other.
SHARED = ["errors", "env", "log"]

# Where Megatron-Core is imported. Everything else sees tensors, shards and the Engine protocol.
MEGATRON = {
    "megagpt/data/indexed.py",
    "megagpt/model/attention.py",
    "megagpt/model/gpt.py",
    "megagpt/model/heads.py",
    "megagpt/model/layers.py",
    "megagpt/model/linears.py",
    "megagpt/model/losses.py",
    "megagpt/model/megatron_import.py",
    "megagpt/model/megatron_versions.py",
    "megagpt/model/norms.py",
    "megagpt/parallel/common.py",
    "megagpt/parallel/launch.py",
    "megagpt/parallel/layouts.py",
    "megagpt/parallel/megatron.py",
    "megagpt/parallel/zero.py",
    "megagpt/plan/trace.py",
}
DEEPSPEED = {"megagpt/parallel/zero.py"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, at its top or inside functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} imports relatively: write the whole name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def nodes(folders: tuple[str, ...], unwanted) -> list[str]:
    """file:line of the nodes for which `unwanted` is true."""
    return [
        f"{name(path)}:{node.lineno}" for path in sources(*folders) for node in ast.walk(tree(path)) if unwanted(node)
    ]


def place(package: str) -> int:
    return next((number for number, packages in enumerate(ORDER) if package in packages), -1)


def test_imports_go_one_way():
    wrong = []
    for path in sources("megagpt"):
        own = path.relative_to(ROOT / "megagpt").parts[0].removesuffix(".py")
        if own in ("__main__", "__init__"):
            continue
        for module in imports(path):
            if not module.startswith("megagpt."):
                continue
            other = module.split(".")[1]
            if own in SHARED:
                fine = other in (*SHARED[: SHARED.index(own)], "__version__")
            elif place(other) >= 0:
                fine = other == own or place(other) < place(own)
            else:
                fine = other in (*SHARED, "kernels", "configs", "__version__")
            if not fine:
                wrong.append(f"{name(path)} imports {module}")
    assert not wrong


def test_every_package_has_its_place():
    packages = {path.parent.name for path in (ROOT / "megagpt").glob("*/__init__.py")}
    assert packages <= set().union(*ORDER)
    modules = {path.stem for path in (ROOT / "megagpt").glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(SHARED)


def test_kernels_import_nothing_of_megagpt():
    for path in sources("kernels"):
        assert not [m for m in imports(path) if m.startswith("megagpt") and not m.startswith("megagpt.kernels")], path


def test_no_modules_import_each_other():
    """Neither two of them nor a longer circle, not even by imports inside functions."""
    modules = {}
    for path in sources("megagpt", "kernels"):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules["megagpt." * dotted.startswith("kernels") + dotted] = path
    imported = {module: imported_modules(path, modules) - {module} for module, path in modules.items()}

    def reached(module: str) -> set[str]:
        found, waiting = set(), [module]
        while waiting:
            new = imported[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    assert not [module for module in modules if module in reached(module)]


def imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """Those of `modules` that a file imports. `from package import module` imports the module, not the package."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= modules.keys() else names | {node.module}
    return found & modules.keys()


def test_tools_are_imported_by_nobody():
    tools = {path.stem for path in sources("tools")}
    for path in sources("megagpt", "kernels"):
        assert not tools & {module.split(".")[0] for module in imports(path)}, path


@pytest.mark.parametrize(("engine", "files"), [("megatron", MEGATRON), ("deepspeed", DEEPSPEED)])
def test_engines_are_imported_in_few_files(engine, files):
    found = {
        name(path)
        for path in sources("megagpt", "kernels", "tools")
        if any(module.split(".")[0] == engine for module in imports(path))
    }
    assert found == files


def test_no_global_statement():
    assert not nodes(("megagpt", "kernels", "tools", "tests"), lambda node: isinstance(node, ast.Global))


def test_only_env_reads_the_environment():
    unwanted = {"environ", "environb", "getenv", "putenv", "unsetenv"}

    def reads(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            return node.module == "os" and any(alias.name in unwanted for alias in node.names)
        return isinstance(node, ast.Attribute) and node.attr in unwanted

    assert {place.split(":")[0] for place in nodes(("megagpt", "kernels", "tools"), reads)} <= {"megagpt/env.py"}


def test_only_tools_print():
    def prints(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"

    assert not nodes(("megagpt", "kernels"), prints)


def test_no_literal_is_unpacked_in_place():
    """f(*(a, b)) hides what a and b are, and dodges the formatter: arguments are named, or stand by themselves."""

    def unpacks(node: ast.AST) -> bool:
        return isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple | ast.List | ast.Set)

    assert not nodes(("megagpt", "kernels", "tools", "tests"), unpacks)


@pytest.mark.parametrize("path", sources("megagpt", "kernels", "tools", "tests", "configs"), ids=name)
def test_file_is_short_and_says_what_it_is(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    assert ast.get_docstring(tree(path)), "no module docstring"


def test_every_direct_dependency_has_a_tested_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    direct = {re.split(r"[\[<>=~!; ]", line)[0].lower() for line in wanted}
    direct -= {"megagpt", "triton"}  # PyTorch for CUDA says which Triton it takes
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(; python_version (<|>=) \"[\d.]+\")?", line) for line in lines)
    assert direct <= {line.split("==")[0].lower() for line in lines}


# Documented commands

COMMAND = re.compile(r"-m megagpt|tools/\w+\.py|\bmake \w|\bmegagpt [a-z]")
EXAMPLE = re.compile(r"  (megagpt|torchrun|python) (?!.*\[)")


def commands() -> list[tuple[str, str]]:
    """(file, command) of every command in fenced shell blocks of the docs and in docstrings of the command lines."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for block in re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found += [(name(path), line) for line in block.replace("\\\n", " ").splitlines()]
    for path in [*sources("tools"), ROOT / "megagpt/__main__.py"]:
        lines = (ast.get_docstring(tree(path)) or "").replace("\\\n", " ").splitlines()
        found += [(name(path), line.strip()) for line in lines if re.match(r"\s*(python|torchrun) .*(-m|tools/)", line)]
    for words, command in subcommands():
        lines = (command.callback.__doc__ or "").replace("\\\n", " ").splitlines()
        found += [(" ".join(words), line.strip()) for line in lines if re.match(r"\s*(\S.* \| )?megagpt \w", line)]
    found += [("megagpt train --help", line.strip()) for line in config_help.full().splitlines() if EXAMPLE.match(line)]
    found += messages()
    return [(where, line) for where, line in found if COMMAND.search(line)]


def subcommands(group: click.Group = cli.command, words: tuple[str, ...] = ("megagpt",)) -> Iterator:
    """Every subcommand with the words that call it."""
    for one, command in group.commands.items():
        command = group.get_command(click.Context(group), one)
        if isinstance(command, click.Group):
            yield from subcommands(command, (*words, one))
        else:
            yield (*words, one), command


@cache
def messages() -> list[tuple[str, str]]:
    """(file, command) of every command in backticks in texts of the package: messages, docstrings, comments of YAML."""
    found = []
    for path in [*sources("megagpt", "kernels"), *(ROOT / "configs").rglob("*.yaml"), *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":  # with the parts of f-strings and of strings that follow each other joined
            text = "\n".join(texts(tree(path)))
        found += [(name(path), command) for command in re.findall(r"`(megagpt [a-z][^`]*)`", " ".join(text.split()))]
    return found


def texts(node: ast.AST, value: str = "1") -> Iterator[str]:
    """The texts in a file; those of f-strings as a whole, with `value` for every value."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else value for part in node.values)
    elif isinstance(node, ast.Constant):
        yield from [node.value] if isinstance(node.value, str) else []
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child, value)


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_megagpt(words: list[str]) -> None:
    """Options of `python -m megagpt` work; overrides compose and pass the rules on the ranks that torchrun starts."""
    at = words.index("megagpt", words.index("-m"))
    arguments = [word for word in words[at + 1 :] if word != "..."]
    if {"--help", "-h", "--config"} & set(arguments):
        assert main(arguments) == 0
        return
    launcher = re.search(r"--nproc[-_]per[-_]node[ =](\d+)", " ".join(words[:at]))
    nodes = re.search(r"--nnodes[ =](\S+)", " ".join(words[:at]))
    config = load([re.sub(r"\$\{?\w+\}?", "1", word) for word in arguments])
    if nodes is None or nodes[1].isdigit():
        check(config, int(launcher[1] if launcher else 1) * int(nodes[1] if nodes else 1))


def check_tool(words: list[str], monkeypatch, capsys) -> None:
    """The tool exists and its help knows every option that is given."""
    tool = next(word for word in words if re.fullmatch(r"(\S*/)?tools/\w+\.py", word))
    main_of_tool, known = runpy.run_path(str(ROOT / tool[tool.index("tools/") :]))["main"], set()
    modes = [word for word in words[words.index(tool) + 1 :][:1] if word.isalpha()]
    for mode in [[], modes] if modes else [[]]:
        monkeypatch.setattr(sys, "argv", [tool, *mode, "--help"])
        with pytest.raises(SystemExit) as ended:
            main_of_tool()
        assert ended.value.code == 0
        known |= set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    given = {word.split("=")[0] for word in words[words.index(tool) + 1 :] if re.match(r"--?[a-z]", word)}
    assert given <= known


def check_subcommand(words: list[str], whole: bool) -> None:
    """The command and its options parse, and what it would run with composes.

    Where it is not `whole`, as in a text that only names a command, others may be missing.
    """
    arguments = [re.sub(r"\$\{?\w+\}?|^N$", "1", word) for word in words if word != "..."]
    if {"--help", "-h", "--config", "--version"} & set(arguments):
        assert cli.run(words) == 0
        return
    # With its settings, since click remembers the first help option that a command is asked for.
    command, context = cli.command, click.Context(cli.command, info_name="megagpt", **cli.command.context_settings)
    while isinstance(command, click.Group) and arguments:
        name, command, arguments = command.resolve_command(context, arguments)
        context = click.Context(command, context, info_name=name, **command.context_settings)
    try:
        command.parse_args(context, list(arguments))
    except click.MissingParameter:
        assert not whole
    except click.exceptions.NoArgsIsHelpError:
        assert isinstance(command, click.Group)
    if not whole:
        return
    called = context.command_path.removeprefix("megagpt ")
    if called in ("train", "plan"):
        base = context.params.get("base")
        given = [f"checkpoint.load={base}", f"data.tokenizer={base}/tokenizer.json"] if base else []
        config = load([*given, *context.params["overrides"]])
    if called == "train":
        check(config, context.params["nproc_per_node"] or 1)
    if called == "evaluate":
        parse_evaluation(list(context.params["overrides"]))


def test_no_page_or_message_names_a_tool_that_is_not_there():
    pages = [
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "Makefile",
        *(ROOT / "configs").rglob("*.yaml"),
    ]
    for path in [*pages, *sources("megagpt", "kernels", "tools"), *(ROOT / "slurm").glob("*")]:
        for tool in re.findall(r"(?<!tests/)tools/(\w+\.py)", path.read_text(encoding="utf-8")):
            assert (ROOT / "tools" / tool).exists(), f"{name(path)} names tools/{tool}"


@pytest.mark.parametrize(("where", "line"), commands())
def test_documented_command_works(where, line, monkeypatch, capsys):
    piped = re.match(r".* \| (megagpt .*)", line)
    line = re.split(r"\s[|>&]", piped[1] if piped else line.removeprefix("$ "))[0]
    words = shlex.split(line, comments=True)
    words = list(dropwhile(lambda word: re.match(r"[A-Z_]+=|time$", word), words))
    if words[0] == "megagpt" or "megagpt.cli" in words:
        at = next(index for index, word in enumerate(words) if word in ("megagpt", "megagpt.cli"))
        check_subcommand(words[at + 1 :], whole=(where, line) not in messages())
        return
    if "-m" in words and "megagpt" in words:
        check_megagpt(words)
    elif any("tools/" in word for word in words):
        check_tool(words, monkeypatch, capsys)
    elif "make" in words:
        targets = [word for word in words[words.index("make") + 1 :] if "=" not in word and not word.startswith("-")]
        assert set(targets) <= make_targets()
