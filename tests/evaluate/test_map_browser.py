"""The page of a map in a browser: it draws, and answers clicks and searches."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megagpt.evaluate.map_page import build_map
from tests.evaluate.test_index import make_index, random_vectors

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"


def draw(page: Path) -> tuple[str, list[str]]:
    """The page's elements after the browser has drawn it, and what it wrote to its console."""
    words = [*OPTIONS.split(), "--disable-component-update", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    command = [CHROMIUM, *words, f"--user-data-dir={page.with_suffix('.profile')}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_chromium_draws_the_map_and_answers(tmp_path):
    index = make_index(tmp_path / "index", random_vectors(40))
    page = tmp_path / "page.html"
    page.write_text(build_map(index, groups=3))
    dom, console = draw(page)
    assert not console
    assert 'data-drawn="40"' in dom
    assert dom.count('class="point plotly-customdata"') == 40

    # The same page with someone searching, clicking on a central text and hiding its group; the policy would forbid it.
    clicks = """const search = document.getElementById("search"); search.value = "NUMBER 1";
    search.dispatchEvent(new Event("input")); document.title = document.getElementById("matches").textContent;
    document.querySelector("[data-point]").click(); document.querySelector(".chip").click();"""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    clicked = tmp_path / "clicked.html"
    clicked.write_text(html.replace("</body>", f"<script>{clicks}</script></body>"))
    dom, console = draw(clicked)
    assert not console
    assert "<title>11 found</title>" in dom  # 1 and 10 to 19
    assert dom.count("Most similar, by cosine") == 2  # in the panel, and in the script
    hidden = int(re.search(r'aria-pressed="false"><i[^>]*></i>[^<]*<small>(\d+)', dom)[1])
    assert dom.count('class="point plotly-customdata"') == 40 - hidden
    assert dom.count('class="point"') == 1 + 8  # rings around the chosen one and its neighbours
