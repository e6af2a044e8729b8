"""The text of HTML pages: by trafilatura, as FineWeb, or by resiliparse, as DCLM, in a process that may be killed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from megagpt.data.corpus.text.inputs.sandbox import MEMORY, SECONDS, Failed, Sandbox
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.errors import ConfigError

Library = Literal["trafilatura", "resiliparse"]

RULE = "extraction"
"""By which pages are dropped that no text can be extracted from."""


class Extractor:
    """Extracts text from pages; a context manager around the process that does it, one for a task.

    Pages do not influence each other: the text of a page is the same in any order and for any number of processes.
    seconds: CPU time for a page; memory: bytes that the process may allocate
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
        """`page` with the text of its HTML in place of the HTML; itself if it has none."""
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
    """The function from HTML (UTF-8) to text of `library`. Raises ConfigError where it is not installed."""
    try:
        return _FUNCTIONS[library]()
    except ImportError as error:
        raise ConfigError(f'HTML needs {library} ({error}): pip install "megagpt[corpora]"') from None


def _trafilatura() -> Callable[[bytes], str]:
    from trafilatura import extract

    def text(html: bytes) -> str:
        # deduplicate=True would compare paragraphs with those of earlier pages: text would depend on the order.
        return extract(html.decode(), favor_precision=True, include_comments=False, deduplicate=False) or ""

    return text


def _resiliparse() -> Callable[[bytes], str]:
    from resiliparse.extract.html2text import extract_plain_text

    def text(html: bytes) -> str:
        return extract_plain_text(html.decode(), main_content=True)

    return text


_FUNCTIONS = {"trafilatura": _trafilatura, "resiliparse": _resiliparse}
