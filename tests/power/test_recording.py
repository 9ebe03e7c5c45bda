"""Real programs recorded: nothing is missed, and what cannot be followed is refused."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.power.effects import Effect, Entered, Moved, Record, Removed, Said, Synced, Wrote
from tests.power.interpreter import Interpreter
from tests.power.recording import Recording, contents_of, record_run, require
from tests.power.strace_log import RecordError, births, calls

# Everything that changes a folder, at random: each run is compared with the real folder at its
# end, so an offset, name or duplicate that is followed wrongly shows.
RANDOM_PROGRAM = """
import os, random, subprocess, sys, threading
os.chdir(sys.argv[1])
chance = random.Random(int(sys.argv[2]))
files, folders, open_files = ["kept"], [".", "d", "d/e"], []
os.makedirs("d/e", exist_ok=True)

def name():
    return chance.choice(folders) + "/" + chance.choice("uvwxyz")

def is_file(path):
    return os.path.isfile(path) and not os.path.islink(path)

def by_a_thread():
    os.write(open_files[-1], b"from a thread")
    open_files.append(os.open(name(), os.O_RDWR | os.O_CREAT, 0o600))

def act():
    content = os.urandom(chance.choice([1, 10, 5000]))
    match chance.randrange(16):
        case 0:
            mode = chance.choice([0, os.O_APPEND, os.O_TRUNC, os.O_SYNC, os.O_DSYNC])
            open_files.append(os.open(name(), os.O_RDWR | os.O_CREAT | mode, 0o600))
        case 1 if open_files:
            os.close(open_files.pop(chance.randrange(len(open_files))))
        case 2 if open_files:
            open_files.append(os.dup(chance.choice(open_files)))
        case 3 | 4 if open_files:
            os.write(chance.choice(open_files), content)
        case 5 if open_files:
            os.pwrite(chance.choice(open_files), content, chance.randrange(9000))
        case 6 if open_files:
            os.writev(chance.choice(open_files), [content, b"", b'"), <unfinished ...>'])
        case 7 if open_files:
            whence = chance.choice([os.SEEK_SET, os.SEEK_END])
            os.lseek(chance.choice(open_files), chance.randrange(99), whence)
        case 8 if open_files:
            os.read(chance.choice(open_files), 50)
        case 9 if open_files:
            os.ftruncate(chance.choice(open_files), chance.randrange(6000))
        case 10 if open_files:
            os.pwritev(chance.choice(open_files), [content, content], 7)
        case 11 if open_files:
            os.fsync(chance.choice(open_files))
        case 12:
            source, target = name(), name()
            if is_file(source) and not os.path.isdir(target):
                if chance.random() < 0.3 and not os.path.exists(target):
                    os.link(source, target)
                else:
                    os.rename(source, target)
        case 13:
            if is_file(path := name()):
                os.unlink(path)
        case 14 if open_files:
            # A forked process shares the offset but not the closing; a program that it becomes
            # holds nothing.
            if (child := os.fork()) == 0:
                os.write(open_files[-1], b"from the child")
                os.close(open_files[-1])
                os.execv("/bin/true", ["true"])
            os.waitpid(child, 0)
        case 15 if open_files:
            thread = threading.Thread(target=by_a_thread)
            thread.start()
            thread.join()

for _ in range(int(sys.argv[3])):
    act()
os.makedirs("g/h")
os.rename("d", "g/h/moved")
with open("g/h/moved/last", "w") as file:
    file.write("in a folder that moved")
os.posix_fallocate(os.open("long", os.O_CREAT | os.O_WRONLY), 0, 10_000)
os.truncate("long", 9_999)
subprocess.run("cd g && echo shell > s && mv s t && rmdir ../empty", shell=True, check=True)
os.closerange(3, 1000)
os.sync()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    require()
    (made := tmp_path / "recorded").mkdir()
    return made


