"""The command line: one file per verb."""

from ckptd.cli.app import main

__all__ = ["main"]
