"""Backup and restore of a site: settings, identity and state. Never its data.

Left out are pictures of patients, stored reports and large parts (they are formed again), logs,
approvals (one may have been taken back since), and the identity of the state folder: a copy that is
put back is another folder than the one it is of.
"""

from collections.abc import Iterator
from pathlib import Path

from asterion_client.approvals import FOLDER as APPROVALS
from asterion_client.privacy_ledger_restored import note_restored
from asterion_client.settings import SiteSettings, read_site_settings
from asterion_client.site_keys import paths_of
from asterion_shared.archives import Archived, files_below, read_archive, write_archive
from asterion_shared.errors import FileProblemError, UserInputError

KIND = "asterion site"
SITE_TOML = "site.toml"
LEFT_OUT = ("link", "logs", "status.json", APPROVALS)
OF_A_RUN = ("reports", "report.html")


def back_up_site(site_toml: Path, out: Path) -> Archived:
    """Write a site's backup; its daemon may run meanwhile.

    Args:
        site_toml: the site's settings.
        out: the archive, mode 0600; nothing may be there.

    Raises:
        UserInputError: something stands at ``out``, or a place that matters is outside the site's
            folder.
        FileProblemError: a file cannot be read, or shrank meanwhile.
        DiskProblemError: the disk is full or not writable.
    """
    settings, folder = read_site_settings(site_toml), site_toml.resolve().parent
    return write_archive(out, KIND, _files(settings, folder, site_toml))


def restore_site(archive: Path, target: Path) -> Archived:
    """Put a site's backup into a new folder, where it answers no order until a person accepts it.

    Raises:
        UserInputError: the target is not empty.
        FileProblemError: the archive is not a whole backup of a site.
        DiskProblemError: the disk is full or not writable.
    """

    def prepare(folder: Path, archived: Archived) -> None:
        settings = read_site_settings(folder / SITE_TOML)
        note_restored(_below(folder, settings.state_folder) / "ledger", archived.at)

    return read_archive(archive, KIND, target, prepare)


def _files(settings: SiteSettings, folder: Path, site_toml: Path) -> Iterator[tuple[str, Path]]:
    state = _below(folder, settings.state_folder)
    yield SITE_TOML, site_toml
    for name in _of_the_connection(settings):
        yield from _at(folder, name)
    if settings.consent is not None and settings.consent.operators:
        yield from _at(folder, settings.consent.operator_keys)
    if settings.console is not None and (folder / settings.console.people).exists():
        yield from _at(folder, settings.console.people)
    paths = paths_of(settings, folder)
    made = [paths.next_key] if settings.connection else [paths.private_key, paths.next_key]
    for path in made:  # of a site that is on its way to join, or to a new key
        if path.exists():
            yield from _at(folder, path.relative_to(folder).as_posix())
    prefix = f"{state.relative_to(folder).as_posix()}/"
    for name, path in files_below(state, prefix):
        inside = path.relative_to(state)
        parts = inside.parts
        of_a_run = len(parts) > 2 and parts[0] == "runs" and parts[2] in OF_A_RUN
        left_out = of_a_run or any(inside.is_relative_to(name) for name in LEFT_OUT)
        if not left_out and not path.name.endswith(".lock"):
            yield name, path


def _of_the_connection(settings: SiteSettings) -> list[str]:
    connection = settings.connection
    if connection is None:
        return []
    names = (connection.root_certificate, connection.private_key, connection.certificate,
             connection.peers)  # fmt: skip
    return [name for name in names if name is not None]


def _at(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """A file, or all of a folder."""
    path = _below(folder, name)
    inside = path.relative_to(folder).as_posix()
    if path.is_dir():
        yield from files_below(path, f"{inside}/")
    elif path.exists():
        yield inside, path
    else:
        fix = "correct it in site.toml, or put the file there"
        raise FileProblemError(path, "no such file", fix)


def _below(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        msg = (
            f"{name} is outside of {folder}, and a backup has only what lies in the site's folder; "
            "move it there, or back it up by other means"
        )
        raise UserInputError(msg)
    return path
