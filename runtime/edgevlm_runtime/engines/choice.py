"""Which engines this machine has, and which of them a bundle should run on.

What "auto" chooses for a bundle on a CPU that has OpenVINO, and IR for all its graphs:

- models that read images only: OpenVINO.
- models that generate text, in 8 or 4 bits, with a decoder of LARGE_BYTES or more: OpenVINO. Its speed over ONNX
  Runtime's on 2 threads with AVX-512 VNNI, 730 tokens read at once, then a question of 16, then single ones:
      2B int8 1.40, 0.9, 1.19; 2B int4 1.30, 1.0, 1.23; 0.5B int8 1.29, 0.7, 1.17; a crop of the 2B model 1.45.
- those with a smaller one: ONNX Runtime. An operator costs OpenVINO more, whatever its size: single tokens of nano
  take it twice the time.
- those in floating point: ONNX Runtime; OpenVINO has nothing to compress.

OpenVINO packs weights into memory of its own beside the file's pages, which the system may take back, but which count
as the process's: a peak of 4.1 GB for the 2B model in int8, where ONNX Runtime takes 2.3.
"""

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
LARGE_BYTES = 100_000_000  # of a decoder's weights: between nano's 6 MB and the 0.5B model's 370


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
    return "openvino" if _gains_by_openvino(manifest) and "openvino" in installed_engines() else "onnxruntime"


def _gains_by_openvino(manifest: Manifest) -> bool:
    if not all("openvino" in graph.compiled for graph in manifest.graphs.values()):
        return False
    decoder = manifest.graphs.get("decoder")
    if decoder is None:
        return True
    weights = manifest.files.get(f"{decoder.file}.data")
    return decoder.precision in ("int8", "int4") and weights is not None and weights.bytes >= LARGE_BYTES


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
