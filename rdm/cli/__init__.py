"""The command `rdm`."""

from rdm.cli.main import main

__all__ = ["main"]
