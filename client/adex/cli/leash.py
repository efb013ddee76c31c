"""Become a module's process that dies with the one that started it.

Run as a script: `python leash.py PARENT_PID MODULE ARGUMENTS...`. On Linux the kernel is asked to
kill this process when its parent ends, however that ends, and the module then takes its place;
the request outlives the exec. Elsewhere only the launcher's orderly end stops its children.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the module."""
    parent, module, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before the kernel was asked; nobody would tell us any more.
        if os.getppid() != int(parent):
            sys.exit(1)
    # -P: the module comes from where it is installed, never from the folder we happen to be in.
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - there is no shell to need


if __name__ == "__main__":
    main()
