"""What must hold before any test is imported."""

import os
from pathlib import Path

from hypothesis import settings

# What an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Triton decides between a device and its interpreter when it is first imported, by whomever.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
