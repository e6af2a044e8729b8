"""The site of the documentation: it is built without a warning, whole, linked, and loads nothing from elsewhere."""

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import api_pages
import build_docs
import pytest

ROOT = Path(__file__).parents[2]
NEEDED = [name for name in ("sphinx", "myst_parser", "furo") if importlib.util.find_spec(name) is None]
needs_sphinx = pytest.mark.skipif(bool(NEEDED), reason=f"{NEEDED} is missing: pip install 'megagpt[docs]'")


class Page(HTMLParser):
    """Anchors of a page, its links, and what a browser loads with it."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag == "link" and "canonical" not in attributes.get("rel", ""):
            self.loaded.append(attributes.get("href") or "")
        self.loaded += [attributes[name] for name in ("src", "srcset", "poster", "data") if attributes.get(name)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(["megagpt.train"], id="one package"),
        pytest.param([], id="whole", marks=pytest.mark.thorough),
    ],
)
def packages(request) -> list[str]:
    """Packages whose API is in the site; none for all of them."""
    return request.param


@pytest.fixture(scope="module")
def site(tmp_path_factory, packages) -> Path:
    output = tmp_path_factory.mktemp("docs")
    command = [sys.executable, ROOT / "tools/build_docs.py", "--output", output]
    command += [word for package in packages for word in ("--package", package)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=output, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    return output / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


@pytest.mark.slow
@needs_sphinx
def test_every_page_is_there_and_in_the_navigation(site, pages, packages):
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    written |= {Path("CONTRIBUTING.html"), Path("CHANGELOG.html")}
    written |= {Path(f"api/{package}.html") for package in packages or api_pages.pages()}
    assert written <= {path.relative_to(site) for path in pages}
    linked = {urlsplit(link).path for link in pages[site / "index.html"].links}
    assert {page.as_posix() for page in written} - {"index.html"} <= linked


@pytest.mark.slow
@needs_sphinx
def test_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or link == "#":
                continue
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and target in pages and unquote(parts.fragment) not in known):
                broken.append(f"{path.name}: {link}")
    assert not broken


@pytest.mark.slow
@needs_sphinx
def test_nothing_is_loaded_from_elsewhere(site, pages):
    outside = re.compile(r"\s*(https?:)?//")
    assert not {f"{path.name}: {one}" for path, page in pages.items() for one in page.loaded if outside.match(one)}
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), style


@pytest.mark.slow
@needs_sphinx
def test_search_knows_pages_and_the_api(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for name in ("megagpt.train.trainer", "TrainState", "Troubleshooting", "benchmarks/layouts"):
        assert name in index


@pytest.mark.slow
@needs_sphinx
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(ROOT / "docs/conf.py", source)
    (source / "static").mkdir()
    (source / "static/site.css").touch()
    page = source / "index.md"
    for text, code in (("# One\n\n[two](#one)\n", 0), ("# One\n\n[two](two.md)\n", 1), ("# One\n\n[two](#two)\n", 1)):
        page.write_text(text)
        assert build_docs.run_sphinx(source, tmp_path / "html", tmp_path / "doctrees", "1") == code, text


def test_navigation_follows_the_lists_of_links():
    text = "# Home\n\nText.\n\n## Start\n\n- [One](one.md): first\n- [Two](sub/two.md)\n\n## More\n\nNo list.\n"
    contents = "```{toctree}\n:hidden:\n:caption: Start\n\none\nsub/two\n```\n"
    found = build_docs.with_navigation(text)
    assert found.count("{toctree}") == 1
    assert contents in found
    assert found.replace(contents, "").split() == text.split()


MODULE = '''"""What <b> and *stars* mean: [B, S]."""
from megagpt.errors import MegaGPTError

LIMIT = 3
"""Most of them."""
_HIDDEN = 4

class Box(Base):
    """A box of `[a]`."""

    size: int = 2
    """Its size."""

    def __init__(self, size: int): ...

    @property
    def empty(self) -> bool:
        """Whether nothing is in."""

    @classmethod
    def of(cls, other: "Box", *, error: MegaGPTError | None = None) -> int:
        """Another."""

    def _inner(self): ...
'''


def test_page_of_a_package(tmp_path):
    module = tmp_path / "box.py"
    module.write_text(MODULE)
    text = api_pages.page("megagpt.boxes", {"megagpt.boxes.box": module})
    lines = [line for line in text.splitlines() if line]
    assert lines[:5] == [
        "# megagpt.boxes",
        "## box",
        "```{py:module} megagpt.boxes.box",
        "```",
        r"What \<b> and \*stars\* mean: \[B, S\].",
    ]
    assert [line.lstrip("`") for line in lines if "{py:" in line][1:] == [
        "{py:data} LIMIT",
        "{py:class} Box(size: int)",
        "{py:attribute} size",
        "{py:property} empty",
        "{py:method} of(other: 'Box', *, error: megagpt.errors.MegaGPTError | None=None) -> int",
    ]
    assert api_pages.home("megagpt.config.schema", "ModelConfig") == "megagpt.config.architecture.ModelConfig"
    assert ":classmethod:" in lines
    assert "A box of `[a]`." in lines
    assert "idden" not in text
    assert "_inner" not in text
