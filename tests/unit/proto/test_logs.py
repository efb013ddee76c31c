"""Lines of a log, beside libraries that write to the same place themselves."""

import subprocess
import sys

SAYS = """
from huggingface_hub import hf_hub_download
import logging
from adex_proto.logs import LogFormat, configure_logging

configure_logging("INFO", LogFormat.TEXT)
logging.getLogger("huggingface_hub.utils._http").warning("the hub is slow")
"""


def test_a_library_that_writes_itself_is_heard_once() -> None:
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, check=True)
    [line] = done.stderr.splitlines()
    assert line.endswith("WARNING huggingface_hub.utils._http: the hub is slow")
