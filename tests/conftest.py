"""For all tests."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import monai  # noqa: F401
import pytest

# Large packages, loaded once: a run whose process lacks them has a child build its network, and
# MONAI warns of what it finds in other packages.
import asterion_shared.networks  # noqa: F401
from asterion_shared.command_line import main


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


@pytest.fixture
def asterion(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Carries out a command in this process; it never ends in a traceback."""

    def run(*words: object, typed: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        monkeypatch.setattr(sys, "argv", ["asterion", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return run
