"""Chat templates: the tokens of transformers' apply_chat_template, what of them is learnt, hostile texts, refusals."""

import json
from datetime import datetime

import pytest
from transformers import PreTrainedTokenizerFast

from megagpt.config.schema import Config, DataConfig, ModelConfig
from megagpt.data import chat_template
from megagpt.data.chat import Message, chat_prompt, encode_chat, grow_for_chat, template_of, truncate_to_context
from megagpt.data.history import History
from megagpt.data.loader import load_tokenizer
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError
from tests.data.chat_templates import CHATML, DATED, FAMILIES, THINKING, conversations
from tests.data.tokenizer_kinds import save


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    kind, template = FAMILIES[request.param]
    folder = save(kind, tmp_path_factory.mktemp("chat") / request.param, template)
    return request.param, Tokenizer.load(folder / "tokenizer.json"), PreTrainedTokenizerFast.from_pretrained(folder)


def messages(turns) -> list[Message]:
    return [Message(**turn) for turn in turns]


def test_tokens_are_those_of_transformers(family):
    name, ours, theirs = family
    for turns in conversations(system=name != "gemma"):
        whole = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
        example = encode_chat(ours, messages(turns))
        assert example.tokens.tolist() == whole[: len(example.tokens)]
        assert example.tokens[-1] in ours.end_ids
        asked = theirs.apply_chat_template(turns[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
        assert chat_prompt(ours, messages(turns[:-1])) == asked
        assert example.tokens[: len(asked)].tolist() == asked or name in (
            "phi",
            "chatml",
            "thinking",
            "marked",
            "llama3",
        )
        assert template_of(ours).render(turns) == theirs.apply_chat_template(turns, tokenize=False)


def test_answers_and_their_ends_are_learnt(family):
    name, ours, _ = family
    for turns in conversations(system=name != "gemma"):
        example = encode_chat(ours, messages(turns))
        learnt, current = [], []
        for token, trained in zip(example.tokens.tolist(), example.trained.tolist(), strict=True):
            current += [token] if trained else []
            if trained and token in ours.end_ids:
                learnt.append(ours.decode(current))
                current = []
        assert not current
        said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        empty = "<think>\n\n</think>\n\n"
        for text, wanted in zip(learnt, said, strict=True):
            assert text.removeprefix(empty).replace("▁", " ").strip() == wanted.replace("▁", " ").strip()
        assert (empty in learnt[-1]) == (name == "thinking")


def test_turns_that_are_not_to_be_learnt_are_not(family):
    _, ours, _ = family
    turns = messages(conversations(system=False)[2])
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3
    unlearnt = [turns[0], Message("assistant", turns[1].content, False), *turns[2:]]
    all_learnt, some = encode_chat(ours, turns), encode_chat(ours, unlearnt)
    assert all_learnt.tokens.tolist() == some.tokens.tolist()
    last = len(chat_prompt(ours, turns[:2]))
    assert not some.trained[: last - 8].any()
    assert (some.trained[last:] == all_learnt.trained[last:]).all()
    short = truncate_to_context(ours, turns, len(all_learnt.tokens) - 1)
    assert short.tokens.tolist() == encode_chat(ours, turns[:4]).tokens.tolist()


def test_special_tokens_that_people_write_are_text(family):
    _, ours, _ = family
    for token, index in ours.special_ids.items():
        turns = [Message("user", f"say {token}!"), Message("assistant", f"{token} it is {token}x")]
        plain = [Message("user", "say !"), Message("assistant", "it is")]
        written, without = encode_chat(ours, turns), encode_chat(ours, plain)
        assert (written.tokens == index).sum() == (without.tokens == index).sum(), token
        assert f"{token} it is {token}x" in ours.decode(written.tokens[written.trained].tolist())
        assert f"say {token}!" in ours.decode(chat_prompt(ours, turns[:1]))


def test_special_tokens_in_others_are_text(tmp_path):
    names = ("<a>", "<<a>", "<a><", "<b>")
    ours = tokenizer_with(CHATML, tmp_path).with_special_tokens(names)
    asked = chat_prompt(ours, [Message("user", "x <<a> <a><b> y")])
    assert not {ours.special_ids[name] for name in names} & set(asked)
    assert "x <<a> <a><b> y" in ours.decode(asked)


def test_special_tokens_of_one_character_are_text(tmp_path):
    template = "{% for m in messages %}{{ '☃' + m.role + '<a' + m.content + '✂' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '☃assistant<a' }}{% endif %}"
    ours = tokenizer_with(template, tmp_path).with_special_tokens(["☃", "✂", "→", "<a→"])
    ours.companions.texts["generation_config.json"] = json.dumps({"eos_token_id": ours.special_ids["✂"]})
    example = encode_chat(ours, [Message("user", "☃1→ ✂"), Message("assistant", "→2 ☃✂☃ 3✂")])
    tokens = example.tokens.tolist()
    assert [tokens.count(ours.special_ids[name]) for name in ("☃", "✂", "→", "<a→")] == [2, 2, 0, 0]
    assert "<a☃1→ ✂" in ours.decode(tokens)
    assert ours.decode(example.tokens[example.trained].tolist()) == "→2 ☃✂☃ 3✂"
    assert example.trained[-1] and tokens[-1] == ours.special_ids["✂"]


def test_conversations_go_on(family):
    _, ours, _ = family
    history = History(ours, window=400, response_room=20)
    prompt, left_out = history.ask("What is the cat?")
    assert (prompt, left_out) == (chat_prompt(ours, [Message("user", "What is the cat?")]), 0)
    history.respond("it sat")
    turns = [Message("user", "What is the cat?"), Message("assistant", "it sat"), Message("user", "why?")]
    assert history.ask("why?") == (chat_prompt(ours, turns), 0)


def tokenizer_with(template, folder, kind="qwen") -> Tokenizer:
    return Tokenizer.load(save(kind, folder, template) / "tokenizer.json")


def test_functions_of_templates_are_those_of_transformers(tmp_path):
    ours = tokenizer_with(DATED, tmp_path)
    turns = [{"role": "user", "content": '<é> & "q"'}]
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert template_of(ours).render(turns) == theirs.apply_chat_template(turns, tokenize=False)


def test_training_has_its_own_date_and_generation_the_day_s(tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6, 7, 8, 9, tzinfo=tz)

    path = tmp_path / "tokenizer.json"
    tokenizer_with("{{ strftime_now('%d %B %Y %H:%M:%S') + messages[0].content }}", tmp_path)
    talk = [Message("user", "!")]
    model = ModelConfig(vocab_size=Tokenizer.load(path).vocab_size)
    written = {}
    for date in ("2024-07-26", "2025-01-02"):
        monkeypatch.setattr(chat_template, "datetime", Clock if date == "2025-01-02" else datetime)
        for chosen in ("2024-07-26", "2025-01-02"):
            ours = load_tokenizer(Config(model=model, data=DataConfig(tokenizer=str(path), chat_date=chosen)))
            written.setdefault(chosen, set()).add(ours.decode(chat_prompt(ours, talk)))
    assert written == {"2024-07-26": {"26 July 2024 00:00:00!"}, "2025-01-02": {"02 January 2025 00:00:00!"}}
    served = Tokenizer.load(path)
    assert served.decode(chat_prompt(served, talk)) == "06 May 2031 07:08:09!"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for message in messages %}", "cannot be read: Unexpected end of template"),
        ("{% break %}", "cannot be read: 'break' outside loop"),
        ("{{ 5 | dictsort }}", "refuses this conversation: 'int' object has no attribute 'items'"),
        ("{{ raise_exception('tools are needed') }}", "refuses this conversation: tools are needed"),
        ("{{ tools | length }}", "refuses this conversation: object of type 'NoneType'"),
        ("{{ messages.append(1) }}", "refuses this conversation: .*not safely callable|is unsafe|safe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses this conversation: access to attribute"),
        ("{{ messages[0].content + messages[1].content }}", "refuses this conversation: list object has no element 1"),
        (CHATML.replace("'<|im_end|>'", "'</turn>'"), "does not end turn 2 with a token that ends texts"),
        (CHATML.replace("message.content", "message.content + message.content"), "turn 2 the assistant writes"),
        (THINKING.replace("assistant\\n'", "assistant\\n<reason>'"), "does not begin with the prompt"),
    ],
)
def test_templates_that_do_not_serve_are_refused_with_the_reason(tmp_path, template, message):
    with pytest.raises(DataError, match=message):
        encode_chat(tokenizer_with(template, tmp_path), [Message("user", "a"), Message("assistant", "b")])


