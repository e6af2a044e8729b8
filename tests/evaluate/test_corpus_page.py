"""The page about a corpus: its figures add up, a browser draws it, and nothing that was read can speak in it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from megagpt.errors import DataError
from megagpt.evaluate.corpus_page import build_corpus_page, write_corpus_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>console.error('injected')</script><img src=x onerror=\"console.error('injected')\">"

pytest.importorskip("plotly")


def drop(documents: int, size: int, sample: str = "a") -> dict:
    return {"documents": documents, "bytes": size, "samples": [{"source": f"{sample}#1", "reason": f"{sample} why"}]}


@pytest.fixture
def report() -> dict:
    """Of a corpus of text: 1,000 documents of 2 MB, of which 400 of 0.9 MB are kept."""
    return {
        "job": {"inputs": ["crawl.wet.gz"], "kind": "web", "decontaminate": ["evals/lambada.jsonl"]},
        "input": {"documents": 1000, "bytes": 2_000_000},
        "dropped": {
            "fineweb: short lines": drop(50, 100_000),
            "languages: other language": drop(250, 500_000, HOSTILE),
            "languages: unsure language": drop(50, 100_000),
            "record type": drop(100, 100_000),
            "exact duplicate": drop(90, 200_000),
            "near-duplicate": drop(50, 90_000),
            "contamination": drop(10, 10_000),
        },
        "changed": {
            "e-mail address": {"times": 7, "documents": 3, "samples": []},
            "overlap with evaluations": {"times": 12, "documents": 5, "samples": []},
        },
        "near_duplicates": {
            "words": 5,
            "buckets": 14,
            "hashes": 8,
            "verify": 0.8,
            "chance": {},
            "clusters": {"2": 30, "3 to 4": 10},
            "largest": [{"source": "crawl.wet.gz#9", "documents": 3}],
        },
        "corpus": {
            "documents": 400,
            "pieces": 405,
            "source_bytes": 900_000,
            "text_bytes": 850_000,
            "languages": {"en": 300, "de": 100},
        },
        "shards": [],
    }


SECONDS = {
    "filter": {"total": 6.0, "languages": 1.0, "fineweb": 2.0},
    "signatures": {"total": 0.5},
    "cluster": {"total": 0.5},
    "hashes_same_texts": {"total": 1.0},
    "write": {"total": 2.0},
}


class Rows(HTMLParser):
    """The rows of tables: the words of their cells, with the widths and starts of bars; and what else is there."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows, self.tags, self.names, self.text = [], [], [], []
        self.skip = self.inside = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.names += [name for name, _ in attributes]
        self.skip = tag in ("script", "style")
        if tag == "tr":
            self.inside = True
            self.rows.append([])
        if tag == "i" and self.rows:
            found = re.match(r"left:([\d.]+)%;width:([\d.]+)%$", dict(attributes).get("style", ""))
            self.rows[-1].append((float(found[1]), float(found[2])))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "tr"

    def handle_data(self, data):
        if not self.skip:
            self.text.append(data)
            if self.inside:
                self.rows[-1].append(data)

    def row(self, name: str) -> list:
        (found,) = (row[1:] for row in self.rows if row and row[0] == name)
        return found


def test_steps_fall_from_the_input_to_what_is_kept(report):
    page = Rows(build_corpus_page("web", report, {}))
    assert page.row("Input") == [(0, 100), "1,000", "100.00%", "2.000", "100.00%"]
    assert page.row("Reading: records that are no text") == [(90, 10), "100", "10.00%", "0.100", "5.00%"]
    assert page.row("Language") == [(60, 30), "300", "30.00%", "0.600", "30.00%"]
    assert page.row("other language") == ["250", "25.00%", "0.500", "25.00%"]
    assert page.row("FineWeb's rules")[0] == (55, 5)
    assert page.row("Exact duplicates")[0] == (46, 9)
    assert page.row("Near-duplicates")[0] == (41, 5)
    assert page.row("Text of evaluations")[0] == (40, 1)  # what is left after all steps
    assert page.row("Kept") == [(0, 40), "400", "40.00%", "0.900", "45.00%"]
    assert page.row("Overlaps cut out") == ["12, in 5 of the documents that stay"]
    assert page.row("Compared with") == ["lambada.jsonl"]
    assert page.row("e-mail address") == ["7", "3"]


