"""Every error that EdgeVLM raises on purpose.

    EdgeVLMError                exit 1
    ├── InvalidOption           exit 2   an option or argument that can not be used
    ├── BundleError             exit 3
    │   ├── ModelNotFound                no bundle of that name or at that path
    │   └── DamagedBundle                a file missing, altered, outside the folder, or a manifest that can not be read
    ├── BadImage                exit 4   bytes that are not an image within the limits
    ├── FidelityError           exit 5   a bundle that does not answer as its original does
    ├── UnsupportedTask                  the model has no graph for what was asked
    ├── ContextOverflow                  prompt and answer do not fit the model's context
    ├── EngineError                      the inference engine is missing or failed
    ├── CheckpointError                  tensors missing, extra or misshapen; a file that can not be read
    └── ExportError                      the export can not go on: disk full, output exists, tools missing

A message is one line that says what, where (path, tensor, shape) and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeVLMError(Exception):
    """Base of all errors below; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class InvalidOption(EdgeVLMError):
    """An option or argument is unknown, out of range or contradicts another."""

    exit_code = 2


class BundleError(EdgeVLMError):
    """A model can not be opened."""

    exit_code = 3


class ModelNotFound(BundleError):
    """There is no bundle of that name or at that path."""


class DamagedBundle(BundleError):
    """A bundle's file is missing or altered, or its manifest can not be read."""


class BadImage(EdgeVLMError):
    """What was given as an image can not be decoded within the limits."""

    exit_code = 4


class FidelityError(EdgeVLMError):
    """A bundle falls short of the model it was exported from."""

    exit_code = 5


class UnsupportedTask(EdgeVLMError):
    """The model has no graph for what was asked."""


class ContextOverflow(EdgeVLMError):
    """The prompt and its answer do not fit the model's context."""


class EngineError(EdgeVLMError):
    """The inference engine is not installed, or failed on a graph."""


class CheckpointError(EdgeVLMError):
    """A checkpoint has missing, extra or misshapen tensors, or can not be read."""


class ExportError(EdgeVLMError):
    """An export can not go on; nothing half-written stays."""
