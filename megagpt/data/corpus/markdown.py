"""Text in the tables of reports."""


def cell(text: str) -> str:
    """`text`, cut at 300 characters and escaped, so that it cannot end a table's cell or act as markup."""
    return "".join(f"\\{char}" if char in "|\\`*_<>[]" else " " if char < " " else char for char in text[:300])
