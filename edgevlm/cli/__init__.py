"""The command line; `main` is the entry point."""

from edgevlm.cli.app import main

__all__ = ["main"]
