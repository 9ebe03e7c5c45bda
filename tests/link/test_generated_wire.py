"""The generated modules are those of `link.proto`."""

import subprocess
import sys
from pathlib import Path

import pytest

from asterion_shared.link import link_pb2 as wire

SHARED = Path(__file__).parents[2] / "shared"
FOLDER = Path("asterion_shared") / "link"


def test_the_generated_modules_are_what_the_compiler_makes(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    words = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs]
    subprocess.run([*words, str(FOLDER / "link.proto")], cwd=SHARED, check=True)
    for name in ("link_pb2.py", "link_pb2.pyi", "link_pb2_grpc.py"):
        made = (tmp_path / FOLDER / name).read_text()
        assert (SHARED / FOLDER / name).read_text() == made, f"{name} differs: run make proto"
    assert {path.name for path in (SHARED / FOLDER).glob("link_pb2*")} == {
        path.name for path in (tmp_path / FOLDER).iterdir()
    }


# Numbers that are on disks and lines already: changing one needs a new WIRE_FORMAT.
FIELDS = {
    "Hello": "format=1 version=2 state_id=3 instance_id=4",
    "Notice": "welcome=1 order=2 withdrawn=3 beat=4",
    "Order": "key=1 run=2 round=3 message_type=4 submission=5 attempt=6 seconds_left=7 content=8",
    "Parcel": "parts=1 lossless=2",
    "Part": "size=1 inline=2 chunks=3",
    "Chunk": "key=1 part=2 number=3 packed=4 data=5",
    "Report": "key=1 content=2",
    "Array": "name=1 dtype=2 shape=3 stype=4 part=5",
}


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_field_numbers_stay(name: str) -> None:
    fields = wire.DESCRIPTOR.message_types_by_name[name].fields
    assert " ".join(f"{field.name}={field.number}" for field in fields) == FIELDS[name]
