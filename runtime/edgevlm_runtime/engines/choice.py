"""Which engines this machine has, and which of them a bundle should run on.

What "auto" chooses for a bundle on a CPU that has OpenVINO, and IR for all its graphs:

- models that read images only: OpenVINO.
- models that generate text, in 8 bits, with a decoder of LARGE_BYTES or more: OpenVINO.
- others that generate text: ONNX Runtime.

OpenVINO is faster at images and prompts and slower at single tokens, and packs the weights in the first run of every
process: quickly those in 8 bits, slowly those in 4. On 2 threads with AVX-512 VNNI and without AMX `python -m
benchmarks.peers` measured by parameters (ONNX Runtime / OpenVINO), with 64 tokens an answer and, where the process is
new, with loading and packing:

                      2B int8        2B int4
  first, new process  15.4 / 14.7    13.1 / 15.8 s
  another image       12.8 / 11.7    11.7 / 10.1 s
  kept, new process    7.0 /  8.2     4.3 /  9.6 s
  peak with one image 2.15 / 2.53    1.55 / 1.93 GB

Models in floating point gain nothing, and small ones lose: opening 0.5B takes OpenVINO as long as 2B.

"mixed" takes images to OpenVINO and tokens to ONNX Runtime. "auto" never means it, because it takes more memory, which
int4 is chosen to save. `edgevlm bench` measured in int4, with 64 tokens an answer (ONNX Runtime / OpenVINO / mixed), by
parameters of the image encoder and of the decoder:

                      0.4B and 1.4B             1.1B and 2.8B
  first, new process  12.2 / 15.4 / 11.7        15.3 / 22.4 / 14.6 s
  another image       10.4 /  9.0 /  9.9        12.5 /  9.9 /  9.2 s
  peak memory          1.9 /  2.0 /  2.1         2.8 /  2.8 /  3.0 GB
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from contextlib import suppress

from edgevlm_runtime.errors import EngineError
from edgevlm_runtime.kinds import IMAGE_ROLES, Role
from edgevlm_runtime.manifest import Manifest, NpuSpec

# Each engine's package as Python imports it, and how to get it.
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "qnn": "onnxruntime_qnn"}
INSTALL = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": 'pip install "edgevlm[openvino]"',
    "qnn": 'pip install "edgevlm[npu]"',
    "mixed": 'pip install "edgevlm[openvino]"',
}
_MIXED_OF = ("onnxruntime", "openvino")
MIXED = "mixed"  # OpenVINO for images, ONNX Runtime for tokens: each at what it is faster at, with one copy of weights
ENGINES = ("auto", *PACKAGES, MIXED)
LARGE_BYTES = 800_000_000  # of a decoder's weights: between the 0.5B model's 370 MB and the 2B model's 1370


def installed_engines() -> tuple[str, ...]:
    """The engines whose packages are installed here; none is imported."""
    return tuple(engine for engine, package in PACKAGES.items() if _is_installed(package))


def usable_engines(manifest: Manifest) -> list[str]:
    """The engines that are installed here and can run a bundle on the CPU."""
    installed = set(installed_engines())
    needs = {"onnxruntime": {"onnxruntime"}, "openvino": {"openvino"}, MIXED: set(_MIXED_OF)}
    return [engine for engine, engines in needs.items() if engines <= installed and unfit(engine, manifest) is None]


def engine_of(engine: str, role: Role) -> str:
    """Which engine runs a graph of that role."""
    if engine != MIXED:
        return engine
    return "openvino" if role in IMAGE_ROLES else "onnxruntime"


def engine_version(engine: str) -> str:
    """An engine's name and, where its package is in use, the package's version."""
    if engine == MIXED:
        return f"{MIXED} ({', '.join(map(engine_version, _MIXED_OF))})"
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


def unfit(engine: str, manifest: Manifest) -> str | None:
    """Why an engine can not run a bundle on the CPU, in one line with what to do; None where it can.

    OpenVINO's decoders keep their cache, which ONNX files do not.
    """
    graphs = manifest.graphs
    if engine == MIXED and "decoder" not in graphs:
        return f"{manifest.name} writes no text, so that there is nothing to mix; use --engine openvino"
    needed: Mapping[str, tuple[Role, ...]] = {"openvino": ("decoder",), MIXED: IMAGE_ROLES}
    for role in needed.get(engine, ()):
        if role in graphs and "openvino" not in graphs[role].compiled:
            return (
                f"{manifest.name} has no OpenVINO IR of its {role} graph; export it with --openvino, or use "
                "--engine onnxruntime"
            )
    return None


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