def python(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", program, *map(str, arguments)]


@pytest.mark.parametrize("seed", range(5))
def test_random_programs_are_followed_to_the_byte(folder: Path, tmp_path: Path, seed: int) -> None:
    (folder / "kept").write_bytes(b"from before")
    (folder / "empty").mkdir()
    words = python(RANDOM_PROGRAM, folder, seed, 400)
    record = record_run(words, folder, tmp_path / "notes")
    kinds = {type(effect) for effect in record.effects}
    assert kinds >= {Wrote, Entered, Moved, Removed, Synced}
    assert record.effects[-1] == Synced(None, len(record.effects) - 1)
    assert len(contents_of(folder)) > 5


def test_what_it_says_stands_between_what_it_does(folder: Path, tmp_path: Path) -> None:
    program = """
import os, sys
file = os.open(sys.argv[1] + "/a", os.O_CREAT | os.O_WRONLY)
os.write(file, b"content")
os.write(1, b"written")
os.fsync(file)
os.write(2, b"synced")
"""
    record = record_run(python(program, folder), folder, tmp_path / "notes")
    wrote, said, synced, error = record.effects[1:]
    assert isinstance(wrote, Wrote)
    assert said == Said(1, b"written")
    assert synced == Synced(wrote.inode, 3)
    assert error == Said(2, b"synced")
    assert list(record.times_seconds) == sorted(record.times_seconds)
    assert abs(record.times_seconds[0] - time.time()) < 600


def test_a_killed_server_is_recorded_until_its_end(folder: Path, tmp_path: Path) -> None:
    program = """
import signal, sys
for number in range(20):
    with open(f"{sys.argv[1]}/{number}", "wb", buffering=0) as file:
        file.write(b"x")
    print(number, flush=True)
signal.pause()  # killed within a call, it may have done what strace saw no end of
"""
    recording = Recording(python(program, folder), folder, tmp_path / "notes")
    until = time.monotonic() + 30
    while (tmp_path / "notes" / "stdout").read_bytes().count(b"\n") < 20:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert Path(f"/proc/{recording.process.pid}/exe").resolve() == Path(sys.executable).resolve()
    recording.process.kill()
    record = recording.finish()
    told = record.said(len(record.effects)).split()
    assert len(told) >= 20
    assert len(contents_of(folder)) >= len(told)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import mmap; m = mmap.mmap(f.fileno(), 0); m[:1] = b'z'", "mapped for shared writing"),
        (
            "import os; g = open(place + '/b', 'wb'); os.sendfile(g.fileno(), f.fileno(), 0, 1)",
            "sendfile fills",
        ),
        ("import os; os.symlink('a', place + '/s')", "symbolic links"),
        ("import os; os.rename(place + '/a', place + '/../out')", "across the border"),
        ("import os; os.open(place, os.O_TMPFILE | os.O_WRONLY)", "without names"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    folder: Path, tmp_path: Path, program: str, reason: str
) -> None:
    (folder / "a").write_bytes(b"content")
    program = f"import sys; place = sys.argv[1]; f = open(place + '/a', 'r+b'); {program}"
    with pytest.raises(RecordError, match=reason):
        record_run(python(program, folder), folder, tmp_path / "notes")


def test_a_change_that_was_missed_is_noticed(folder: Path, tmp_path: Path) -> None:
    program = "import sys; print('up', flush=True); sys.stdin.read()"
    words = python(program)
    recording = Recording(words, folder, tmp_path / "notes", stdin=subprocess.PIPE)
    (folder / "by somebody else").touch()
    assert recording.process.stdin is not None
    recording.process.stdin.close()
    with pytest.raises(RecordError, match=r"missed something.*by somebody else"):
        recording.finish()


def test_a_file_passed_into_the_process_is_refused(folder: Path, tmp_path: Path) -> None:
    with (folder / "input").open("w+b") as passed:
        words = python("import os; os.write(0, b'x')")
        with pytest.raises(RecordError, match="opened before the recording"):
            record_run(words, folder, tmp_path / "notes", stdin=passed)


def test_a_program_that_fails_says_why(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        record_run(python("raise SystemExit('on purpose')"), folder, tmp_path / "notes")
    assert caught.value.returncode == 1
    assert caught.value.stderr == "on purpose\n"


def test_places_that_would_be_misread_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ValueError, match="must be a resolved path"):
        Recording(["true"], tmp_path / "link", tmp_path / "notes")
    with pytest.raises(ValueError, match="outside of it"):
        Recording(["true"], folder, folder / "notes")


def test_without_strace_the_tests_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match="no `strace`"):
        require()


