"""The pages of the API reference: one a package, written anew at each build."""

import importlib
import pkgutil
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

PACKAGES = {
    "asterion_shared": "what both sides agree on",
    "asterion_client": "inside a hospital or an observatory",
    "asterion_server": "the coordinator",
    "asterion_sim": "many virtual sites on one machine",
}
LEFT_OUT = ("link_pb2", "link_pb2_grpc", "__main__")


def write_api(folder: Path, *, members: bool) -> None:
    """Write a page for each package and its modules, and an index.

    With members every module is imported here: Sphinx imports with ``TYPE_CHECKING`` set, which
    some of the libraries that are used do not take.

    Args:
        folder: its content is replaced.
        members: whether the pages hold the docstrings, or the modules' names alone.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listed = []
    for package, words in PACKAGES.items():
        found = sorted(
            _modules(package, imported=members), key=lambda name: (name.rpartition(".")[0], name)
        )
        for parent, modules in groupby(found, lambda name: name.rpartition(".")[0]):
            listed.append(parent)
            title = f"{parent}: {words}" if parent == package else parent
            (folder / f"{parent}.md").write_text(
                _page(title, modules, members=members), encoding="utf-8"
            )
    lines = "\n".join(listed)
    index = f"# API reference\n\n```{{toctree}}\n:maxdepth: 1\n\n{lines}\n```\n"
    (folder / "index.md").write_text(index, encoding="utf-8")


def _page(title: str, modules: Iterator[str], *, members: bool) -> str:
    held = "\n```{{eval-rst}}\n.. automodule:: {0}\n   :members:\n```\n" if members else ""
    parts = [f"## {name}\n{held.format(name)}" for name in modules]
    return "\n".join([f"# {title}\n", *parts])


def _modules(package: str, *, imported: bool) -> Iterator[str]:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not found.ispkg and found.name.rpartition(".")[2] not in LEFT_OUT:
            if imported:
                importlib.import_module(found.name)
            yield found.name