def test_templates_by_name(tmp_path):
    several = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": CHATML}]
    one = tokenizer_with(several, tmp_path / "one")
    assert chat_prompt(one, [Message("user", "a")]) == chat_prompt(
        tokenizer_with(CHATML, tmp_path / "two"), [Message("user", "a")]
    )
    with pytest.raises(DataError, match="chat templates tool_use, rag: call the one to use default"):
        template_of(tokenizer_with([several[0], several[0] | {"name": "rag"}], tmp_path / "three"))
    with pytest.raises(DataError, match="neither a text nor texts by name"):
        template_of(tokenizer_with(["x"], tmp_path / "four"))
    with pytest.raises(DataError, match="neither a text nor texts by name"):
        template_of(tokenizer_with([{"name": [1], "template": "x"}], tmp_path / "five"))
    (tmp_path / "two/chat_template.jinja").write_text("{{ 'of the file' }}")
    found = Tokenizer.load(tmp_path / "two/tokenizer.json")
    assert found.decode(chat_prompt(found, [Message("user", "a")])) == "of the file"


def test_our_roles_replace_a_template(tmp_path):
    grown = grow_for_chat(tokenizer_with(CHATML, tmp_path))
    assert template_of(grown) is None
    assert encode_chat(grown, [Message("user", "a")]).tokens[-1] == grown.end_of_text_id
    assert "chat_template" not in json.loads(grown.companions.texts["tokenizer_config.json"])
    mistral = grow_for_chat(tokenizer_with(None, tmp_path / "bos", "mistral"))
    assert encode_chat(mistral, [Message("user", "a")]).tokens[0] == mistral.bos_id
