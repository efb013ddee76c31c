"""The command line of Adex."""

from adex.cli.command import main

__all__ = ["main"]
