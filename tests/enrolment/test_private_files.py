"""Private files: never readable by others, not even while they are written."""

import os
import stat
from pathlib import Path

import pytest
from tests.papers import papers_of, provisioned

from asterion_client.daemon import connection_of
from asterion_client.link_runner import LinkRunner
from asterion_client.settings import read_site_settings
from asterion_client.site_keys import init_site
from asterion_server.coordinator import coordinator_of
from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.errors import FileProblemError
from asterion_shared.key_files import read_private, write_private
from asterion_shared.link.identity import read_identity


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return provisioned(tmp_path_factory.mktemp("private") / "center", ["localhost"], ["north"])


def test_a_private_file_has_mode_0600_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "new" / "key", b"secret")
        (tmp_path / "wide").touch(0o666)
        write_private(tmp_path / "wide", b"secret")
    finally:
        os.umask(before)
    for name in ("new/key", "wide"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert read_private(tmp_path / name) == b"secret"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(FileProblemError, match=rf"mode {mode:04o}.*chmod 600 .*key"):
        read_private(tmp_path / "key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_account_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    os.chown(tmp_path / "key", 12345, -1)
    with pytest.raises(FileProblemError, match="account with number 12345"):
        read_private(tmp_path / "key")


@pytest.mark.parametrize("name", ["server.key", "ca.key", "superexec.secret", "audit/audit.key"])
@pytest.mark.parametrize("carrier", ["link", "flower"])
def test_no_coordinator_starts_with_a_key_that_others_can_read(
    made: Provisioned, name: str, carrier: str
) -> None:
    found = open_provisioned(made.folder)
    settings = found.settings.model_copy(update={"carrier": carrier})
    path = made.folder / name
    path.chmod(0o640)
    try:
        with pytest.raises(FileProblemError, match=f"chmod 600 .*{name}"):
            coordinator_of(Provisioned(made.folder, settings)).__enter__()
    finally:
        path.chmod(0o600)


@pytest.mark.parametrize("name", ["site.key", "state/audit/audit.key"])
def test_no_site_starts_with_a_key_that_others_can_read(made: Provisioned, name: str) -> None:
    folder = papers_of(made, "north")
    path = folder / name
    path.chmod(0o644)
    try:
        settings = read_site_settings(folder / "site.toml")
        with pytest.raises(FileProblemError, match=f"chmod 600 .*{name}"):
            connection_of(settings, folder)
        with pytest.raises(FileProblemError, match=f"chmod 600 .*{name}"):
            init_site(folder / "site.toml")
        if name == "site.key":
            with pytest.raises(FileProblemError, match="chmod 600"):
                LinkRunner(settings, folder)
            with pytest.raises(FileProblemError, match="chmod 600"):
                read_identity(folder / "ca.pem", folder / "site.pem", path)
    finally:
        path.chmod(0o600)
