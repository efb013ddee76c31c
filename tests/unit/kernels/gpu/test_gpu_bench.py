"""What measures a GPU runs through on a machine without one, and with little installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[4] / "benchmarks/gpu_bench.py"
# What a machine with a GPU may lack.
LACKING = [
    *("aiohttp", "boto3", "google", "grpc", "huggingface_hub", "httpx", "jinja2", "llguidance"),
    *("matplotlib", "opentelemetry", "peft", "prometheus_client", "tokenizers", "transformers"),
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({LACKING!r}))\n"
    (folder / "sitecustomize.py").write_text(blocked)
    path = os.pathsep.join([str(folder), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--out", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_every_part_is_measured_and_reported(tmp_path: Path) -> None:
    done = run(tmp_path, "--interpret-tiny")
    assert done.returncode == 0, done.stderr[-4000:]
    (page,) = tmp_path.glob("gpu-*.md")
    text = page.read_text()
    headings = "Decode steps", "Low-rank terms alone", "Page-in", "Draws", "Throughput", "Profile"
    for heading in headings:
        assert f"### {heading}" in text
    assert "| 3 / 2 |" in text
    # An interpreted step is far from its floor, and the page says so.
    assert "- 1 / 0 over its floor" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would be measured")
def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "CUDA is needed" in done.stderr
    assert not list(tmp_path.glob("*.md"))
