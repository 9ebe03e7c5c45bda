"""The tests that security.md, threats.md and comparison.md name exist."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = re.compile(r"`(tests/[\w/.]+)`")
NAME = re.compile(r"`(test_\w+)`")


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def defined(below: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in (ROOT / below).rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        found.update(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE))
    return found


def rows(text: str, heading: str) -> list[str]:
    """Of the table below a heading, without its head."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize(
    ("name", "below"),
    [("security.md", "tests"), ("threats.md", "tests/hostile"), ("comparison.md", "tests")],
)
def test_every_test_that_is_named_exists(name: str, below: str) -> None:
    text, there = document(name), defined(below)
    paths, names = set(PATH.findall(text)), set(NAME.findall(text))
    assert len(names) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {test: there[test] for test in names} == dict.fromkeys(names, 1)


@pytest.mark.parametrize("party", ["a site", "a coordinator and its operators", "a third party"])
def test_every_promise_has_a_test_that_is_a_file_or_a_function(party: str) -> None:
    lines = rows(document("security.md"), f"Promises to {party}")
    assert len(lines) > 2
    for line in lines:
        named = [*NAME.findall(line), *(p for p in PATH.findall(line) if p.endswith(".py"))]
        assert named, line


@pytest.mark.parametrize("who", ["operator or coordinator", "site"])
def test_every_attack_has_a_test(who: str) -> None:
    lines = rows(document("threats.md"), f"A hostile {who}")
    assert len(lines) > 5
    last = [line.rstrip(" |").rpartition("| ")[2] for line in lines]
    assert all(NAME.search(cell) or PATH.search(cell) or cell == "the same" for cell in last)
