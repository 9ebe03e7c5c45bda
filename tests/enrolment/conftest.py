"""A link of one's own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.link.loopback import Loopback, linked


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Loopback]:
    with linked(tmp_path) as loopback:
        yield loopback
