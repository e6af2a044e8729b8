"""What of a conversation fits the context."""

import pytest

from megagpt.data.chat import Message, chat_prompt, grow_for_chat
from megagpt.data.history import History
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    return grow_for_chat(train_tokenizer(["a b c d"], 260))


def test_turns_are_kept_until_the_context_is_full_and_then_leave_in_pairs(tokenizer):
    history = History(tokenizer, window=40, response_room=8, system="be brief")
    said: list[Message] = []
    for number in range(6):
        prompt, left_out = history.ask(f"q{number}")
        said.append(Message("user", f"q{number}"))
        system = Message("system", "be brief")
        assert prompt == chat_prompt(tokenizer, [system, *said[left_out:]])
        assert left_out % 2 == 0
        assert len(prompt) + 8 <= 40
        if left_out:  # no more than needed
            assert len(chat_prompt(tokenizer, [system, *said[left_out - 2 :]])) + 8 > 40
        history.respond(f"a{number}")
        said.append(Message("assistant", f"a{number}"))
    assert left_out > 0


def test_what_cannot_fit_is_refused_and_forgotten(tokenizer):
    history = History(tokenizer, window=20, response_room=8)
    with pytest.raises(DataError, match=r"this takes \d+ tokens .* context has 20"):
        history.ask("x" * 30)
    assert history.turns == []
    prompt, left_out = history.ask("x" * 12)  # less room for the answer, but some
    assert (len(prompt), left_out) == (15, 0)


def test_undo_and_reset(tokenizer):
    history = History(tokenizer, window=99, response_room=8, system="s")
    for text in ("one", "two"):
        history.ask(text)
        history.respond(text.upper())
    history.undo()
    assert history.turns == [Message("user", "one"), Message("assistant", "ONE")]
    history.undo()
    history.undo()
    assert history.turns == []
    history.ask("three")
    history.reset()
    assert (history.turns, history.system) == ([], "s")