def test_times_are_of_all_cpu_time(report):
    page = Rows(build_corpus_page("web", report, SECONDS).split("Where the time went")[1].split("</table>")[0])
    names = [row[0] for row in page.rows]
    assert names[0] == "Reading, and writing what the rules leave"
    assert page.row(names[0]) == [(0, 30), "30.0%", "3.00 s"]
    assert page.row("FineWeb's rules") == page.row("Writing") == [(0, 20), "20.0%", "2.00 s"]
    for name in ("Language", "Near-duplicates", "Exact duplicates"):
        assert page.row(name) == [(0, 10), "10.0%", "1.00 s"]
    assert "Where the time went" not in build_corpus_page("web", report, {})


def test_charts(report):
    html = build_corpus_page("web", report, SECONDS)
    curve, clusters, languages = json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', html)[1])
    chance = dict(zip(curve["series"][0]["x"], curve["series"][0]["y"], strict=True))
    assert chance[0.8] == pytest.approx(1 - (1 - 0.8**8) ** 14)
    half, verified = (one["x"][0] for one in curve["series"][1:])
    assert 1 - (1 - half**8) ** 14 == pytest.approx(0.5) and verified == 0.8
    assert (clusters["series"][0]["x"], clusters["series"][0]["y"]) == (["2", "3 to 4"], [30, 10])
    assert (languages["series"][0]["x"], languages["series"][0]["y"]) == (["en", "de"], [0.75, 0.25])


def test_a_corpus_of_code_has_a_page_too():
    report = {
        "job": {"inputs": ["src"]},
        "input": {"files": 10, "bytes": 10_000},
        "dropped": {
            "language": {"files": 4, "bytes": 4000, "samples": [{"path": "a.bin", "reason": "no text"}]},
            "near-duplicate": {"files": 1, "bytes": 1000, "samples": []},
        },
        "redacted": {"e-mail address": {"replacements": 2, "files": 1, "samples": []}},
        "corpus": {"documents": 5, "source_bytes": 5000, "text_bytes": 4900, "languages": {"c": 5}, "licences": {}},
        "shards": [],
    }
    page = Rows(build_corpus_page("c", report, {}))
    assert page.row("language") == [(60, 40), "4", "40.00%", "0.004", "40.00%"]
    assert page.row("Kept") == [(0, 50), "5", "50.00%", "0.005", "50.00%"]
    assert page.row("a.bin") == ["no text"]
    assert page.row("e-mail address") == ["2", "1"]


def test_what_was_read_is_only_text(report):
    page = Rows(build_corpus_page(HOSTILE, report, {}))
    assert page.tags.count("script") == 3  # the data, plotly.js, the page's own
    assert "img" not in page.tags and not [name for name in page.names if name == "src" or name.startswith("on")]
    assert f"{HOSTILE} why" in page.text and f"Corpus {HOSTILE}" in page.text


def test_page_of_a_folder(report, tmp_path):
    with pytest.raises(DataError, match=r"no report\.json"):
        write_corpus_page(tmp_path)
    (tmp_path / "report.json").write_text('{"loss": 1}')
    with pytest.raises(DataError, match="not the report of a corpus"):
        write_corpus_page(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert "Where the time went" not in write_corpus_page(tmp_path).read_text()
    (tmp_path / "timing.json").write_text(json.dumps(SECONDS))
    other = tmp_path / "new" / "page.html"
    assert write_corpus_page(tmp_path, other) == other and "Where the time went" in other.read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_it(report, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(build_corpus_page(f"{HOSTILE}", report, SECONDS))
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [CHROMIUM, *options.split(), f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    assert 'data-drawn="yes"' in done.stdout
    assert done.stdout.count('class="main-svg"') >= 3  # one chart each, at least
    assert "CONSOLE" not in done.stderr
