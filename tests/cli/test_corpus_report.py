"""The page about a corpus, from the commands."""

import pytest

from megagpt.errors import ConfigError


@pytest.fixture
def corpus(tmp_path, megagpt):
    """A corpus of one file of source code, and what making it printed."""
    pytest.importorskip("datatrove")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("def double(number):\n    return 2 * number\n")
    (tmp_path / "src/b.txt").write_text("no program")
    folder = tmp_path / "code"
    options = ["--kind", "code", "--languages", "python", "--output", folder]
    return folder, megagpt("data", "corpus", tmp_path / "src", *options)


def test_making_a_corpus_makes_its_page(corpus, tmp_path, megagpt):
    folder, printed = corpus
    page = folder / "report.html"
    assert printed.endswith(f"{page}\n") and "Corpus code" in page.read_text()
    page.unlink()
    assert megagpt("report", folder) == f"{page}\n" and page.exists()
    other = tmp_path / "pages" / "code.html"
    assert megagpt("report", folder, "--output", other) == f"{other}\n" and other.read_bytes() == page.read_bytes()


def test_a_corpus_is_shown_alone(corpus, tmp_path, megagpt):
    with pytest.raises(ConfigError, match=r"code is a corpus: give it alone"):
        megagpt("report", tmp_path / "run", corpus[0])
