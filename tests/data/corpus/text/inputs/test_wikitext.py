"""Running text of wikitext: what a reader reads is kept, and what stands around it goes."""

import json

import pytest

from megagpt.data.corpus.text.inputs.wikitext import converter


@pytest.fixture(scope="module")
def text():
    convert = converter(json.dumps(["File", "Image", "Datei", "Category", "Kategorie"]))
    return lambda source: convert(source.encode())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("'''Bold''', ''slanted'', '''''both''''' and it's", "Bold, slanted, both and it's"),
        ("[[River]]s and a [[River (song)|song]]", "Rivers and a song"),
        ("[http://a.example/ a page], [http://b.example/] and http://c.example/", "a page, and http://c.example/"),
        ("a {{template|{{nested|x}}|y=[[z]]}}b", "a b"),
        ("one<ref>{{cite|x}}</ref>, two<ref name=a /> three<ref name='b'>text</ref>.", "one, two three."),
        ("a<!-- note -->b &amp; c&nbsp;d &mdash; e", "ab & c d — e"),
        ("before\n{|\n! head\n|-\n| cell || [[cell]]\n|}\nafter", "before\n\nafter"),
        ("[[File:a.jpg|thumb|a [[link]] in a caption]]text[[Datei:b.png]][[image:c.gif|left]]", "text"),
        ("text\n[[Category:Rivers]]\n[[Kategorie:Flüsse|R]]\n[[de:Fluss]]\n[[zh-yue:x]]", "text"),
        ("see [[:Category:Rivers]] and [[Star Trek: Voyager]]", "see Category:Rivers and Star Trek: Voyager"),
        ("a\n\n\n\n\nb\n__NOTOC__\nc", "a\n\nb\n\nc"),
        ("'''Rome''' ({{IPA|x}}) and '''Bern''' ({{lang|x}}; in German) lie .", "Rome and Bern (in German) lie."),
        ("<gallery>\na.jpg|x\n</gallery>H<sub>2</sub>O<math>x^2</math> <nowiki>[[raw]]</nowiki>", "H2O [[raw]]"),
        ("one<br />two<blockquote>three</blockquote>", "one\n\ntwo\nthree"),
        ("", ""),
        ("{{only|templates}}", ""),
    ],
)
def test_text_and_what_is_left_out(text, source, expected):
    assert text(source).strip() == expected


def test_headings_and_lists_stay_readable(text):
    source = "Lead.\n== One ==\nText.\n=== Deeper ===\n* a\n** b\n# c\n* {{gone}}\n; Term : meaning\n: set in\n"
    source += "== Two ==\nEnd."
    expected = "Lead.\n\nOne\n\nText.\n\nDeeper\n\n- a\n- b\n- c\n\nTerm: meaning\nset in\n\nTwo\n\nEnd.\n"
    assert text(source) == expected


def test_headings_over_nothing_go(text):
    source = "Lead.\n== Kept ==\n=== Kept too ===\nText.\n== Table ==\n{|\n|a\n|}\n=== Empty ===\n"
    source += "== References ==\n<references/>"
    assert text(source) == "Lead.\n\nKept\n\nKept too\n\nText.\n"


@pytest.mark.parametrize(
    "source", ["[[a", "{{a", "''a", "{|\n|a", "<ref>a", "== a", "[[a|{{b]]}}", "<b", "\x01" * 5, "[http://"]
)
def test_markup_that_does_not_end_is_text_of_some_kind(text, source):
    assert "end of it" in text(f"Start. {source}\n\nThe end of it")


def test_it_is_what_a_person_would_copy_from_the_page(text):
    source = """{{Infobox river|name=Elbe}}
[[File:Elbe.jpg|thumb|The Elbe in [[Dresden]]]]
The '''Elbe''' ({{lang-cs|Labe}}) is one of the major [[river]]s of [[Central Europe]].<ref name="x">{{cite}}</ref> It
rises in the [[Giant Mountains]] before traversing much of [[Bohemia]].

== Course ==
{{main|Course of the Elbe}}
It flows {{convert|1094|km}} past
* [[Dresden]], and
* [[Hamburg|the port]].

== See also ==
* [[List of rivers]]

== References ==
{{reflist}}
[[Category:Rivers]]"""
    words = """
    The Elbe is one of the major rivers of Central Europe. It rises in the Giant Mountains before traversing
    much of Bohemia. Course It flows past - Dresden, and - the port. See also - List of rivers
    """
    assert text(source).split() == words.split()
