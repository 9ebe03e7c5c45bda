"""The example pictures of a report that was written before: ``result.json`` does not have them."""

import base64
from html.parser import HTMLParser
from pathlib import Path

from asterion_shared.reports.pictures import Picture

_ADDRESS = "data:image/png;base64,"


def pictures_of(path: Path) -> list[Picture]:
    """The pictures in a ``report.html``, with their titles and captions; none without the file."""
    if not path.is_file():
        return []
    reader = _Figures()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.pictures


class _Figures(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[Picture] = []
        self._png, self._title, self._caption = b"", "", ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        source = dict(attrs).get("src") or ""
        if tag == "img" and source.startswith(_ADDRESS):
            self._png = base64.b64decode(source.removeprefix(_ADDRESS))
        elif tag in ("figcaption", "strong"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "strong":
            self._inside = "figcaption"
        elif tag == "figcaption":
            title, caption = self._title.removesuffix("."), self._caption.strip()
            self.pictures.append(Picture(title, caption, self._png))
            self._title = self._caption = self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "strong":
            self._title += data
        elif self._inside == "figcaption":
            self._caption += data
