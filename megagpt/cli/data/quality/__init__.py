"""`megagpt data quality`: classifiers that separate good documents from bad ones."""

from megagpt.cli.group import Group

command = Group(
    "quality",
    ("train", "score"),
    package="megagpt.cli.data.quality",
    help="""Train classifiers of documents, and score documents with them.

    \b
    Example
      megagpt data quality train --good wikipedia.jsonl --bad crawl.jsonl --output data/quality
    """,
    short_help="Train a classifier of documents' quality, and score documents.",
)
