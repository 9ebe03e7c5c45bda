"""What a console's page is: a function from who looks to what is shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from asterion_shared.console.sessions import Session


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that came with a form.

    Attributes:
        name: as the browser told it; never used as a path.
        content: the whole file.
    """

    name: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Somebody who has signed in, at a page.

    Attributes:
        session: theirs.
        path: what stands in the page's path, by name.
        form: what a form sent, by name; of several values the list.
        uploads: files that came with it; a field without a file is not there.
    """

    session: Session
    path: Mapping[str, str]
    form: Mapping[str, list[str]] = field(default_factory=dict)
    uploads: Mapping[str, Upload] = field(default_factory=dict)

    def said(self, name: str) -> str:
        """A field of the form; empty when it is not there."""
        values = self.form.get(name, [])
        return values[-1].strip() if values else ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A page from a template.

    Attributes:
        template: its name.
        values: that it shows.
        status: of HTTP.
    """

    template: str
    values: Mapping[str, Any]
    status: int = 200


@dataclass(frozen=True, slots=True)
class Goto:
    """Another page comes, and says once what was done."""

    path: str
    said: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """A file as it is; ``policy`` is its Content-Security-Policy."""

    content: bytes
    content_type: str
    policy: str


Answer = Shown | Goto | Sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One path of a console.

    Attributes:
        path: as Starlette writes it, such as ``/runs/{run}``.
        show: answers GET; None: nothing is there to see.
        act: answers POST, of people who may act; None: nothing can be done.
        stamp: changes when the page would; then open pages of it are shown anew. None: they stay.
    """

    path: str
    show: Callable[[Visit], Answer] | None = None
    act: Callable[[Visit], Answer] | None = None
    stamp: Callable[[Visit], str] | None = None


@dataclass(frozen=True, slots=True)
class Tab:
    """An entry of the menu."""

    path: str
    name: str


class NotThereError(Exception):
    """The page is about something that does not exist; told as 404 with these words."""
