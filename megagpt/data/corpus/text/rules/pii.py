"""Replace secrets and personal data; drop documents with much personal data (Dolma, arXiv 2402.00159)."""

from collections import Counter

from megagpt.data.corpus.redaction import ADDRESSES, EMAILS, PHONES, SECRETS, redact
from megagpt.data.corpus.text.limits import Pii
from megagpt.data.corpus.text.rules.verdict import Drop, Edit

_PERSONAL = ("e-mail address", "IP address", "telephone number")


def pii(text: str, limits: Pii) -> Edit:
    """The text with placeholders, the number of replacements by kind, and a drop if there are too many."""
    wanted = {SECRETS: limits.secrets, EMAILS: limits.emails, ADDRESSES: limits.addresses, PHONES: limits.phones}
    text, counts = redact(text, [group for group, is_wanted in wanted.items() if is_wanted])
    spans = sum(counts[kind] for kind in _PERSONAL)
    much = limits.max_spans is not None and spans > limits.max_spans
    return Edit(text, Counter(counts), Drop("personal data", f"{spans} spans") if much else None)
