"""The documentation site: ``make docs``. Tutorials are carried out as it is built.

``make docs-check`` builds it with the tag ``quick``: tutorials are not carried out, and the pages
of the API hold no docstrings.
"""

import functools
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_origin

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util import inspect, typing

from asterion_shared import __version__

sys.path.insert(0, str(Path(__file__).parent))
from api import write_api
from examples import FENCE, Examples

project = "Asterion"
author = "the Asterion project"
project_copyright = "the Asterion project, Apache-2.0"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["site", "_build"]
html_theme = "furo"
html_title = "Asterion"
html_static_path = ["_static"]
html_css_files = ["asterion.css"]
html_show_sourcelink = False
html_copy_source = False
autodoc_default_options = {"exclude-members": "model_config"}  # pydantic's, the same everywhere
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else an attribute with a docstring is described twice
suppress_warnings = [
    "docutils",  # of patterns in the types of constants, which are taken for references
    "myst.xref_missing",  # of folders; tests/documents/test_links.py looks at every link
    "ref.python",  # one name in several modules, in docstrings
]


_NO_MARKUP = re.compile(r"(``.*?``)|(\*(?=\w+(?![\w*]))|\|)")


def _carry_out(app: Sphinx, name: str, source: list[str]) -> None:
    """Run a tutorial's commands and put what they printed below them."""
    if not name.startswith("tutorials/"):
        return
    with tempfile.TemporaryDirectory() as folder, Examples(Path(folder)) as examples:

        def told(block: re.Match[str]) -> str:
            kind, body = block.groups()
            printed = examples.run(kind, body).replace(folder, "~")
            return f"```{'text' if kind == 'console' else kind}\n{printed}```"

        source[0] = FENCE.sub(told, source[0])


def _as_text(*given: object) -> None:
    """Shapes such as ``(N, *S)`` and sizes such as ``|x|`` in docstrings are no markup."""
    lines = given[-1]
    if isinstance(lines, list):
        lines[:] = [_NO_MARKUP.sub(lambda m: m[1] or f"\\{m[2]}", line) for line in lines]


def _without_limits(write: Callable[..., str]) -> Callable[..., str]:
    """A type as a reader needs it: ``Annotated`` without what pydantic checks."""

    @functools.wraps(write)
    def bare(annotation: object, *args: object, **options: object) -> str:
        while get_origin(annotation) is Annotated:
            annotation = annotation.__origin__  # type: ignore[attr-defined]  # what Annotated has
        return write(annotation, *args, **options)

    return bare


# Before autodoc is loaded, which takes these by name.
typing.restify = _without_limits(typing.restify)
typing.stringify_annotation = _without_limits(typing.stringify_annotation)
inspect.stringify_annotation = typing.stringify_annotation


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    quick = app.tags.has("quick")
    write_api(Path(app.srcdir) / "api", members=not quick)
    app.add_lexer("hand", TextLexer)  # what a guide's reader does away from the terminal
    if not quick:
        app.connect("source-read", _carry_out)
    app.connect("autodoc-process-docstring", _as_text)
