"""Retrieval-augmented diffusion: a small network, and a database of photographs that it looks
things up in."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("retrieval-diffusion")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
