"""The pages of the API reference: one a module, written anew at each build."""

import pkgutil
import shutil
from importlib.util import find_spec
from pathlib import Path

PACKAGES = {
    "asterion_shared": "what both sides agree on",
    "asterion_client": "inside a hospital or an observatory",
    "asterion_server": "the coordinator",
    "asterion_sim": "many virtual sites on one machine",
}
GENERATED = ("link_pb2", "link_pb2_grpc")


def write_api(folder: Path) -> None:
    """Write a page for each module of the four packages, and an index of each package.

    Args:
        folder: its content is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package, words in PACKAGES.items():
        modules = _modules(package)
        for module in modules:
            page = f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"
            (folder / f"{module}.md").write_text(page, encoding="utf-8")
        listed = "\n".join(modules)
        (folder / f"{package}-index.md").write_text(
            f"# {package}: {words}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n",
            encoding="utf-8",
        )
    listed = "\n".join(f"{package}-index" for package in PACKAGES)
    (folder / "index.md").write_text(
        f"# API reference\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n",
        encoding="utf-8",
    )


def _modules(package: str) -> list[str]:
    spec = find_spec(package)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    found = pkgutil.walk_packages(places, prefix=f"{package}.")
    return [m.name for m in found if m.name.rpartition(".")[2] not in (*GENERATED, "__main__")]
