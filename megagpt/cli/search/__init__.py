"""`megagpt search`: make an index of embedded documents, search it, and explore it."""

from megagpt.cli.group import Group

command = Group(
    "search",
    ("index", "ask", "neighbours", "duplicates", "clusters", "map"),
    package="megagpt.cli.search",
    short_help="Search documents by meaning, and explore them.",
    help="""Search documents by meaning: make an index of them, search it, and explore it.

    \b
    Examples
      megagpt search index documents.jsonl --checkpoint runs/embed --output docs_index
      megagpt search ask docs_index "how do I read a file line by line"
      megagpt search map docs_index --output map.html
    """,
)
