"""Text in the tables of reports."""


def cell(text: str) -> str:
    """Text that neither ends a table's cell nor is taken for markup, whatever a file or a record is called or holds."""
    return "".join(f"\\{char}" if char in "|\\`*_<>[]" else " " if char < " " else char for char in text[:300])
