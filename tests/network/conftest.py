"""A small network of two sites, new for each test: making one takes a tenth of a second."""

from collections.abc import Iterator

import pytest
from tests.network.namespaces import Network, network, require


@pytest.fixture
def net() -> Iterator[Network]:
    require()
    with network(["north", "south"], seed=7) as made:
        yield made
