"""Licences: headers, licence texts, expressions against an allow-list."""

import pytest

from megagpt.data.corpus.code.licences import (
    UNKNOWN,
    combine,
    doubtful,
    expand,
    header,
    is_allowed,
    is_licence_file,
    recognise,
)

GRANT = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software"
NOTICE = "The above copyright notice and this permission\nnotice shall be included in all copies."
FORMS = "Redistribution and use in source and binary forms, with or without modification, are permitted\n"
BINARY = "2. Redistributions in binary form must reproduce the above copyright notice\n"
FEE = "Permission to use, copy, and/or distribute this software for any purpose\nwith or without fee is hereby granted"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("# SPDX-License-Identifier: MIT", "MIT"),
        ("#!/usr/bin/python\n# SPDX-License-Identifier: Apache-2.0\nx", "Apache-2.0"),
        ("/* SPDX-License-Identifier: GPL-2.0-only */", "GPL-2.0-only"),
        ("// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause\r\n", None),
        ("<!-- SPDX-License-Identifier:  MIT  -->", "MIT"),
        ("# SPDX-License-Identifier: MIT AND", None),
        ("# SPDX-License-Identifier: see the file beside", None),
        ('pattern = "SPDX-License-Identifier: [^\\n]+"', None),
        ("x" * 6000 + "\n# SPDX-License-Identifier: MIT", None),
        ("x = 1", None),
    ],
)
def test_header(text, licence):
    if "Linux-syscall-note" in text:
        licence = "(GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause"
    assert header(text) == licence


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (f"MIT License\n\n{GRANT}\n{NOTICE}", "MIT"),
        (f"MIT No Attribution\n\n{GRANT}", "MIT-0"),
        (f"{GRANT}, but only on Sundays", UNKNOWN),
        (f"{FORMS}{BINARY}", "BSD-2-Clause"),
        (f"{FORMS}{BINARY}3. Neither the name may be used to endorse or promote products", "BSD-3-Clause"),
        (f"{FEE}, provided that the above copyright notice", "ISC"),
        (f"{FEE}.", "0BSD"),
        ("  Apache License\n     Version 2.0, January 2004\n", "Apache-2.0"),
        ("GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991\n use the GNU Lesser General Public License", "GPL-2.0"),
        ("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n the GNU Affero General Public License", "GPL-3.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n the GNU General Public License", "LGPL-3.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007", "AGPL-3.0"),
        ("Mozilla Public License Version 2.0", "MPL-2.0"),
        ("This is free and unencumbered software released into the public domain.", "Unlicense"),
        ("All rights reserved.", UNKNOWN),
    ],
)
def test_recognise(text, licence):
    assert recognise(text) == licence


def test_several_licence_files_are_a_choice():
    mit, apache = f"{GRANT}\n{NOTICE}", "Apache License Version 2.0, January 2004"
    assert combine([apache, mit]) == "Apache-2.0 OR MIT"
    assert combine([apache, "Thanks to everybody"]) == "Apache-2.0"
    assert combine(["Thanks to everybody"]) == UNKNOWN and combine([]) is None


@pytest.mark.parametrize("name", ["LICENSE", "license.txt", "LICENCE.md", "LICENSE-MIT", "COPYING.LESSER", "UNLICENSE"])
def test_licence_files(name):
    assert is_licence_file(name) and not is_licence_file("license_check.py") and not is_licence_file("my_license")


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0", False),
        ("MIT OR GPL-3.0", True),
        ("GPL-3.0-or-later OR MIT", True),
        ("MIT AND GPL-3.0", False),
        ("MIT AND Apache-2.0", True),
        ("(GPL-3.0 OR MIT) AND Apache-2.0", True),
        ("GPL-3.0 OR MIT AND GPL-2.0", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(MIT", False),
        ("", False),
        (None, False),
        (UNKNOWN, False),
    ],
)
def test_allowed(expression, allowed):
    assert is_allowed(expression, expand(["MIT", "apache-2.0"])) == allowed


def test_variants_of_one_licence_are_one():
    assert is_allowed("GPL-2.0-only", expand(["GPL-2.0"])) and is_allowed("GPL-2.0+", expand(["GPL-2.0-or-later"]))
    assert is_allowed("BSD-3-Clause", expand(["permissive"])) and not is_allowed("GPL-2.0", expand(["permissive"]))


def test_misspelt_licences_are_noticed():
    assert doubtful(["MIT", "Permissive", "gpl-2.0-only", "LicenseRef-ours"]) == {}
    assert doubtful(["MITT", "Apache-2"]) == {"MITT": "MIT", "Apache-2": "Apache-2.0"}
