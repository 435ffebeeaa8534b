"""Which engines this machine has, and which of them a bundle should run on.

What "auto" chooses for a bundle on a CPU that has OpenVINO, and IR for all its graphs:

- models that read images only: OpenVINO.
- models that generate text, in 8 bits, with a decoder of LARGE_BYTES or more: OpenVINO.
- others that generate text: ONNX Runtime.

OpenVINO prepares whatever it opens, and packs the weights in the first run; both have to pay by the first image. It is
slow at packing 4 bits, and opening 0.5B takes it as long as 2B. Seconds of CPU by parameters, ONNX Runtime's with a
cache in float32 / OpenVINO's, on 2 threads with AVX-512 VNNI and without AMX; the peak, in GB, is the decoder's alone:

              open         pack        a crop      730 tokens   16 more      a token      peak
  2B int8     2.3 / 1.5    0.2 / 2.4   4.6 / 3.0   12.5 / 9.3   0.53 / 0.54  0.19 / 0.15  2.11 / 1.84
  2B int4     1.6 / 1.8    0.1 / 7.2   4.7 / 3.0   12.9 / 8.9   0.48 / 0.49  0.16 / 0.11  1.53 / 1.26
  0.5B int8   0.7 / 1.9    0.0 / 0.8   2.1 / 1.5    3.8 / 3.2   0.13 / 0.25  0.05 / 0.05  0.80 / 0.72

So the first answer takes 2B in int8 0.83 of the time, and one about an image that is kept on disk 1.3 of it; 2B in int4
1.1 and 5. Models in floating point gain nothing, small ones lose: a token of one of 6 MB takes OpenVINO twice the time.
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
LARGE_BYTES = 800_000_000  # of a decoder's weights: between the 0.5B model's 370 MB and the 2B model's 1370


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


def lacks_ir(engine: str, manifest: Manifest) -> bool:
    """Whether a bundle's decoder is none for that engine: OpenVINO's keep their cache, which ONNX files do not."""
    decoder = manifest.graphs.get("decoder")
    return engine == "openvino" and decoder is not None and "openvino" not in decoder.compiled


def _gains_by_openvino(manifest: Manifest) -> bool:
    if not all("openvino" in graph.compiled for graph in manifest.graphs.values()):
        return False
    decoder = manifest.graphs.get("decoder")
    if decoder is None:
        return True
    weights = manifest.files.get(f"{decoder.file}.data")
    return decoder.precision == "int8" and weights is not None and weights.bytes >= LARGE_BYTES


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
