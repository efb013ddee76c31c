"""What must happen before torch is loaded, which only a fresh process can tell."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
import adex_worker
assert "torch" not in sys.modules, "too late: torch has read its environment"
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("wanted", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_do_not_spin_unless_the_operator_says_so(
    wanted: str | None, policy: str
) -> None:
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if wanted is not None:
        env["OMP_WAIT_POLICY"] = wanted
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=env
    )
    assert ran.stdout.strip() == policy
