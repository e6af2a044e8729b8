"""Project Gutenberg's headers and licences of several decades."""

import pytest

from megagpt.data.corpus.text.inputs.gutenberg import cut_gutenberg

BOOK = "CHAPTER I\n\nIt began in the year *** as all such stories do.\n\nProject Gutenberg is named in it.\n"
NEW = """\ufeffThe Project Gutenberg eBook of The Old Mill

This ebook is for the use of anyone anywhere in the United States.

Title: The Old Mill
        A Story

Author: Jane Doe

Release date: May 1, 2001 [eBook #99]
Language: English

*** START OF THE PROJECT GUTENBERG EBOOK THE OLD MILL ***

Produced by Some People and the Online
Distributed Proofreading Team

{book}
*** END OF THE PROJECT GUTENBERG EBOOK THE OLD MILL ***

Updated editions will replace the previous one. START: FULL LICENSE
"""
WRAPPED = """Title: The Old Mill
Author: Jane Doe
Language: English

***START OF THIS PROJECT GUTENBERG EBOOK THE OLD
MILL, A STORY***

{book}
End of Project Gutenberg's The Old Mill, by Jane Doe

***END OF THIS PROJECT GUTENBERG EBOOK THE OLD MILL***
"""
OLD = """Project Gutenberg Etext of The Old Mill
Title: The Old Mill
Author: Jane Doe
Language: English
**The Legal Small Print**
*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*

{book}
End of the Project Gutenberg Etext of The Old Mill
"""


@pytest.mark.parametrize("form", [NEW, WRAPPED, OLD])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_only_the_book_is_left(form, ends):
    text, about = cut_gutenberg(form.replace("{book}", BOOK).replace("\n", ends))
    assert text.replace("\r\n", "\n").strip() == BOOK.strip()
    assert about["title"] == "The Old Mill" and about["author"] == "Jane Doe" and about["language"] == "English"


def test_books_of_others_are_left_alone():
    for text in (BOOK, "", "Title: X\n" + BOOK, "End of Project Gutenberg" + BOOK):
        assert cut_gutenberg(text) == (text, {})
    late = "x\n" * 40_000 + "*** START OF THE PROJECT GUTENBERG EBOOK X ***\nmore\n"
    assert cut_gutenberg(late) == (late, {})


def test_a_book_without_its_end_is_kept_to_the_end():
    text, _ = cut_gutenberg("*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n" + BOOK * 100)
    assert text == BOOK * 100
