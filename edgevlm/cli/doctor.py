"""doctor: what this machine offers, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import edgevlm
from edgevlm.cli.flags import AsJson, Verbose
from edgevlm.cli.output import emit_json, emit_table
from edgevlm.home import BUILT_IN, BUILT_IN_PATH, home, installed
from edgevlm_runtime.errors import EdgeVLMError

_RUNTIME_PACKAGES = ("numpy", "pillow", "tokenizers")
# Each engine's package as pip calls it, and what it is for.
_ENGINE_PACKAGES = {
    "onnxruntime": ("onnxruntime", "the engine of all models"),
    "openvino": ("openvino", "faster image models on many processors, and Intel NPUs"),
    "qnn": ("onnxruntime-qnn", "Hexagon NPUs"),
}
_EXPORT_PACKAGES = ("torch", "onnx-ir", "safetensors", "huggingface_hub")
# What makes int8 and float32 matrix products fast: x86's names first, then Arm's.
_X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
_ARM_FLAGS = ("asimd", "asimddp", "i8mm", "sve")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report; `info` is neither good nor bad."""

    name: str
    state: Literal["ok", "missing", "info"]
    detail: str


def doctor(json: AsJson = False, verbose: Verbose = False) -> None:
    """Report what this machine offers, and what is missing."""
    checks = [*_software(), *_machine(), *_models()]
    if json:
        emit_json({"checks": [vars(check) for check in checks]})
        return
    emit_table([(check.state, check.name, check.detail) for check in checks])


def _software() -> Iterator[Check]:
    yield Check(name="edgevlm", state="ok", detail=edgevlm.__version__)
    yield Check(name="python", state="ok", detail=f"{platform.python_version()} ({sys.executable})")
    for package in _RUNTIME_PACKAGES:
        yield _package(package, "pip install edgevlm")
    yield from _engines()
    for package in _EXPORT_PACKAGES:
        yield _package(package, 'only `edgevlm export` needs it: pip install "edgevlm[export]"')


def _engines() -> Iterator[Check]:
    from edgevlm_runtime.engines.choice import INSTALL

    for engine, (package, purpose) in _ENGINE_PACKAGES.items():
        found = _package(package, f"{purpose}: {INSTALL[engine]}")
        yield Check(name=f"engine {engine}", state=found.state, detail=found.detail)


def _npu() -> Check:
    """The NPUs that an installed engine can use; loading an engine to ask it takes up to a second."""
    from edgevlm_runtime.engines.choice import finds_npu, installed_engines

    installed = installed_engines()
    if found := [engine for engine in installed if finds_npu(engine)]:
        return Check(name="npu", state="ok", detail=f"by engine {', '.join(found)}")
    simulator = "; engine qnn has a simulator" if "qnn" in installed else ""
    return Check(name="npu", state="info", detail=f"none that an installed engine can use{simulator}")


def _package(name: str, way_out: str) -> Check:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Check(name=name, state="ok", detail=version(name))
    except PackageNotFoundError:
        return Check(name=name, state="missing", detail=way_out)


def _machine() -> Iterator[Check]:
    from edgevlm_runtime.engines.threads import physical_cores

    yield Check(name="system", state="info", detail=f"{platform.system()} {platform.release()} {platform.machine()}")
    flags = _cpu_flags()
    wanted = _ARM_FLAGS if platform.machine().lower() in ("aarch64", "arm64") else _X86_FLAGS
    for flag in wanted if flags else ():
        yield Check(name=f"cpu {flag}", state="ok" if flag in flags else "missing", detail="")
    yield Check(name="threads", state="info", detail=f"{physical_cores()} cores usable of {os.cpu_count()} processors")
    if memory := _memory():
        yield Check(name="memory", state="info", detail=memory)
    yield _npu()


def _models() -> Iterator[Check]:
    folder = home()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    if os.access(existing, os.W_OK):
        yield Check(name="home", state="ok", detail=f"{folder} ({free_gb:.1f} GB free)")
    else:
        yield Check(name="home", state="missing", detail=f"{folder} can not be written; set EDGEVLM_HOME")
    for name, path in {BUILT_IN: BUILT_IN_PATH, **installed()}.items():
        yield _bundle(name, path)


def _bundle(name: str, path: Path) -> Check:
    from edgevlm_runtime.bundle import open_bundle
    from edgevlm_runtime.tuning import find

    try:
        bundle = open_bundle(path)
    except EdgeVLMError as error:
        return Check(name=f"model {name}", state="missing", detail=str(error))
    tuned = find(bundle)
    detail = f"{bundle.manifest.precision}, {path}{f', tuned: {tuned}' if tuned else ''}"
    return Check(name=f"model {name}", state="ok", detail=detail)


def _cpu_flags() -> set[str]:
    """The processor's flags as Linux names them; empty where they are not told."""
    for line in _read_lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


def _memory() -> str:
    sizes = {}
    for line in _read_lines("/proc/meminfo"):
        key, _, value = line.partition(":")
        sizes[key] = value.split()
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return ""
    total, available = (int(sizes[key][0]) * 1024 / 1e9 for key in ("MemTotal", "MemAvailable"))
    return f"{total:.1f} GB, {available:.1f} GB available"


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
