"""An archive is whole or refused, and its owner's alone."""

import hashlib
import io
import json
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asterion_shared.archives import MANIFEST, Archived, files_below, read_archive, write_archive
from asterion_shared.errors import FileProblemError, UserInputError

KIND = "test"


def nothing(folder: Path, archived: Archived) -> None:
    """Prepare nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    (place / "deep" / "er").mkdir(parents=True)
    (place / "key").write_bytes(b"secret")
    (place / "key").chmod(0o600)
    (place / "deep" / "er" / "large").write_bytes(bytes(range(256)) * 20_000)
    (place / "half.part").write_bytes(b"unfinished")
    (place / "link").symlink_to("/etc/passwd")
    return place


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    out, target = tmp_path / "a.tar", tmp_path / "target"
    made = write_archive(out, KIND, files_below(folder))
    assert (made.num_files, out.stat().st_mode & 0o777) == (2, 0o600)
    assert read_archive(out, KIND, target, nothing) == made
    names = sorted(path.relative_to(target).as_posix() for path in target.rglob("*"))
    assert names == ["deep", "deep/er", "deep/er/large", "key"]
    assert (target / "deep/er/large").read_bytes() == (folder / "deep/er/large").read_bytes()
    assert (target / "key").stat().st_mode & 0o777 == 0o600
    assert target.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserInputError, match="is there already"):
        write_archive(out, KIND, files_below(folder))
    with pytest.raises(UserInputError, match="is not empty"):
        read_archive(out, KIND, target, nothing)
    with pytest.raises(FileProblemError, match="a backup of kind 'test'"):
        read_archive(out, "other", tmp_path / "t2", nothing)


def test_a_database_in_use_is_copied_as_of_one_moment(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with closing(sqlite3.connect(tmp_path / "s" / "a.sqlite")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (1)")
        database.commit()
        database.execute("INSERT INTO t VALUES (2)")  # not committed
        write_archive(tmp_path / "a.tar", KIND, files_below(tmp_path / "s"))
    read_archive(tmp_path / "a.tar", KIND, tmp_path / "t", nothing)
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["a.sqlite"]
    with closing(sqlite3.connect(tmp_path / "t" / "a.sqlite")) as database:
        assert database.execute("SELECT x FROM t").fetchall() == [(1,)]
    assert not list(tmp_path.glob(".*"))


def test_a_failed_preparation_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar", KIND, files_below(folder))

    def fail(folder: Path, archived: Archived) -> None:
        what = "no"
        raise UserInputError(what)

    with pytest.raises(UserInputError, match="no"):
        read_archive(tmp_path / "a.tar", KIND, tmp_path / "t", fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "source"]


def forged(
    out: Path, members: list[tuple[tarfile.TarInfo, bytes]], *, manifest: bool = True
) -> None:
    rows = {facts.name: {"sha256": hashlib.sha256(data).hexdigest(), "mode": 0o600,
                         "bytes": len(data)} for facts, data in members}  # fmt: skip
    told = {"format": 1, "kind": KIND, "at": "x", "version": "x", "files": rows}
    with tarfile.open(out, "w") as tar:
        for facts, data in members:
            facts.size = len(data)
            tar.addfile(facts, io.BytesIO(data))
        if manifest:
            text = json.dumps(told).encode()
            last = tarfile.TarInfo(MANIFEST)
            last.size = len(text)
            tar.addfile(last, io.BytesIO(text))


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


@pytest.mark.parametrize(
    ("members", "manifest", "why"),
    [
        ([(info("../out"), b"x")], True, "names a place outside"),
        ([(info("a/../../out"), b"x")], True, "names a place outside"),
        ([(info("/tmp/asterion-out"), b"x")], True, "names a place outside"),  # noqa: S108
        ([(info("a", tarfile.SYMTYPE, "/etc"), b"")], True, "holds what no backup holds"),
        ([(info("a", tarfile.LNKTYPE, "b"), b"")], True, "holds what no backup holds"),
        ([(info("a", tarfile.FIFOTYPE), b"")], True, "holds what no backup holds"),
        ([(info("a"), b"x"), (info("a"), b"y")], True, "twice"),
        ([(info("a"), b"x")], False, "no manifest"),
    ],
)
def test_a_forged_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], manifest: bool, why: str
) -> None:
    forged(tmp_path / "a.tar", members, manifest=manifest)
    (tmp_path / "in").mkdir()
    with pytest.raises(FileProblemError, match=why):
        read_archive(tmp_path / "a.tar", KIND, tmp_path / "in" / "t", nothing)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in"]
    assert not Path("/tmp/asterion-out").exists()  # noqa: S108


def edit(data: bytes) -> bytes:
    return data.replace(b"secret", b"public", 1)


def drop(data: bytes) -> bytes:
    return data[: len(data) // 2]


def hide(data: bytes) -> bytes:
    """The same archive without one of its files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            if member.name != "key":
                new.addfile(member, old.extractfile(member))
    return out.getvalue()


@pytest.mark.parametrize("deed", [edit, drop, hide, lambda data: b"no tar" * 300])
def test_a_changed_archive_is_refused(
    folder: Path, tmp_path: Path, deed: Callable[[bytes], Any]
) -> None:
    out = tmp_path / "a.tar"
    write_archive(out, KIND, files_below(folder))
    out.write_bytes(deed(out.read_bytes()))
    with pytest.raises(FileProblemError):
        read_archive(out, KIND, tmp_path / "t", nothing)
    assert not (tmp_path / "t").exists()
