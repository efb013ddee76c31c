"""The committed protobuf code is what the .proto files say, by the oldest supported compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
COMPILER = Path(sys.prefix) / "protoc"
SOURCES = sorted(path.relative_to(PROTO) for path in PROTO.rglob("*.proto"))


@pytest.mark.skipif(not COMPILER.is_dir(), reason="no grpcio-tools here: `make setup` brings it")
def test_the_generated_code_is_fresh(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}", *outputs]
        + [str(PROTO / source) for source in SOURCES],
        check=True,
        env={**os.environ, "PYTHONPATH": str(COMPILER)},
    )
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*.py*"))
    committed = sorted(path.relative_to(PROTO) for path in PROTO.rglob("*_pb2*.py*"))
    committed = [path for path in committed if path.suffix in {".py", ".pyi"}]
    assert made == committed, "run `make protos` and commit what it wrote or removed"
    stale = [str(p) for p in made if (tmp_path / p).read_bytes() != (PROTO / p).read_bytes()]
    assert not stale, f"run `make protos` and commit the result: {stale}"
