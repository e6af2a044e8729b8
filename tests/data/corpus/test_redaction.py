"""Secrets and addresses are replaced; what only looks like them stays."""

import random
import string
from pathlib import Path

import pytest
from timing import cpu_seconds

from megagpt.data.corpus.redaction import ADDRESSES, EMAILS, PHONES, entropy, redact
from megagpt.data.corpus.redaction import SECRETS as KEYS

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


PERSONAL = [
    ("IP address", "from 8.8.8.8 on"),
    ("IP address", "(193.99.144.80)"),
    ("IP address", "at 8.8.4.4."),
    ("IP address", "to 8.8.8.8:53"),
    ("IP address", "by 2001:4860:4860::8888,"),
    ("IP address", "by 2001:4860:4860:0:0:0:0:8888"),
    ("telephone number", "call (212) 555-0142"),
    ("telephone number", "call 212-555-0142 now"),
    ("telephone number", "call 1-212-555-0142."),
    ("telephone number", "call 212.555.0142"),
    ("telephone number", "call +49 30 901820"),
    ("telephone number", "call +44 (20) 7946 0958,"),
    ("telephone number", "call +33142685300"),
]
GROUPS = (KEYS, EMAILS, ADDRESSES, PHONES)


@pytest.mark.parametrize(("kind", "text"), PERSONAL)
def test_personal_data_is_replaced_on_request(kind, text):
    left, counts = redact(f"{text}\n{text}", GROUPS)
    placeholder = "<IP>" if kind == "IP address" else "<PHONE>"
    assert counts == {kind: 2} and left.count(placeholder) == 2
    assert not any(character.isdigit() for character in left.replace(":53", ""))
    assert redact(left, GROUPS) == (left, {})
    assert redact(text) == (text, {})  # what source code is asked for


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1, 192.168.1.1, 127.0.0.1, 172.16.3.4, 0.0.0.0, 255.255.255.255, 224.0.0.251, 203.0.113.7",
        "version 1.2.3.4.5, 8.8.8.8.8, 300.1.2.3, 8.8.8.888, v8.8.8.8, 8.8.8.8-beta",
        "::1, fe80::1, 2001:db8::1, fd00::1, std::vector, 20:30:40, 2012:10:20, 3abc::x",
        "1,234,567,890; 3.14159265; 2021-12-31; 500 300 2000; 123-456-7890; 111-111-1111; page 212-555",
        "ISBN 978-3-16-148410-0, 4111-1111-1111-1111, 0x212-555-0142, 212-555-01423, +1 2 3, a+123456789",
    ],
)
def test_numbers_that_are_no_personal_data_stay(text):
    assert redact(text, GROUPS) == (text, {})


def test_groups_are_apart():
    text = "jane@" + "corp.com or 8.8.8.8 or 212-555-0142"
    assert redact(text, [EMAILS])[0] == "<EMAIL> or 8.8.8.8 or 212-555-0142"
    assert redact(text, [ADDRESSES])[0] == "jane@" + "corp.com or <IP> or 212-555-0142"
    assert redact(text, [PHONES])[0] == "jane@" + "corp.com or 8.8.8.8 or <PHONE>"
    assert redact(text, []) == (text, {})


@pytest.mark.parametrize("text", ["1." * 100_000, "a:" * 100_000, "+1 " * 100_000, "212-555-" * 50_000, "2" * 300_000])
def test_no_numbers_take_long(text):
    assert cpu_seconds(redact, text, GROUPS) < 2
