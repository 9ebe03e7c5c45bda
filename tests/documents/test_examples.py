"""Every example of the guides runs; the tutorials' run when the documentation is built."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
from examples import FENCE, ExampleError, Examples

ROOT = Path(__file__).parents[2]

DOCUMENTS = sorted(
    path
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    if FENCE.search(path.read_text()) and path.parent.name != "tutorials"
)


@pytest.mark.live
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_example_runs(document: Path, tmp_path: Path) -> None:
    with Examples(tmp_path) as examples:
        for kind, body in FENCE.findall(document.read_text(encoding="utf-8")):
            examples.run(kind, body)


def test_an_example_that_fails_is_seen(tmp_path: Path) -> None:
    with Examples(tmp_path) as examples:
        assert examples.run("console", "$ echo one\nwas\n$ exit 3  # exits 3\n") == (
            "$ echo one\none\n$ exit 3\n"
        )
        assert examples.run("toml", "# a/b.toml\nx = 1\n") == "# a/b.toml\nx = 1\n"
        assert examples.run("console", "$ cat a/b.toml\n").endswith("x = 1\n")
        with pytest.raises(ExampleError, match="ended with 1"):
            examples.run("console", "$ false\n")
        with pytest.raises(ExampleError, match="ended with 0"):
            examples.run("console", "$ true  # exits 1\n")
        with pytest.raises(ExampleError, match="Traceback"):
            examples.run("console", "$ echo Traceback >&2\n")
        with pytest.raises(ExampleError, match="ended at once"):
            examples.run("console", "$ true &\n")
