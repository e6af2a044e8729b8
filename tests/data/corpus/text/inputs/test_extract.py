"""Text of HTML: the running text and nothing around it, the same whatever was extracted before, and hostile pages."""

import random

import pytest

from megagpt.data.corpus.text.inputs.extract import Extractor
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.errors import ConfigError

LIBRARIES = ["trafilatura", "resiliparse"]
WORDS = ["the", "river", "runs", "past", "old", "mills", "and", "small", "towns", "before", "it", "reaches", "a", "sea"]


def page(html: str, source: str = "crawl#1") -> Page:
    return Page("", source, len(html), "https://example.org/", {"date": "2024"}, html.encode())


def article(seed: int, repeated: str = "") -> tuple[str, list[str]]:
    """A page with navigation, advertisements and a footer, and the paragraphs that are its text."""
    words = random.Random(seed)
    texts = [" ".join(words.choices(WORDS, k=40)).capitalize() + "." for _ in range(6)] + [repeated] * bool(repeated)
    menu = "".join(f"<li><a href='/{n}'>Menu entry {n}</a></li>" for n in range(12))
    body = "".join(f"<p>{text}</p>" for text in texts)
    html = f"""<!DOCTYPE html><html><head><title>T{seed}</title><script>var x = "code";</script><style>p {{}}</style>
    </head><body><nav><ul>{menu}</ul></nav><main><article><h1>Heading {seed}</h1>{body}</article></main>
    <footer>Copyright notice. All rights reserved.</footer></body></html>"""
    return html, texts


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_running_text_is_kept_and_what_is_around_it_goes(library):
    html, texts = article(3)
    with Extractor(library) as extractor:
        made = extractor.extract(page(html))
    for text in texts:
        assert text in made.text
    for junk in ("Menu entry", "var x", "Copyright notice"):
        assert junk not in made.text
    assert made.html is None
    assert (made.source, made.url, made.metadata, made.bytes) == (
        "crawl#1",
        "https://example.org/",
        {"date": "2024"},
        len(html),
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_pages_do_not_influence_each_other(library):
    repeated = (
        "This paragraph of many words stands on every page of the site and is the same each time it is shown here."
    )
    pages = [page(article(seed, repeated)[0], f"crawl#{seed}") for seed in range(12)]
    with Extractor(library) as extractor:
        forth = {made.source: made for made in map(extractor.extract, pages)}
        back = {made.source: made for made in map(extractor.extract, reversed(pages))}
    apart = {}
    for half in (pages[::2], pages[1::2]):
        with Extractor(library) as extractor:
            apart |= {made.source: made for made in map(extractor.extract, half)}
    assert forth == back == apart
    assert all(repeated in made.text for made in forth.values())


@pytest.mark.parametrize("library", LIBRARIES)
def test_pages_without_text_are_broken(library):
    with Extractor(library) as extractor:
        for html in ("", "<html></html>", "<html><body><script>only code</script></body></html>"):
            made = extractor.extract(page(html))
            assert isinstance(made, Broken) and made[:3] == ("crawl#1", len(html), "extraction")
        assert extractor.extract(page(article(1)[0])).text


def test_a_page_that_hangs_the_extractor_costs_itself_only():
    hostile = "<html><body>" + "<div><p>words of a page <a href='x'>and links</a></p></div>" * 100_000
    html, texts = article(5)
    with Extractor("trafilatura", seconds=1) as extractor:
        before = extractor.extract(page(html))
        broken = extractor.extract(page(hostile, "hostile"))
        assert broken[:3] == ("hostile", len(hostile), "extraction") and "more than 1 s of CPU time" in broken.reason
        assert extractor.extract(page(html)) == before and texts[0] in before.text


def test_a_page_that_takes_too_much_memory_costs_itself_only():
    hostile = "<html><body>" + "<p>words</p>" * 300_000
    html, _ = article(5)
    with Extractor("trafilatura", seconds=60, memory=32 << 20) as extractor:
        broken = extractor.extract(page(hostile, "hostile"))
        assert broken[:3] == ("hostile", len(hostile), "extraction") and "memory" in broken.reason.lower()
        assert extractor.extract(page(html)).text


def test_pages_that_are_text_pass():
    text = Page("plain", "crawl.wet#1", 5)
    with Extractor() as extractor:
        assert extractor.extract(text) is text
        assert extractor.cpu_seconds == 0


def test_libraries_that_there_are_not():
    with pytest.raises(ConfigError, match="trafilatura and resiliparse"):
        Extractor("beautifulsoup")
