"""Addresses are refused by domain, by address and by words; copies of one address have one spelling."""

import pytest

from megagpt.data.corpus.text.limits import Urls
from megagpt.data.corpus.text.rules.urls import UrlRules, domains_of, host_of, load_url_rules
from megagpt.errors import ConfigError


@pytest.fixture
def rules(tmp_path) -> UrlRules:
    lists = {
        "domains": "# bad ones\nBad.example\nworse.co.uk\nsub.fine.org\nböse.de\n10.0.0.1\n\n",
        "urls": "http://good.org/bad/page\n",
        "strict_words": "very-bad\n",
        "hard_words": "awful\n",
        "soft_words": "dull\nboring\ntiring\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
    return UrlRules(Urls("none", **{name: str(tmp_path / name) for name in lists}))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("https://good.org/", None),
        ("https://bad.example/x", "domain"),
        ("https://WWW.BAD.example./x", "domain"),
        ("http://a.b.worse.co.uk:8080/", "domain"),
        ("http://other.co.uk/", None),
        ("http://worse.co.uk.com/", None),
        ("http://fine.org/sub", None),
        ("http://a.sub.fine.org/", "domain"),
        ("http://böse.de/", "domain"),
        ("http://10.0.0.1/", "domain"),
        ("http://110.0.0.1/", None),
        ("https://good.org/bad/page", "address"),
        ("https://good.org/bad/page2", None),
        ("http://good.org/something-VERY.bad-here", "strict word"),
        ("http://good.org/awful/x", "hard word"),
        ("http://good.org/AWFUL", "hard word"),
        ("http://good.org/awfully", None),
        ("http://good.org/dull", None),
        ("http://good.org/dull-and-dull", None),
        ("http://good.org/dull?x=boring", "soft words"),
        ("not an address", "unreadable"),
        ("http://", "unreadable"),
        ("http://[::1", "unreadable"),
        ("http://[2001:db8::1]/x", None),
        ("http://a..b/", None),
        ("http://" + "ä" * 80 + ".de", "unreadable"),
        ("good.org/awful", "hard word"),
    ],
)
def test_refused(rules, url, rule):
    drop = rules(url)
    assert (drop and drop.rule) == rule


def test_the_small_lists_and_datatroves():
    assert UrlRules(Urls())("http://x.org/casino-and-poker").rule == "soft words"
    assert UrlRules(Urls())("http://x.org/poker-rules") is None
    assert UrlRules(Urls("none"))("http://x.org/casino-and-poker") is None
    with pytest.raises(ConfigError, match=r"urls\.domains: .*nowhere cannot be read"):
        UrlRules(Urls(domains="nowhere"))


@pytest.mark.slow
def test_datatroves_lists():
    """4.6 million domains in 8 bytes each."""
    rules = load_url_rules(Urls("datatrove"))
    assert rules is load_url_rules(Urls("datatrove"))
    assert rules("http://www.0-dix.com/page").rule == "domain"
    assert rules("https://en.wikipedia.org/wiki/River") is None


@pytest.mark.parametrize(
    ("host", "domains"),
    [
        ("a.b.example.co.uk", ["example.co.uk", "b.example.co.uk", "a.b.example.co.uk"]),
        ("example.com", ["example.com"]),
        ("localhost", ["localhost"]),
        ("a.b.no-such-suffix", ["b.no-such-suffix", "a.b.no-such-suffix"]),
        ("2001:db8::1", ["2001:db8::1"]),
        ("192.168.0.1", ["192.168.0.1"]),
    ],
)
def test_domains(host, domains):
    assert list(domains_of(host)) == domains


def test_hosts():
    assert host_of("HTTPS://User@Example.COM:443/x") == host_of("example.com") == "example.com"
    assert host_of("http://münchen.de/") == "xn--mnchen-3ya.de"
    assert host_of("mailto:x") is None or host_of("mailto:x") == "mailto"
    assert host_of("") is None
