"""`megagpt search ask`."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from megagpt.cli import options
from megagpt.cli.group import RankedCommand
from megagpt.cli.ranks import one_voice, say
from megagpt.cli.search.results import bold, json_line, results_of, shown_result
from megagpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    from megagpt.checkpoint import World
    from megagpt.evaluate.index import Backend, Index

AT_A_TIME = 4096
"""Number of questions of a file that are answered together."""


@click.command("ask", cls=RankedCommand, short_help="Find the documents that answer a question.")
@options.index
@click.argument("questions", nargs=-1, metavar="[QUESTION]...")
@click.option("--file", type=options.FILE, help="Questions to read: .jsonl, .parquet, or text with one per line.")
@click.option("--output", type=options.FILE, help="Write the results to this file as JSON lines, and do not show them.")
@click.option("--key", default="text", show_default=True, help="Key or column of the questions in the file.")
@options.top
@click.option(
    "--backend",
    type=click.Choice(["exact", "faiss", "hnsw"]),
    default="exact",
    show_default=True,
    help="Search by a matrix product; by faiss, also exact; or by faiss's graph, which is fast and approximate.",
)
@click.option("--checkpoint", type=options.FILE, help="New place of the index's model, if it was moved.")
@options.as_json
@options.embedding_layout
@one_voice()
def command(
    folder: Path,
    questions: tuple[str, ...],
    file: Path | None,
    output: Path | None,
    key: str,
    top: int,
    backend: str,
    checkpoint: Path | None,
    as_json: bool,
    **layout: Any,
) -> None:
    """Find the documents that answer a question.

    \b
    Examples
      megagpt search ask docs_index "how do I read a file line by line"
      megagpt search ask docs_index --file questions.jsonl --output results.jsonl --top 100
      megagpt search ask docs_index

    Without a question, in a terminal, it asks for questions one after another. Results have the cosine of the vectors
    of document and question, and the document's number in the index, from 0. --json prints one object per question.
    """
    from megagpt.cli.embedding import find_checkpoint, loader
    from megagpt.data.files import atomic_file
    from megagpt.evaluate.faiss_index import import_faiss
    from megagpt.evaluate.index import Index
    from megagpt.evaluate.vectors import first_rank_does

    if file and questions:
        raise ConfigError("there are questions on the command line and in --file: give one or the other")
    if output and not (file or questions):
        raise ConfigError("--output needs questions: give --file, or a question")
    if any(not question.strip() for question in questions):
        raise DataError("a question is empty: give it some words")
    if backend != "exact":
        import_faiss()
    index = Index.open(folder)
    found, world = find_checkpoint(checkpoint or Path(index.about["job"]["checkpoint"]["folder"]), **layout)
    first_rank_does(world, lambda: index.check_checkpoint(found))
    given = _questions_of(file, key) if file else iter([list(questions)]) if questions else _asked(world)
    embedder = loader(**layout)(found)
    with ExitStack() as stack:
        written = stack.enter_context(atomic_file(output)) if output and world.rank == 0 else None
        for block in given:
            vectors = embedder.embed(block, "query", index.about["dimensions"], label="questions")
            for one in _answers(index, block, vectors, top, backend) if world.rank == 0 else []:
                if written:
                    written.write(json_line(one).encode(errors="backslashreplace"))
                else:
                    say(json_line(one) if as_json else _shown(one))


def _answers(
    index: "Index", questions: list[str], vectors: "np.ndarray", top: int, backend: "Backend"
) -> Iterator[dict[str, Any]]:
    """(question, its results, best first) as an object for every question."""
    scores, rows = index.search(vectors, top, backend)
    for question, own_scores, own_rows in zip(questions, scores, rows, strict=True):
        yield {"question": question, "results": results_of(index, own_scores, own_rows)}


def _shown(answer: dict[str, Any]) -> str:
    lines = "".join(shown_result(result) for result in answer["results"])
    return f"{bold(answer['question'])}\n{lines}\n"


def _questions_of(file: Path, key: str) -> Iterator[list[str]]:
    """The questions of a file, AT_A_TIME in a list. Raises DataError if it has none."""
    from megagpt.data.texts import count_texts, read_texts, text_sources

    sources = text_sources([file])
    count_texts(sources, key)
    texts = read_texts(sources, key)
    while block := [one.text for one in islice(texts, AT_A_TIME)]:
        yield block


def _asked(world: "World") -> Iterator[list[str]]:
    """Questions typed into the first rank's terminal, one at a time, until end of file or Ctrl-C."""
    if not world.broadcast(sys.stdin.isatty()):
        raise ConfigError("there is no question: give one, or --file")
    while True:
        line = None
        if world.rank == 0:
            try:
                line = input("question> ")
            except (EOFError, KeyboardInterrupt):
                say("\n")
        line = world.broadcast(line)
        if line is None:
            return
        if line.strip():
            yield [line]
