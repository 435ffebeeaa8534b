"""Versions of all that takes part."""

from __future__ import annotations

from importlib import metadata

from benchmarks.peers import setup

_PACKAGES = ("edgevlm", "onnxruntime", "openvino", "torch", "transformers", "numpy")


def versions() -> dict[str, str]:
    """By package, of those that are installed; llama.cpp's with the compiler that built it."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found if setup.missing() else {**found, setup.PACKAGE: setup.version()}
