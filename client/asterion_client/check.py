"""The site's self-check: every problem of settings, data, disk, device and connection at once.

What it prints names files: it is for the eyes of the site, on the site's own terminal.
"""

import os
import shutil
import socket
import ssl
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from asterion_client.data import table
from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.data.records import Record, find_records
from asterion_client.data.site_data import class_of, read_case, read_raw, split_for
from asterion_client.settings import ConnectionSettings, SiteSettings, read_site_settings
from asterion_shared.errors import (
    AsterionError,
    DataProblemError,
    FileProblemError,
    MissingExtraError,
    Problem,
    SettingsError,
)
from asterion_shared.plan import DataContract, Plan

LEAST_FREE_BYTES = 2 * 2**30
EARLIEST_CLOCK = 1_767_225_600.0  # 2026-01-01: a clock before it was never set.
CONNECT_SECONDS = 3.0


def check_site(site_toml: Path, plan: Plan | None = None) -> list[Problem]:
    """Look at everything that could stop this site from taking part.

    Args:
        site_toml: the site's settings.
        plan: when given, the data are also read as this plan will read them.

    Returns:
        Every problem with its fix, fatal ones and warnings; empty when all is well.

    Raises:
        FileProblemError: ``site_toml`` itself cannot be read.
    """
    try:
        settings = read_site_settings(site_toml)
    except SettingsError as error:
        return list(error.problems)
    folder = site_toml.parent
    return [
        *_check_data(settings, folder, plan),
        *_check_disk(folder / settings.state_folder),
        *_check_device(settings.compute.device),
        *_check_clock(),
        *_check_connection(settings.connection, folder),
    ]


def _check_data(settings: SiteSettings, folder: Path, plan: Plan | None) -> Iterator[Problem]:
    if plan is not None and plan.task != settings.task:
        yield Problem(
            where="task",
            what=f"the plan is for {plan.task} and site.toml says {settings.task}",
            fix="ask for a plan of the right kind, or correct task in site.toml",
        )
        return
    place = folder / settings.data.folder
    try:
        records = find_records(settings.data, place, settings.task)
    except FileProblemError as error:
        yield Problem(where=error.path, what=error.what, fix=error.fix)
        return
    if not records:
        yield Problem(
            where="data.folder",
            what=f"{place} holds no {settings.data.format} data",
            fix="correct data.folder or data.format in site.toml",
        )
        return
    yield from _check_groups(records)
    if plan is None:
        yield from _check_files(settings, records)
        yield from _check_labels(settings, Counter(r.label for r in records))
    else:
        yield from _check_against(settings, folder, plan)


def _check_groups(records: Sequence[Record]) -> Iterator[Problem]:
    splits: dict[str, set[str]] = {}
    for record in records:
        splits.setdefault(record.group, set()).add(record.split)
    for group, found in sorted(splits.items()):
        if len(found) > 1:
            example = next(r.path.name for r in records if r.group == group)
            yield Problem(
                where=example,
                what=f"the patient or field {group!r} is in more than one split",
                fix="put all of its records on one side",
            )


def _check_labels(settings: SiteSettings, counts: Counter[str]) -> Iterator[Problem]:
    if settings.task == "segmentation":
        return
    if settings.data.labels:
        for label in sorted(set(counts) - set(settings.data.labels)):
            yield Problem(
                where="data.labels",
                what=f"the label {label!r} of {counts[label]} records is not mapped",
                fix="add it to data.labels with the plan's class name, or mend the records",
            )
    if len(counts) == 1:
        yield Problem(
            where="data",
            what=f"all {counts.total()} records have the label {next(iter(counts))!r}",
            fix="check the labels; a site with one class can take part, but its metrics say little",
            fatal=False,
        )


def _check_files(settings: SiteSettings, records: Sequence[Record]) -> Iterator[Problem]:
    """Read every image as stored; without a plan its dimensions are tried."""
    if settings.data.format == "table":
        return
    for record in records:
        reasons = []
        for dimensions in (2, 3):
            contract = DataContract(dimensions=dimensions, patch_size=(8,) * dimensions)
            try:
                raw = read_raw(record, settings.data, contract)
            except UnreadableFileError as error:
                reasons.append(str(error))
                continue
            except MissingExtraError as error:
                yield Problem(where="data.format", what=str(error), fix="install it")
                return
            if raw.mask is not None and raw.mask.shape != raw.image.shape[1:]:
                reasons.append(
                    f"its mask has shape {raw.mask.shape} and the image {raw.image.shape[1:]}"
                )
                continue
            break
        else:
            yield Problem(where=record.path.name, what=reasons[-1], fix="mend or remove the file")


