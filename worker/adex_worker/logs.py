"""The log of a worker's processes."""

import logging

from adex_proto import logs

# A line for each file that a source is asked for says nothing to an operator.
_CHATTY = ("httpx", "httpx2", "httpcore", "urllib3", "filelock", "boto3", "botocore")


def configure_logging(level: str, style: logs.LogFormat) -> None:
    """Write what is at least `level` to standard error, and of libraries what is a warning."""
    logs.configure_logging(level, style)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
