"""Files in folders, checkouts and archives: which there are, what is refused, and whose licence counts."""

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from megagpt.data.corpus.code import archives
from megagpt.data.corpus.code.file_filter import Criteria, filter_units
from megagpt.data.corpus.code.rules import Limits
from megagpt.data.corpus.code.sources import files_of, list_units
from megagpt.data.corpus.tally import Tally
from megagpt.errors import DataError

MIT = "Permission is hereby granted, free of charge. The above copyright notice and this permission notice"


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(*inputs):
    """Documents by path, and the tally, of everything that is Python."""
    tally = Tally()
    criteria = Criteria(("python",), Limits(), None)
    kept = {document.path: document for document in filter_units(list_units(inputs), criteria, None, tally)}
    drops = {sample[1]: rule for rule, count in tally.dropped.items() for sample in count.samples}
    assert tally.files == len(kept) + sum(count.files for count in tally.dropped.values())
    assert tally.bytes == sum(document.bytes for document in kept.values()) + sum(
        count.bytes for count in tally.dropped.values()
    )
    return kept, drops


def make_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def make_tar(path: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


# Folders


def test_folder_in_order_and_each_file_once(tmp_path):
    src = write(tmp_path / "src", b_dot_py="x = 2", a_dot_py="x = 1", sub__c_dot_py="x = 3", data_dot_json="{}")
    kept, drops = run(src)
    assert list(kept) == ["src/a.py", "src/b.py", "src/sub/c.py"] and drops == {"src/data.json": "language"}
    assert [unit.name for unit in list_units([src / "b.py", src])][:2] == ["b.py", "src/a.py"]


def test_inputs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, a__src__x_dot_py="x", b__src__x_dot_py="y")
    assert list(run("a/src", "b/src")[0]) == ["a/src/x.py", "b/src/x.py"]


def test_links_are_not_followed(tmp_path):
    src = write(tmp_path / "src", real_dot_py="x = 1")
    write(tmp_path / "outside", secret_dot_py="x = 2")
    (src / "link.py").symlink_to(tmp_path / "outside" / "secret.py")
    (src / "folder").symlink_to(tmp_path / "outside")
    os.mkfifo(src / "pipe.py")
    kept, drops = run(src)
    assert list(kept) == ["src/real.py"]
    assert drops == dict.fromkeys(["src/link.py", "src/folder", "src/pipe.py"], "not a regular file")


def test_a_link_that_is_asked_for_is_followed(tmp_path):
    write(tmp_path, real_dot_py="x = 1", src__a_dot_py="x = 2")
    (tmp_path / "link.py").symlink_to(tmp_path / "real.py")
    (tmp_path / "folder").symlink_to(tmp_path / "src")
    assert set(run(tmp_path / "link.py", tmp_path / "folder")[0]) == {"link.py", "folder/a.py"}


def test_names_of_any_bytes(tmp_path):
    src = write(tmp_path / "src", a_dot_py="x = 1")
    Path(os.fsdecode(os.fsencode(src) + b"/\xff.py")).write_text("y = 1")
    kept, _ = run(src)
    assert len(kept) == 2 and all(name.encode() for name in kept)


