"""Chat templates that would not end, or would fill the memory, are stopped; others go on."""

import json
import os
import threading

import pytest

from megagpt import cli
from megagpt.checkpoint.convert.convert import convert
from megagpt.data import chat_template
from megagpt.data.chat import Message, encode_chat, truncate_to_context
from megagpt.data.chat_template import ChatTemplate, TooMuchError
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import CheckpointError, DataError
from tests.checkpoint.convert.test_tokenizers import downloaded
from tests.data.chat_templates import CHATML
from tests.data.tokenizer_kinds import save

ASKED = [{"role": "user", "content": "a"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
TIME, MEMORY = "takes more than 0.5 s of CPU time", "needs more than 256 MiB of memory"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Templates have half a second, in a process of this test's own."""
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    chat_template._process.cache_clear()
    yield
    chat_template._process.cache_clear()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, TIME),
        (DOUBLING, f"{MEMORY}|{TIME}"),  # whichever comes first on this machine
        ("{{ 'a' * 10**10 }}", MEMORY),
        ("{{ 'a' | center(10**10) }}", MEMORY),
        ("{{ '%9999999999d' % 1 }}", MEMORY),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "writes more than 1,048,656 characters"),
        ("{{ range(10**6) | list }}", "refuses this conversation: Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses this conversation: maximum recursion depth"),
        ("{{" + "(" * 5000, "cannot be read: maximum recursion depth"),
        ("a" * 300_000, "cannot be read: it has 300,000 characters"),
    ],
)
def test_templates_without_end_are_stopped(template, message):
    with pytest.raises(DataError, match=message):
        ChatTemplate(template, {}).render(ASKED)
    assert ChatTemplate("{{ messages[0].content }}", {}).render(ASKED) == "a"


def test_a_person_s_words_cannot_hang_a_thread():
    template = ChatTemplate("{% if 'now' in messages[0].content %}" + ENDLESS + "{% endif %}done", {})
    found = {}

    def ask(words: str) -> None:
        try:
            found[words] = template.render([{"role": "user", "content": words}])
        except TooMuchError as error:
            found[words] = str(error)

    threads = [threading.Thread(target=ask, args=(words,)) for words in ("now", "a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert found == {"now": f"the model's chat template {TIME}", "a": "done", "b": "done"}


def test_long_conversations_may_be_written_at_length():
    text = "word " * 300_000
    assert ChatTemplate("{{ messages[0].content * 3 }}", {}).render([{"role": "user", "content": text}]) == text * 3


def test_a_forked_process_has_a_process_of_its_own():
    template = ChatTemplate("{{ messages[0].content }}", {})
    pid = os.fork()
    if pid == 0:
        os._exit(template.render([{"role": "user", "content": "child"}]) != "child")
    assert template.render(ASKED) == "a"
    assert os.waitpid(pid, 0)[1] == 0


def test_conversions_refuse_them(tmp_path):
    for number, template in enumerate((ENDLESS, "{% if messages | length > 9 %}" + ENDLESS + "{% endif %}" + CHATML)):
        theirs = downloaded("qwen", tmp_path / str(number), template)
        with pytest.raises(CheckpointError, match=f"{theirs}: the model's chat template {TIME}. Mend the template"):
            convert(theirs, tmp_path / "run", "megagpt", prove=False)
    assert not (tmp_path / "run").exists()


def test_tokenizers_with_them_are_not_extended(tmp_path):
    old, new = tmp_path / "old/tokenizer.json", tmp_path / "new.json"
    old.parent.mkdir()
    train_tokenizer(["the cat sat on the mat"], 280).save(old)
    (old.parent / "tokenizer_config.json").write_text(json.dumps({"chat_template": DOUBLING}))
    with pytest.raises(DataError, match=f"{old}: the model's chat template {MEMORY}. Mend the template, or remove it"):
        cli.run(["data", "tokenizer", "--extend", str(old), "--output", str(new)])
    assert not new.exists()


def test_each_beginning_is_rendered_once(tmp_path, monkeypatch):
    ours = Tokenizer.load(save("qwen", tmp_path, CHATML) / "tokenizer.json")
    talk = [Message(("user", "assistant")[place % 2], "the cat sat on the mat") for place in range(12)]
    wanted = encode_chat(ours, talk[:4])
    rendered, real = [], ChatTemplate.render_all

    def counting(self, conversations):
        rendered.extend((str(turns), asked) for turns, asked in conversations)
        return real(self, conversations)

    monkeypatch.setattr(ChatTemplate, "render_all", counting)
    found = truncate_to_context(ours, talk, len(wanted.tokens))
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert len(rendered) == len(set(rendered))
    rendered.clear()
    encode_chat(ours, talk)
    assert len(rendered) == len(set(rendered)) == 1 + 2 * 6
