"""`megagpt data`: make training data from raw text, code and conversations."""

from megagpt.cli.group import Group

command = Group(
    "data",
    (
        "tokenizer",
        "preprocess",
        "corpus",
        "quality",
        "overlap",
        "mixture",
        "preview",
        "edits",
        "instructions",
        "rules",
        "pairs",
    ),
    package="megagpt.cli.data",
    help="""Make tokenizers, corpora and instructions to train on.

    \b
    Example
      megagpt data tokenizer corpus.jsonl --vocab-size 8192 --output tokenizer.json
    """,
)