def _check_against(settings: SiteSettings, folder: Path, plan: Plan) -> Iterator[Problem]:
    """Read every record as the plan will, and count what is left."""
    try:
        records = split_for(settings, folder, plan)
    except AsterionError as error:
        yield Problem(where="data", what=str(error), fix="mend the data or the settings")
        return
    counts: Counter[int] = Counter()
    num_bad = 0
    for number, record in enumerate(records):
        try:
            label = class_of(record, settings.data, plan)
            if settings.data.format == "table":
                table.feature_values(record.path, record.index or 0, plan.data, settings.data)
            else:
                read_case(record, f"{number:012x}", label, settings.data, plan)
        except UnreadableFileError as error:
            num_bad += 1
            yield Problem(
                where=record.path.name,
                what=str(error),
                fix="mend or remove it; it will be skipped and counted",
                fatal=False,
            )
        except (DataProblemError, FileProblemError, MissingExtraError) as error:
            yield Problem(where=record.path.name, what=str(error), fix="mend it")
        else:
            counts[label] += record.split == "train"
    if num_bad > settings.data.max_bad_fraction * len(records):
        yield Problem(
            where="data.max_bad_fraction",
            what=f"{num_bad} of {len(records)} records cannot be used",
            fix=f"mend them; at most {settings.data.max_bad_fraction:g} may be bad",
        )
    if counts.total() == 0:
        yield Problem(
            where="data",
            what="no record is left to train on",
            fix="add training data, or correct the split column",
        )
    names = plan.data.classes
    absent = [name for i, name in enumerate(names) if not counts[i]]
    if plan.task == "classification" and absent:
        yield Problem(
            where="data",
            what=f"no training record is of class {', '.join(absent)}",
            fix="check the labels; a site that lacks a class can take part, but pulls the model",
            fatal=False,
        )
    yield from _check_columns(settings, folder, plan)


def _check_columns(settings: SiteSettings, folder: Path, plan: Plan) -> Iterator[Problem]:
    if settings.data.format != "table":
        return
    records = find_records(settings.data, folder / settings.data.folder, settings.task)
    header = set(table.read_rows(records[0].path)[0])
    theirs = {ours: name for name, ours in settings.data.columns.items()}
    for feature in plan.data.features:
        if theirs.get(feature, feature) not in header:
            yield Problem(
                where=records[0].path.name,
                what=f"has no column {theirs.get(feature, feature)!r}",
                fix="map it in data.columns if it has another name; else it counts as missing",
                fatal=False,
            )


def _check_disk(state: Path) -> Iterator[Problem]:
    home = next(p for p in (state, *state.resolve().parents) if p.exists())
    if not os.access(home, os.W_OK):
        yield Problem(
            where="state_folder", what=f"{home} is not writable", fix="change its owner or folder"
        )
    free = shutil.disk_usage(home).free
    if free < LEAST_FREE_BYTES:
        yield Problem(
            where="state_folder",
            what=f"{free / 2**30:.1f} GiB are free on its disk",
            fix=f"free some space: at least {LEAST_FREE_BYTES / 2**30:.0f} GiB",
            fatal=False,
        )


def _check_device(device: str) -> Iterator[Problem]:
    if not device.startswith("cuda"):
        return
    number = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        yield Problem(
            where="compute.device",
            what=f"{device} is asked for and torch finds {torch.cuda.device_count()} such devices",
            fix="install the driver and a torch with CUDA, or set device = 'cpu'",
        )


def _check_clock() -> Iterator[Problem]:
    if time.time() < EARLIEST_CLOCK:
        yield Problem(
            where="clock",
            what=f"this machine thinks it is {time.strftime('%Y-%m-%d')}",
            fix="set the clock: certificates and signatures depend on it",
        )


def _check_connection(connection: ConnectionSettings | None, folder: Path) -> Iterator[Problem]:
    if connection is None:
        yield Problem(
            where="connection",
            what="there is no [connection]",
            fix="add it before asterion site start; a simulation needs none",
            fatal=False,
        )
        return
    missing = False
    for field in ("root_certificate", "private_key"):
        path = folder / getattr(connection, field)
        if not path.is_file():
            missing = True
            yield Problem(
                where=f"connection.{field}",
                what=f"{path} does not exist",
                fix="put the file there, as the coordinator's operator gave it",
            )
        elif field == "private_key" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            mode = stat.S_IMODE(path.stat().st_mode)
            yield Problem(
                where=f"connection.{field}",
                what=f"{path} has mode {mode:04o}: others can read it",
                fix=f"chmod 600 {path}",
            )
    if not missing:
        yield from check_handshake(connection.address, folder / connection.root_certificate)


def check_handshake(address: str, root_certificate: Path) -> Iterator[Problem]:
    """Connect and shake hands as the daemon will: name, port, certificate."""
    host, _, port = address.rpartition(":")
    where = "connection.address"
    if not host or not port.isdecimal():
        yield Problem(where=where, what=f"got {address!r}", fix="write host:port")
        return
    try:
        context = ssl.create_default_context(cafile=str(root_certificate))
    except (ssl.SSLError, OSError):
        yield Problem(
            where="connection.root_certificate",
            what=f"{root_certificate} is not a PEM certificate",
            fix="ask the coordinator's operator for the authority's certificate",
        )
        return
    try:
        with (
            socket.create_connection((host, int(port)), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        yield Problem(
            where="connection.root_certificate",
            what=f"the certificate of {address} is not accepted: {error.verify_message}",
            fix="get the right authority certificate, or correct the address",
        )
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        yield Problem(
            where=where,
            what=f"{address} cannot be reached: {reason}",
            fix="check address, firewall and that the coordinator runs; only outbound is needed",
        )
