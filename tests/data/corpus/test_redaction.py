"""Secrets and addresses are replaced; what only looks like them stays."""

import random
import string
from pathlib import Path

import pytest
from timing import cpu_seconds

from megagpt.data.corpus.redaction import entropy, redact

DICE = random.Random(0)


def key(length: int, letters: str = string.ascii_letters + string.digits) -> str:
    """A made-up key, so that this file itself holds none."""
    return "a1" + "".join(DICE.choices(letters, k=length - 2))


UPPER = string.ascii_uppercase + "234567"
SECRETS = [
    ("AWS access key", "AKIA" + key(16, UPPER).upper().replace("1", "2"), "KEY"),
    ("AWS secret key", f'aws_secret_access_key = "{key(40)}"', "KEY"),
    ("GitHub token", "ghp_" + key(36), "KEY"),
    ("GitHub token", "github_pat_" + key(60), "KEY"),
    ("GitLab token", "glpat-" + key(20), "KEY"),
    ("Slack token", "xoxb-" + key(24), "KEY"),
    ("Google key", "AIza" + key(35), "KEY"),
    ("Stripe key", "sk_" + "live_" + key(24), "KEY"),
    ("API key", "sk-" + key(48), "KEY"),
    ("API key", "hf_" + key(34), "KEY"),
    ("JSON web token", f"eyJ{key(20)}.eyJ{key(40)}.{key(43)}", "KEY"),
    ("private key", f"-----BEGIN RSA PRIVATE KEY-----\n{key(300)}\n-----END RSA PRIVATE KEY-----", "KEY"),
    ("private key", f"-----BEGIN OPENSSH PRIVATE KEY-----\n{key(300)}\n-----END OPENSSH PRIVATE KEY-----", "KEY"),
    ("password in a URL", "url = 'postgres://admin:" + "hunter2x@db.internal:5432/x'", "PASSWORD"),
    ("quoted secret", f'password = "{key(24)}"', "KEY"),
    ("quoted secret", f"'api-key': '{key(32)}'", "KEY"),
    ("e-mail address", "Jane Doe <jane.doe+x@" + "mail.corp.com>", "EMAIL"),
    ("e-mail address", "__author__ = 'joe@" + "uni.ac.uk'", "EMAIL"),
]


@pytest.mark.parametrize(("kind", "secret", "placeholder"), SECRETS)
def test_replaced(kind, secret, placeholder):
    text, counts = redact(f"first = 1\n{secret}\nlast = 2\n")
    assert counts == {kind: 1} and f"<{placeholder}>" in text
    assert text.startswith("first = 1\n") and text.endswith("last = 2\n")
    assert redact(text) == (text, {})


@pytest.mark.parametrize(
    "text",
    [
        "jane@example.com, root@localhost, a@sub.example.org",
        "git clone git@github.com:owner/name.git",
        "@decorator\ndef f(): return a@b.T + self.w@x.data",
        'password = "correct horse battery"',
        'password = "your_password_here"',
        'token = os.environ["GITHUB_TOKEN_FOR_RELEASES"]',
        'secret_name = "production-database-secret"',
        "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----",
        "http://host:8080/path@version",
        "https://user:password@host/path",
        "between '-----BEGIN RSA PRIVATE KEY-----' and\\n '-----END RSA PRIVATE KEY-----' there is base64, as ever",
        "f'{scheme}://{user}:{password}@{host}'",
        "sk-learn is not a key, task-" + "a" * 40,
        "sha256 = '" + "0123456789abcdef" * 4 + "'",
    ],
)
def test_kept(text):
    assert redact(text) == (text, {})


def test_every_one_is_counted():
    text, counts = redact("a.b@" + "c.com d@" + "e.org and " + "ghp_" + key(36))
    assert counts == {"e-mail address": 2, "GitHub token": 1} and text == "<EMAIL> <EMAIL> and <KEY>"


def test_entropy_is_shannons():
    assert entropy("aaaa") == 0 and entropy("abcd") == 2 and entropy("aabb") == 1


@pytest.mark.parametrize(
    "piece",
    [
        "a.",
        "a@",
        "-----BEGIN PRIVATE KEY-----\n",
        "://a:",
        "password='",
        "='",
        "aws ",
        "eyJ",
        " sk-",
        "= ",
        "@" + "a" * 60,
    ],
)
def test_hostile_text_takes_no_more_than_its_share_of_time(piece):
    hostile, ordinary = piece * (200_000 // len(piece)) + "@", Path(__file__).read_text()
    ordinary *= 200_000 // len(ordinary)
    assert cpu_seconds(redact, hostile) < 100 * cpu_seconds(redact, ordinary)
