"""The kernels compile for real GPUs, with none at hand, to what was meant.

Triton's interpreter runs what its compiler would refuse, and knows nothing of registers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[4] / "benchmarks/gpu_compiled.py"
# What a program may have of shared memory, by compute capability.
SHARED_MAX = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
KERNELS = {"_shrink", "_expand", "_attend", "_merge", "_add_norm", "_rotate_write", "_gate"}
KERNELS |= {"_draw"}
# They stream the matrices, keys and values.
STREAMING = {"_shrink", "_expand", "_attend"}
# Between a few registers and so many that a tile does not fit.
SPILLED_MAX = 64

pytestmark = pytest.mark.slow


def compiled(models: str, dtype: str, capability: int, cache: Path) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), "--models", *models.split(), "--dtypes", dtype]
    command += ["--capabilities", str(capability), "--json"]
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 2:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("models", "dtype", "capability"),
    [
        ("8b", "bfloat16", 80),
        ("8b gemma-2-2b", "bfloat16", 90),
        ("8b", "bfloat16", 100),
        ("8b", "float32", 90),
    ],
)
def test_every_kernel_compiles_fits_and_loads_widely_and_once(
    models: str, dtype: str, capability: int, tmp_path: Path
) -> None:
    kernels = compiled(models, dtype, capability, tmp_path)
    for model in models.split():
        names = [kernel["kernel"] for kernel in kernels if kernel["model"] == model]
        assert set(names) == KERNELS
        # Never again for another layer or step, which would wait for the compiler: only for sums
        # that divide into whole parts or not, for few and many rows, for keys split and whole.
        assert names.count("_shrink") <= 2
        assert names.count("_expand") <= 4
        assert names.count("_attend") == 2
        assert names.count("_rotate_write") == 1
        assert names.count("_draw") == 1
    for kernel in kernels:
        assert kernel["spilled"] <= SPILLED_MAX, kernel
        assert kernel["shared"] <= SHARED_MAX[capability], kernel
        if kernel["kernel"] == "_draw":
            # A row's logits sixteen bytes at once; its flag and its parameters are single.
            assert kernel["load_bytes"]["16"] > 20, kernel
            assert kernel["spilled"] == 0, kernel
        if kernel["kernel"] in STREAMING:
            # Sixteen bytes a thread at once; less than a word would be element by element.
            assert "16" in kernel["load_bytes"], kernel
            assert "2" not in kernel["load_bytes"], kernel