def interpreted(log: str) -> list[Effect]:
    """Effects of a log written by hand on /f, where strings are written plainly."""

    def escape(text: str) -> str:
        return "".join(f"\\x{byte:02x}" for byte in text.encode())

    lines = []
    for line in log.strip().splitlines():
        parts = line.split("'")
        parts[1::2] = [f'"{escape(part)}"' for part in parts[1::2]]
        angles = "".join(parts).replace("<... ", "{... ").replace("<unfinished", "{unfinished")
        head, *rest = angles.split("<")
        for part in rest:
            path, _, tail = part.partition(">")
            head += f"<{escape(path)}>{tail}"
        lines.append(head.replace("{... ", "<... ").replace("{unfinished", "<unfinished"))
    interpreter = Interpreter(
        folder="/f",
        current="/",
        inodes={"": 0, "a": 1, "b": 2},
        sizes={1: 4, 2: 0},
        births=births(lines),
        streams={},
        may_be_mapped=(),
    )
    interpreter.run(calls(lines))
    return interpreter.effects


def test_a_write_that_returns_while_a_sync_runs_is_not_covered_by_it() -> None:
    effects = interpreted("""
10 1.0 openat(AT_FDCWD</>, '/f/a', O_RDWR) = 3</f/a>
10 1.1 clone(child_stack=NULL, flags=CLONE_FS|CLONE_FILES) = 11
10 1.2 write(3</f/a>, 'one', 3) = 3
10 1.3 fsync(3</f/a> <unfinished ...>
11 1.4 write(3</f/a>, 'two', 3) = 3
10 1.5 <... fsync resumed>) = 0
10 1.6 fsync(3</f/a> <unfinished ...>
11 1.7 +++ exited with 0 +++
""")
    assert effects == [
        Wrote(1, 0, b"one", synced=False),
        Wrote(1, 3, b"two", synced=False),
        Synced(1, before=1),
    ]


def test_a_childs_call_may_stand_before_the_return_of_the_call_that_made_it() -> None:
    effects = interpreted("""
10 1.0 openat(AT_FDCWD</>, '/f/a', O_RDWR|O_CLOEXEC) = 3</f/a>
10 1.1 openat(AT_FDCWD</>, '/f/b', O_RDWR|O_APPEND|O_DSYNC) = 4</f/b>
10 1.2 vfork( <unfinished ...>
11 1.3 write(3</f/a>, 'child', 5) = 4
11 1.4 execve('/x', [], 0x0) = 0
11 1.5 read(0x3, 0x0, 0x9) = 0x9
10 1.6 <... vfork resumed>) = 11
11 1.7 chdir('f') = 0
11 1.8 rename('b', 'c') = 0
11 1.9 write(4</f/c>, 'xy', 2) = 2
10 2.0 write(3</f/a>, 'p', 1) = 1
10 2.1 unlinkat(AT_FDCWD</>, 'f/a', 0) = 0
10 2.2 write(3</f/a>(deleted), 'q', 1) = 1
10 2.3 unlink('/f/missing') = -1 ENOENT (No such file or directory)
10 2.4 write(3</f/a>(deleted), 'r', 1) = ?
""")
    assert effects == [
        Wrote(1, 0, b"chil", synced=False),
        Moved(0, "b", 0, "c", 2),
        Wrote(2, 0, b"xy", synced=True),
        Wrote(1, 4, b"p", synced=False),
        Removed(0, "a"),
        Wrote(1, 5, b"q", synced=False),
    ]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("strace: something else", "not a line of strace"),
        ("10 1.0 close(3", "not a line of strace"),
        ("10 1.0 io_uring_setup(8, {}) = 3</x>", "io_uring"),
        ("10 1.0 close(3) = 0\n12 1.1 close(3) = 0", "started by nobody"),
        ("10 1.0 fork() = 11\n10 1.1 fork() = 11\n11 1.2 close(3) = 0", "came twice"),
        ("10 1.0 write(3</f/a>, 'x'..., 9) = 9", "opened before"),
        ("10 1.0 open('/f/a', O_RDWR) = 3</f/a>\n10 1.1 write(3</f/a>, 'x'..., 9) = 9", "written"),
        ("10 1.0 renameat2(AT_FDCWD</>, 'f/a', AT_FDCWD</>, 'f/b', RENAME_EXCHANGE) = 0", "EXCH"),
    ],
)
def test_logs_that_cannot_be_followed_are_refused(log: str, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        interpreted(log)


def test_a_record_is_only_of_its_folder(folder: Path, tmp_path: Path) -> None:
    program = "import sys; open(sys.argv[1] + '/../recorded-not', 'w').write('x')"
    record = record_run(python(program, folder), folder, tmp_path / "notes")
    assert record == Record({}, (), ())
    assert contents_of(folder) == {}
