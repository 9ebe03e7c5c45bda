"""What a site keeps from round to round: one file a round, in the folder of the run.

A round that is asked again must start from the same as before, so the file of the round before
stays until a later round is stored. A site is not asked in every round: the one before may be long
ago.
"""

from pathlib import Path

from asterion_shared.errors import DiskProblemError
from asterion_shared.files import sync_folder, write_atomically


def newest_before(folder: Path, name: str, round_: int) -> Path | None:
    """The file of the last round before ``round_``; None when there is none."""
    before = [path for path in _files(folder, name) if _round(path) < round_]
    return max(before, key=_round, default=None)


def store_round(folder: Path, name: str, round_: int, content: bytes) -> None:
    """Store what is kept after a round, beside that of the last round before it.

    Older files are removed, and those of later rounds: a run that came back to an earlier round
    takes another course from there. So is what a process left that was killed as it wrote.

    Args:
        folder: of the run at this site; made if missing.
        name: of what is kept.
        round_: the round that was done.
        content: a safetensors file.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    write_atomically(_path(folder, name, round_), content)
    _remove_others(folder, name, round_)


def move_round(folder: Path, name: str, to: str, round_: int) -> None:
    """Give the file of a round another name, durably; nothing where there is none.

    Files of that other name are removed as by :func:`store_round`.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    stored = _path(folder, name, round_)
    if not stored.exists():
        return
    try:
        stored.replace(_path(folder, to, round_))
        sync_folder(folder)
    except OSError as error:
        raise DiskProblemError(folder, error.strerror or type(error).__name__) from error
    _remove_others(folder, to, round_)


def _remove_others(folder: Path, name: str, round_: int) -> None:
    kept = _path(folder, name, round_), newest_before(folder, name, round_)
    for path in _files(folder, name):
        if path not in kept:
            path.unlink(missing_ok=True)
    for path in folder.glob(f".{name}-*.part"):
        path.unlink(missing_ok=True)


def _path(folder: Path, name: str, round_: int) -> Path:
    return folder / f"{name}-{round_:06d}.safetensors"


def _files(folder: Path, name: str) -> list[Path]:
    return list(folder.glob(f"{name}-*.safetensors"))


def _round(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
