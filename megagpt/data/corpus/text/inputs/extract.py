"""Extract text from HTML pages with trafilatura (as FineWeb) or resiliparse (as DCLM), in a sandbox process."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from megagpt.data.corpus.text.inputs.sandbox import MEMORY, SECONDS, Failed, Sandbox
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.errors import ConfigError

Library = Literal["trafilatura", "resiliparse"]

RULE = "extraction"
"""Rule that drops pages from which no text can be extracted."""


class Extractor:
    """Extracts text from pages in a separate process; a context manager that ends the process. One for each task.

    Pages do not influence each other: the text of a page is the same in any order and for any number of processes.
    seconds: limit of the CPU time per page
    memory: limit of the memory of the process, in bytes
    """

    def __init__(self, library: Library = "trafilatura", seconds: float = SECONDS, memory: int = MEMORY):
        if library not in _FUNCTIONS:
            raise ConfigError(f"no such extractor: {library!r}; there are {' and '.join(_FUNCTIONS)}")
        self._sandbox = Sandbox(f"{__name__}:extraction", library, seconds, memory)

    def __enter__(self) -> "Extractor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def cpu_seconds(self) -> float:
        """CPU time that extraction took in the other process."""
        return self._sandbox.cpu_seconds

    def close(self) -> None:
        """End the process."""
        self._sandbox.close()

    def extract(self, page: Page) -> Page | Broken:
        """`page` with text in place of its HTML; `page` itself if it has no HTML. Broken if there is no text."""
        if page.html is None:
            return page
        try:
            text = self._sandbox(page.html)
        except Failed as error:
            return Broken(page.source, page.bytes, RULE, str(error))
        if not text.strip():
            return Broken(page.source, page.bytes, RULE, "no text was found")
        return replace(page, text=text, html=None)


def extraction(library: str) -> Callable[[bytes], str]:
    """The library's function from HTML (UTF-8) to text. Raises ConfigError if the library is not installed."""
    try:
        return _FUNCTIONS[library]()
    except ImportError as error:
        raise ConfigError(f'HTML needs {library} ({error}): pip install "megagpt[corpora]"') from None


def _trafilatura() -> Callable[[bytes], str]:
    from trafilatura import extract

    def text(html: bytes) -> str:
        # deduplicate=True would compare paragraphs with earlier pages, so the text would depend on the order of pages.
        return extract(html.decode(), favor_precision=True, include_comments=False, deduplicate=False) or ""

    return text


def _resiliparse() -> Callable[[bytes], str]:
    from resiliparse.extract.html2text import extract_plain_text

    def text(html: bytes) -> str:
        return extract_plain_text(html.decode(), main_content=True)

    return text


_FUNCTIONS = {"trafilatura": _trafilatura, "resiliparse": _resiliparse}
