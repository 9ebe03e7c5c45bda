"""The Flower bundle: a project file and a licence. No code travels from the coordinator.

Its components name modules that every machine has installed already.
"""

from importlib.metadata import distribution
from pathlib import Path

from asterion_server.flower_server_compat import build_fab
from asterion_shared import __version__
from asterion_shared.errors import FileProblemError

PROJECT = f"""\
# No code travels: the components below are installed at the coordinator and at every site.
[project]
name = "asterion"
version = "{__version__}"
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


def bundle() -> bytes:
    """The bundle as Flower submits it; the same bytes for the same version.

    Raises:
        FileProblemError: the installation has lost its licence file.
    """
    return build_fab({"pyproject.toml": PROJECT.encode(), "LICENSE": _licence()})


def _licence() -> bytes:
    found = distribution("asterion")
    for name in ("LICENSE", "licenses/LICENSE"):
        text = found.read_text(name)
        if text:
            return text.encode()
    # An editable install lists no licence; the file then stands in the checkout.
    path = Path(__file__).parents[2] / "LICENSE"
    if not path.exists():
        raise FileProblemError(path, "no such file", "install asterion again")
    return path.read_bytes()
