"""Lists of links with scores: which pages pass, however an address is spelled, and lines that are no links."""

import gzip
import json
import pickle
import random

import pytest

from megagpt.data.corpus.text.inputs.links import load_links, normalise_url
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.errors import DataError


def page(url: str | None) -> Page:
    return Page("text", "crawl#7", 4, url)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "http://a.example/x\t5\nhttps://b.example/y,z\t2\n"),
        ("a.tsv", "url\tscore\nhttp://a.example/x\t5\nhttps://b.example/y,z\t2"),
        ("a.csv", 'url,score\nhttp://a.example/x,5\n"https://b.example/y,z",2\n'),
        ("a.jsonl", '{"url": "http://a.example/x", "score": 5}\n\n{"url": "https://b.example/y,z", "score": 2.0}\n'),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_pages_pass_by_the_score_of_their_url(tmp_path, name, content, zipped):
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(content.encode()) if zipped else content.encode())
    links = pickle.loads(pickle.dumps(load_links([path])))
    assert links.reject(page("http://a.example/x")) is None
    low = links.reject(page("https://b.example/y,z"))
    assert low == Broken("crawl#7", 4, "link score", "2 is less than 3: https://b.example/y,z")
    assert links.reject(page("http://c.example/")).reason == "no link leads to http://c.example/"
    assert links.reject(page(None)).reason == "the record states no URL"
    assert load_links([path], min_score=2).reject(page("https://b.example/y,z")) is None


def test_of_several_links_to_a_page_the_best_counts(tmp_path):
    words = random.Random(0)
    scores: dict[str, float] = {}
    paths = []
    for number in range(3):
        lines = [(f"https://{words.randrange(500)}.example/", words.randrange(-3, 8)) for _ in range(1000)]
        paths.append(tmp_path / f"{number}.jsonl")
        paths[-1].write_text("\n".join(json.dumps({"url": url, "score": score}) for url, score in lines))
        for url, score in lines:
            scores[url] = max(score, scores.get(url, -10))
    links = load_links(paths)
    for number in range(600):
        url = f"https://{number}.example/"
        assert (links.reject(page(url)) is None) == (scores.get(url, -10) >= 3)


def test_spellings_of_one_address_are_equal_and_others_are_not():
    same = [
        "http://www.Example.org/a/b?q=1&utm_source=x#top",
        "https://example.org/a/b/?q=1",
        "HTTPS://example.org:443/a/b?utm_medium=y&q=1",
        "http://user:word@example.org:80/a/b?q=1",
        " example.org./a/b?q=1 ",
    ]
    assert {normalise_url(url) for url in same} == {"example.org/a/b?q=1"}
    others = ["http://example.org/a", "http://example.org/A/b?q=1", "http://example.org:8080/a/b?q=1", "x.org/a/b?q=1"]
    assert len({normalise_url(url) for url in [*others, same[0]]}) == 5
    for odd in ("http://[bad", "http://a:port/", "", "://", "http://münchen.example/ß"):
        normalise_url(odd)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", '{"url": "http://a/", "score": 1}\n{"url": "http://a/"}', 2),
        ("a.jsonl", "http://a/\t5", 1),
        ("a.jsonl", "[1, 2]", 1),
        ("a.tsv", "http://a/\t5\nhttp://b/ 6", 2),
        ("a.tsv", "http://a/\tfive", 1),
        ("a.csv", "url,score\nheader,again", 2),
    ],
)
def test_a_line_that_is_no_link_is_refused_with_its_number(tmp_path, name, content, line):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=f"{name}:{line}: not a URL and its score"):
        load_links([path])


def test_lists_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_links([tmp_path / "none.tsv"])
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(b"http://a.example/\t5\n" * 10_000)[:-30])
    with pytest.raises(DataError, match=r"a\.tsv\.gz"):
        load_links([path])
