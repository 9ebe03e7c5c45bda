"""The Flower bundle: a project file and a note on the licence. No code travels.

Its components name modules that every machine has installed already. Both ends make it from this
one definition, and each takes no other: its bytes depend on the version of asterion alone.
"""

import hashlib
import io
import zipfile

from asterion_shared import __version__

NAME = "asterion/asterion"
"""How Flower calls the bundle: publisher and project."""

LICENCE = b"""\
SPDX-License-Identifier: Apache-2.0

This bundle holds no code. It names modules of Asterion, which is licensed under the Apache License,
Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
"""
_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3


def project(version: str = __version__) -> str:
    """The project file, TOML.

    Args:
        version: of asterion.
    """
    return f"""\
[project]
name = "asterion"
version = "{version}"
description = "Asterion over Flower"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41.0,<1.42"]

[tool.flwr.app]
publisher = "asterion"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["/LICENSE"]

[tool.flwr.app.components]
serverapp = "asterion_server.app:app"
clientapp = "asterion_client.app:app"

[tool.flwr.app.config]
run = ""
"""


def bundle(version: str = __version__) -> bytes:
    """The bundle as Flower submits it; the same bytes on every machine.

    It is written here and not by flwr, whose builder formats the project file anew with a library
    of its own and marks the entries with the system it runs on: two sites could disagree.

    Args:
        version: of asterion.
    """
    files = {"pyproject.toml": project(version).encode(), "LICENSE": LICENCE}
    # flwr lists each file with its size in bits.
    lines = [
        f"{name},{hashlib.sha256(content).hexdigest()},{8 * len(content)}"
        for name, content in files.items()
    ]
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (files | {".info/CONTENT": "\n".join(lines).encode()}).items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system, entry.external_attr = _UNIX, 0o600 << 16
            archive.writestr(entry, content)
    return whole.getvalue()


def bundle_sha256() -> str:
    """SHA-256 of this installation's bundle, as Flower names it."""
    return hashlib.sha256(bundle()).hexdigest()
