"""A browser with the page open, and the server that it talks to."""

from collections.abc import Iterator

import pytest

from tests.serve.page.browser import CHROMIUM, Browser, Page
from tests.serve.page.server import PageServer


@pytest.fixture(scope="session")
def running_server() -> Iterator[PageServer]:
    server = PageServer()
    yield server
    server.close()


@pytest.fixture
def server(running_server) -> PageServer:
    """The server, with everything as usual."""
    running_server.reset()
    return running_server


@pytest.fixture(scope="session")
def tab(tmp_path_factory, running_server) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield Page(browser, running_server.url)
    browser.close()


@pytest.fixture
def page(tab, server) -> Iterator[Page]:
    """The page as on a first visit. At the end its console is empty, and it has asked nobody but its own server."""
    tab.visit()
    yield tab
    assert not tab.complaints()
    assert all(url.startswith((server.url, "data:")) for url in tab.requested())