def test_inputs_that_hold_nothing_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        list_units([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no file in it"):
        list_units([tmp_path / "empty"])


def test_the_nearest_licence_counts(tmp_path):
    src = write(
        tmp_path / "src",
        LICENSE=MIT,
        a_dot_py="x = 1",
        deep__b_dot_py="x = 2",
        other__COPYING="GNU GENERAL PUBLIC LICENSE Version 2, June 1991",
        other__deep__c_dot_py="x = 3",
        d_dot_py="# SPDX-License-Identifier: ISC\nx = 4",
        vendor__them__e_dot_py="x = 5",
    )
    write(tmp_path, LICENSE="Apache License Version 2.0, January 2004")
    found = {name: document.licence for name, document in run(src)[0].items()}
    assert found == {
        "src/a.py": "MIT",
        "src/deep/b.py": "MIT",
        "src/other/deep/c.py": "GPL-2.0",
        "src/d.py": "ISC",
        "src/vendor/them/e.py": None,
    }


# Checkouts


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@needs_git
def test_of_a_checkout_tracked_files_are_taken(tmp_path):
    repos = write(
        tmp_path / "repos", one__a_dot_py="x = 1", one__new_dot_py="x = 2", one__gone_dot_py="x", b_dot_py="y"
    )
    one = repos / "one"
    git(one, "init", "-q")
    git(one, "add", "a.py", "gone.py")
    (one / "gone.py").unlink()
    ran = tmp_path / "ran"
    git(one, "config", "core.fsmonitor", f"touch {ran}; false")
    kept, drops = run(repos)
    assert set(kept) == {"repos/one/a.py", "repos/b.py"} and not drops and not ran.exists()


@needs_git
def test_a_broken_checkout_is_reported_and_the_rest_is_read(tmp_path):
    repos = write(tmp_path / "repos", one__a_dot_py="x = 1", b_dot_py="y")
    (repos / "one" / ".git").write_text("gitdir: nowhere")
    kept, drops = run(repos)
    assert list(kept) == ["repos/b.py"] and drops == {"repos/one": "unreadable"}


# Archives


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_archive_is_read_like_a_folder(tmp_path, suffix):
    make = make_zip if suffix == ".zip" else make_tar
    members = [("p/a.py", b"x = 1"), ("p/b.txt", b"text"), ("p/sub/c.py", b"y = 2"), ("p/LICENSE", MIT.encode())]
    before = set(tmp_path.iterdir())
    kept, drops = run(make(tmp_path / f"src{suffix}", *members))
    name = f"src{suffix}/p"
    assert {path: (item.text, item.licence) for path, item in kept.items()} == {
        f"{name}/a.py": ("x = 1", "MIT"),
        f"{name}/sub/c.py": ("y = 2", "MIT"),
    }
    assert drops == dict.fromkeys([f"{name}/b.txt", f"{name}/LICENSE"], "language")
    assert set(tmp_path.iterdir()) - before == {tmp_path / f"src{suffix}"}


def test_archives_in_folders_are_read(tmp_path):
    folder = write(tmp_path / "src", a_dot_py="x = 1")
    make_zip(folder / "more.zip", ("b.py", b"y = 1"))
    assert set(run(folder)[0]) == {"src/a.py", "src/more.zip/b.py"}


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unsafe_names_are_refused_and_the_rest_is_read(tmp_path, make):
    names = ["/etc/a.py", "../up.py", "a/../../up.py", "C:/windows.py", "..\\up.py"]
    archive = make(tmp_path / ("x.zip" if make is make_zip else "x.tar"), *((name, b"x") for name in [*names, "ok.py"]))
    kept, drops = run(archive)
    assert list(kept) == [f"{archive.name}/ok.py"] and list(drops.values()) == ["unsafe path"] * len(names)


def test_links_and_devices_in_archives_are_refused(tmp_path):
    link, device, entry = tarfile.TarInfo("l.py"), tarfile.TarInfo("d.py"), zipfile.ZipInfo("z.py")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    entry.external_attr = 0o120777 << 16
    tar = make_tar(tmp_path / "x.tar", (link, b""), (device, b""), ("ok.py", b"x"))
    kept, drops = run(tar, make_zip(tmp_path / "x.zip", (entry, b"/etc/passwd")))
    assert list(kept) == ["x.tar/ok.py"] and list(drops.values()) == ["not a regular file"] * 3


def test_bombs_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SLACK", 200_000)
    zeros = b"0" * 900_000
    bombs = [
        make_zip(
            tmp_path / "x.zip", ("first.py", b"x = 1"), *((f"{n}.py", zeros) for n in range(9)), ("last.py", b"x")
        ),
        make_tar(tmp_path / "x.tar.gz", ("first.py", b"x = 1"), ("huge.bin", bytes(20_000_000)), ("last.py", b"x = 1")),
    ]
    for bomb in bombs:
        kept, drops = run(bomb)
        assert list(kept) == [f"{bomb.name}/first.py"] and drops[bomb.name] == "archive bomb"


def test_a_size_that_lies_is_found_out(tmp_path):
    archive = make_zip(tmp_path / "x.zip", ("a.py", b"x" * 1000), ("b.py", b"y = 1"))
    content = archive.read_bytes()
    archive.write_bytes(content.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    kept, drops = run(archive)
    assert list(kept) == ["x.zip/b.py"] and drops == {"x.zip/a.py": "unreadable"}


def test_encrypted_members_are_counted(tmp_path):
    archive = make_zip(tmp_path / "x.zip", ("a.py", b"x = 1"))
    content = bytearray(archive.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + place] |= 1
    archive.write_bytes(content)
    assert run(archive) == ({}, {"x.zip/a.py": "unreadable"})


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_damaged_archives_are_counted(tmp_path, name):
    (tmp_path / name).write_bytes(b"not an archive")
    assert run(tmp_path / name) == ({}, {name: "damaged archive"})


def test_of_a_truncated_archive_what_comes_before_is_used(tmp_path):
    archive = make_tar(tmp_path / "x.tar.gz", ("a.py", b"x = 1"), ("b.py", os.urandom(100_000).hex().encode()))
    archive.write_bytes(archive.read_bytes()[:50_000])
    kept, drops = run(archive)
    assert list(kept) == ["x.tar.gz/a.py"] and "damaged archive" in drops.values()


def test_memory_does_not_follow_what_a_member_expands_to(tmp_path):
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:
        info = tarfile.TarInfo("big.py")
        info.size = 30_000_000
        file.write(info.tobuf())
        for _ in range(30):
            file.write(bytes(1_000_000))
    unit = list_units([tmp_path / "x.tar.gz"])[0]
    tracemalloc.start()
    sizes = [file.bytes for file in files_of(unit, 1_000_000)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes[0] == 30_000_000 and peak < 5_000_000
