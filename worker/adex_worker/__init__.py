"""Holds the base model, its KV cache and the adapters, and carries out steps."""

import os

# OpenMP reads this once, when torch loads it, so it must be set before anything here imports torch.
# By default its threads spin while they wait. Where something else needs a core as well, and the
# event loop and the scheduler always do, a spinning thread keeps the one it waits for from running:
# two threads on two cores made a step of 3 ms take 100 ms and more.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
