"""The kernels run where there is a GPU on it, and elsewhere in Triton's interpreter."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not made for this platform")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("there is a GPU, but torch cannot use it", allow_module_level=True)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")
