"""Text that arrives in pieces is the same text, in whole characters, cut before the first stop string."""

from hypothesis import given
from hypothesis import strategies as st

from megagpt.model.text_stream import TextStream

LETTERS = "ab\né中🎉"


def feed(stream: TextStream, tokens: list[bytes]) -> list[str]:
    pieces = []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.stopped:
            return pieces
    return [*pieces, stream.finish()]


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    tokens = []
    for size in sizes:
        tokens.append(data[:size])
        data = data[size:]
    return [*tokens, data]


@given(
    text=st.text(LETTERS, max_size=40),
    stop=st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(0, 5), max_size=60),
)
def test_text_ends_before_the_first_stop_string(text, stop, sizes):
    tokens = cut(text.encode(), sizes)
    expected, so_far = text, b""
    for token in tokens:
        so_far += token
        found = [so_far.index(item.encode()) for item in stop if item.encode() in so_far]
        if found:
            expected = so_far[: min(found)].decode()
            break
    stream = TextStream(stop)
    pieces = feed(stream, tokens)
    assert "".join(pieces) == expected
    assert stream.stopped == any(item in text for item in stop)
    assert "\ufffd" not in "".join(pieces)


@given(data=st.binary(max_size=30), sizes=st.lists(st.integers(0, 3), max_size=30))
def test_any_bytes_give_the_text_that_decoding_them_at_once_gives(data, sizes):
    assert "".join(feed(TextStream(), cut(data, sizes))) == data.decode(errors="replace")


def test_text_comes_as_soon_as_it_is_settled():
    stream = TextStream(["stop"])
    assert [stream.add(item) for item in (b"go", b" s", b"to", b"re", b"\xe4\xb8", b"\xad s", b"top!")] == [
        "go",
        " ",
        "",
        "store",
        "",
        "中 ",
        "",
    ]
    assert stream.stopped
