"""Which engines this machine has, and which of them a bundle should run on."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress

from edgevlm_runtime.errors import EngineError
from edgevlm_runtime.manifest import Manifest, NpuSpec

# Each engine's package as Python imports it, and how to get it.
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "qnn": "onnxruntime_qnn"}
INSTALL = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": 'pip install "edgevlm[openvino]"',
    "qnn": 'pip install "edgevlm[npu]"',
}
ENGINES = ("auto", *PACKAGES)


def installed_engines() -> tuple[str, ...]:
    """The engines whose packages are installed here; none is imported."""
    return tuple(engine for engine, package in PACKAGES.items() if _is_installed(package))


def engine_version(engine: str) -> str:
    """An engine's name and, where its package is in use, the package's version."""
    version = getattr(sys.modules.get(PACKAGES.get(engine, engine)), "__version__", None)
    return engine if version is None else f"{engine} {version}"


def finds_npu(engine: str) -> bool:
    """Whether an engine is installed and finds an NPU that it can run graphs on."""
    with suppress(ImportError, OSError, RuntimeError, EngineError):  # not installed, or without its libraries
        if engine == "openvino":
            from edgevlm_runtime.engines import openvino

            return openvino.has_npu()
        if engine == "qnn":
            from edgevlm_runtime.engines import qnn

            return qnn.has_npu()
    return False


def choose(manifest: Manifest | None) -> str:
    """What "auto" means for a bundle: the NPU that it was compiled for, else its fastest engine installed here.

    Raises:
        EngineError: it was compiled for an NPU that this machine does not have.
    """
    if manifest is None:
        return "onnxruntime"
    if manifest.npu is not None and manifest.npu.engine == "qnn":
        if not finds_npu("qnn"):
            raise EngineError(_no_npu(manifest.name, manifest.npu))
        return "qnn"
    compiled = all("openvino" in graph.compiled for graph in manifest.graphs.values())
    return "openvino" if compiled and "openvino" in installed_engines() else "onnxruntime"


def _no_npu(name: str, npu: NpuSpec) -> str:
    engines = [
        "qnn (only the simulator: --engine qnn)" if engine == "qnn" else engine for engine in installed_engines()
    ]
    return (
        f"{name} is compiled for {npu.target}, an NPU that this machine does not have; its engines: "
        f"{', '.join(engines) or 'none'}; --engine onnxruntime runs the uncompiled graph on the CPU"
    )


def _is_installed(package: str) -> bool:
    with suppress(ImportError, ValueError):  # ValueError: imported, and without a spec
        return importlib.util.find_spec(package) is not None
    return False
