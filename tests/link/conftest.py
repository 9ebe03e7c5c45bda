"""A link of one's own for each test, and what passed over it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.link.loopback import Loopback, linked
from tests.papers import papers_of

from asterion_server import link_server
from asterion_server.link_reports import SiteReports
from asterion_shared.link import link_pb2 as wire


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Loopback]:
    with linked(tmp_path) as loopback:
        yield loopback


@pytest.fixture
def hospital(link: Loopback, tmp_path: Path) -> Path:
    """The folder of a site that has joined."""
    return Path(shutil.copytree(papers_of(link.made, "north"), tmp_path / "hospital"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, int]]]:
    """Chunks that came to the coordinator, and that it sent; by part and number."""
    found: dict[str, list[tuple[str, int]]] = {"up": [], "down": []}
    take, read = SiteReports.take, link_server.chunk_of

    def taken(self: SiteReports, chunk: wire.Chunk):
        part = take(self, chunk)
        found["up"].append((part.id, chunk.number))
        return part

    def sent(folder: Path, part, number: int) -> bytes:
        found["down"].append((part.id, number))
        return read(folder, part, number)

    monkeypatch.setattr(SiteReports, "take", taken)
    monkeypatch.setattr(link_server, "chunk_of", sent)
    return found
