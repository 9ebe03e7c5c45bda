"""For the tests of power cuts."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")  # noqa: S108  # syncs cost nothing there; what they mean is in the record


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A new folder, in memory where the system has such a place."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as made:
        yield Path(made)
