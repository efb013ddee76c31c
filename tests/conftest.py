"""What must hold before any test is imported."""

import os
from pathlib import Path

# Triton decides between a device and its interpreter when it is first imported, by whomever.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
