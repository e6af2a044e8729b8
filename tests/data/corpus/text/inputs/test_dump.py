"""MediaWiki dumps: articles in, the rest counted; compressed, cut off, hostile, and larger than memory."""

import bz2
import gzip
import tracemalloc
from xml.sax.saxutils import escape

import pytest

from megagpt.data.corpus.text.inputs.dump import read_dump
from megagpt.data.corpus.text.page import Broken, Page

LIMIT = 1_000_000
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
    <namespaces>
      <namespace key="-2" case="first-letter">Medium</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"


def entry(title: str, text: str, ns: int = 0, redirect: str | None = None, model: str = "wikitext") -> str:
    target = f'<redirect title="{escape(redirect)}" />' if redirect else ""
    return f"""  <page>
    <title>{escape(title)}</title><ns>{ns}</ns><id>1</id>{target}
    <revision><id>2</id><timestamp>2024-05-01T10:00:00Z</timestamp>
      <contributor><username>Someone</username><id>3</id></contributor>
      <comment>a comment</comment><model>{model}</model><format>text/x-wiki</format>
      <text bytes="{len(text.encode())}" xml:space="preserve">{escape(text)}</text><sha1>x</sha1>
    </revision>
  </page>
"""


def read(path, content: str | bytes, limit: int = LIMIT) -> list[Page | Broken]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_dump(str(path), path.name, limit))


def rules(made):
    return [each.rule if isinstance(each, Broken) else None for each in made]


def test_articles_are_pages_and_the_rest_is_named(tmp_path):
    article = "Der '''Fluß''' <ref>x</ref>[[Datei:a.jpg|mini|Bild]] & mehr.[[Kategorie:Flüsse]]"
    dump = HEAD + entry("Fluß (A/B)", article) + entry("Alt", "#REDIRECT [[Neu]]", redirect="Neu")
    dump += entry("Diskussion:Fluß", "Gespräch", ns=1) + entry("Daten", "{}", model="json")
    dump += entry("Leer", " ") + entry("Vorlagen", "{{a}}{{b}}") + TAIL
    made = read(tmp_path / "wiki.xml", dump)
    assert made[0] == Page(
        "Der Fluß & mehr.\n",
        "wiki.xml:Fluß (A/B)",
        len(article.encode()),
        "https://de.wikipedia.org/wiki/Flu%C3%9F_(A/B)",
        {"title": "Fluß (A/B)", "date": "2024-05-01T10:00:00Z"},
    )
    assert rules(made) == [None, "redirect", "namespace", "content model", "empty", "empty"]
    assert made[1].reason == "to Neu" and made[2].reason == "1" and made[3].reason == "json"


def articles(count: int) -> str:
    return "".join(
        entry(f"Article {n}", f"This is article '''{n}'''. " + "".join(f"Words {n * m}. " for m in range(300)))
        for n in range(count)
    )


def multistream(content: str, pieces: int) -> bytes:
    """As Wikipedia's: the head, some articles each, the tail, as separate streams one after the other."""
    data = content.encode()
    step = -(-len(data) // pieces)
    return b"".join(bz2.compress(data[start : start + step]) for start in range(0, len(data), step))


@pytest.mark.parametrize("name", ["a.xml", "a.xml.gz", "a.xml.bz2", "multistream.xml.bz2", "a.xml-p1p50.bz2"])
def test_however_it_is_compressed(tmp_path, name):
    dump = HEAD + articles(20) + TAIL
    content = dump.encode()
    if name.startswith("multi"):
        content = multistream(dump, 7)
    elif name.endswith(("gz", "bz2")):
        content = (gzip if name.endswith("gz") else bz2).compress(content)
    made = read(tmp_path / name, content)
    assert [page.text.split(".")[0] for page in made] == [f"This is article {n}" for n in range(20)]


@pytest.mark.parametrize("name", ["a.xml", "a.xml.gz", "a.xml.bz2"])
def test_a_dump_that_is_cut_off_names_what_is_lost(tmp_path, name):
    dump = (HEAD + articles(20) + TAIL).encode()
    if name == "a.xml":
        cut = dump[: len(dump) * 2 // 3]
    else:
        packed = gzip.compress(dump) if name.endswith("gz") else multistream(dump.decode(), 9)
        cut = packed[: len(packed) * 2 // 3]
    made = read(tmp_path / name, cut)
    *pages, lost = made
    assert 5 < len(pages) < 19
    assert [page.metadata["title"] for page in pages] == [f"Article {n}" for n in range(len(pages))]
    assert lost.rule == "damaged file" and f"after {len(pages)} pages" in lost.reason and "lost" in lost.reason


def test_damage_in_the_midst_names_what_is_lost(tmp_path):
    packed = bytearray(multistream(HEAD + articles(20) + TAIL, 9))
    packed[len(packed) // 2] ^= 0xFF
    made = read(tmp_path / "a.xml.bz2", bytes(packed))
    assert rules(made)[-1] == "damaged file" and rules(made)[:-1] == [None] * (len(made) - 1) and len(made) > 5
    broken = (HEAD + articles(3) + "<page><title>X</wrong>" + articles(2) + TAIL).encode()
    made = read(tmp_path / "b.xml", broken)
    assert rules(made) == [None] * 3 + ["damaged file"] and "mismatched tag" in made[-1].reason
    assert rules(read(tmp_path / "c.xml", "This is no XML")) == ["damaged file"]
    assert rules(read(tmp_path / "d.xml.bz2", b"nor bzip2")) == ["damaged file"]


def test_articles_over_the_limit_cost_no_memory(tmp_path):
    path = tmp_path / "a.xml"
    with path.open("w") as file:
        file.write(HEAD + entry("Before", "Before it."))
        file.write(entry("Long", "LONG").replace("LONG", "words in an article " * 500_000))
        file.write(entry("After", "After it.") + TAIL)
    tracemalloc.start()
    made = list(read_dump(str(path), "a.xml", LIMIT))
    assert tracemalloc.get_traced_memory()[1] < 7 * LIMIT
    tracemalloc.stop()
    assert rules(made) == [None, "too long", None] and made[1].bytes == 10_000_000


def test_memory_does_not_grow_with_the_dump(tmp_path):
    def peak(count: int) -> int:
        path = tmp_path / "a.xml"
        path.write_text(HEAD + articles(count).replace("<ns>0", "<ns>4") + TAIL)
        tracemalloc.start()
        assert sum(1 for _ in read_dump(str(path), "a", LIMIT)) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(1000) < 1.2 * peak(200)


def test_of_several_revisions_the_last_counts(tmp_path):
    page = entry("A", "First.").replace("</revision>", "</revision><revision><text>Second.</text></revision>")
    (made,) = read(tmp_path / "a.xml", HEAD + page + TAIL)
    assert made.text == "Second.\n"


def test_entities_that_expand_are_refused(tmp_path):
    bomb = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]>' + HEAD + entry("A", "x") + TAIL
    (made,) = read(tmp_path / "a.xml", bomb)
    assert made.rule == "damaged file" and "entity" in made.reason


def test_titles_with_any_characters(tmp_path):
    (made,) = read(tmp_path / "a.xml", HEAD + entry('A&B <x> "q" 中', "Text.") + TAIL)
    assert made.metadata["title"] == 'A&B <x> "q" 中'
    assert made.url == "https://de.wikipedia.org/wiki/A%26B_%3Cx%3E_%22q%22_%E4%B8%AD"
