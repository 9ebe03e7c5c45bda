"""The wheels, as an institution gets them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three of them."""
    out = tmp_path_factory.mktemp("wheels")
    for folder in ("shared", "client", "."):
        words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
        done = subprocess.run(
            [*words, str(ROOT / folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return out


def write_patients(path: Path, first: int) -> None:
    """A table of sixty patients."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{40 + i % 30},{100 + 7 * i % 60},{'ill' if i % 30 > 14 else 'well'},p{i}"
        for i in range(first, first + 60)
    ]
    path.write_text("\n".join(["age,pressure,label,patient", *rows]) + "\n")
