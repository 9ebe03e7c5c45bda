"""Each line of the tables in docs/privacy.md names tests that exist."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(test_\w+)`")
MODES = ("### No `[privacy]`", "### Record or patient", "### Site, noise at the centre",
         "### Site, noise at the site", "### Secure sum")  # fmt: skip
PARTIES = ("coordinator", "another site", "network", "holder of the model")


def section() -> str:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    return text.split("## Who learns what\n")[1].split("\n## ")[0]


def defined() -> Counter[str]:
    found: Counter[str] = Counter()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found.update(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return found


def test_every_test_that_the_table_names_exists_once() -> None:
    named = set(NAMED.findall(section()))
    assert len(named) > 15
    assert {name: count for name, count in defined().items() if name in named} == dict.fromkeys(
        named, 1
    )


def test_every_party_of_every_mode_has_a_line_and_every_line_a_test() -> None:
    for mode in MODES:
        table = section().split(mode)[1].split("\n#")[0]
        lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
        assert tuple(line.split(" | ")[0].removeprefix("| ") for line in lines) == PARTIES
        assert all(NAMED.search(line) for line in lines)


def test_no_test_that_was_written_for_the_table_is_left_out_of_it() -> None:
    for path in ("privacy/test_who_learns_what.py", "link/test_who_learns_what_link.py"):
        text = (ROOT / "tests" / path).read_text(encoding="utf-8")
        written = set(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE))
        assert len(written) > 5
        assert written <= set(NAMED.findall(section())), path
