"""How the link's queue of runs tells a run that ends from one that has ended."""

from pathlib import Path

import pytest
from tests.link.loopback import free_port

from asterion_server.keys import provision
from asterion_server.run_folder import Launch, RunFolder
from asterion_server.run_queue import LinkQueue
from asterion_shared.errors import AsterionError


@pytest.fixture
def queue(tmp_path: Path) -> tuple[LinkQueue, RunFolder]:
    made = provision(tmp_path / "center", ["localhost"], ["north"], port=free_port())
    return LinkQueue(made), RunFolder(made.runs / "run")


def test_a_run_has_ended_when_its_process_has(queue: tuple[LinkQueue, RunFolder]) -> None:
    """Whoever watches would otherwise miss the last events, which come after the result."""
    runs, folder = queue
    assert runs.standing(folder) == "unknown"
    runs.submit(folder, Launch(sites=("north",)))
    assert runs.standing(folder) == "waiting"
    with folder.carried_out_here():
        assert runs.standing(folder) == "running"
        folder.write_problem(AsterionError("the disk is full"))
        assert folder.has_ended
        assert runs.standing(folder) == "running"
    assert runs.standing(folder) == "ended"
    runs.submit(folder, Launch(sites=("north",)))
    assert runs.standing(folder) == "waiting"
