"""The files of the page: what they may not contain."""

from importlib import resources


def test_files_set_no_html_and_name_no_other_place():
    for file in (resources.files("megagpt.serve") / "page").iterdir():
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, file.name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", " onclick="):
            assert word not in text, (file.name, word)
        addresses = text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in addresses, file.name
