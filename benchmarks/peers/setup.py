"""Build llama.cpp's Python package from source, in a virtual environment of its own.

python -m benchmarks.peers.setup
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
VENV = Path(__file__).resolve().parent / ".venv"
PYTHON = VENV / "bin" / "python"


def main() -> int:
    if missing() is None:
        print(f"{PACKAGE} {version()} is ready")
        return 0
    compiler = compilers()
    if compiler is None:
        print(f"no C++ compiler: {PACKAGE} stays missing; `apt install clang libomp-dev`, then again", file=sys.stderr)
        return 1
    if compiler[0] != "clang":
        print(
            "no clang, and gcc 12 builds AMX wrongly, so AMX stays off; `apt install clang libomp-dev`", file=sys.stderr
        )
    if not PYTHON.exists():
        try:
            venv.create(VENV, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no virtual environment, {PACKAGE} stays missing: {error}", file=sys.stderr)
            return 1
    print(f"building {PACKAGE} {VERSION} with {compiler[0]} in {VENV}: half an hour on two cores", flush=True)
    if _pip(compiler).returncode != 0 or missing() is not None:
        print(f"{PACKAGE} did not build; the benchmark runs without it", file=sys.stderr)
        return 1
    print(f"{PACKAGE} {version()} is ready")
    return 0


def compilers() -> tuple[str, str] | None:
    """Names of the C and the C++ compiler; clang where there is one, because AMX needs it."""
    pairs = (("clang", "clang++"), ("gcc", "g++"))
    return next((pair for pair in pairs if all(map(shutil.which, pair))), None)


def missing() -> str | None:
    """Why llama.cpp can not be compared with, in one line; None where it can."""
    how = "python -m benchmarks.peers.setup"
    if not PYTHON.exists():
        return f"{PACKAGE} is not installed; {how}"
    found = subprocess.run([PYTHON, "-c", "import llama_cpp"], capture_output=True, check=False)
    return None if found.returncode == 0 else f"{PACKAGE} in {VENV} can not be imported; {how}"


def version() -> str:
    """The installed version, and the compiler that built it."""
    code = f"from importlib.metadata import version; print(version({PACKAGE!r}))"
    installed = subprocess.run([PYTHON, "-c", code], capture_output=True, check=True, text=True).stdout.strip()
    note = VENV / "compiler"
    return f"{installed}, {note.read_text(encoding='utf-8').strip()}" if note.exists() else installed


def build_environment(compiler: tuple[str, str]) -> dict[str, str]:
    """Variables of the build: every instruction this processor has, and the fast float16 kernels."""
    c, cpp = compiler
    variables = {"CC": c, "CXX": cpp, "CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON"}
    if c != "clang":
        variables |= dict.fromkeys(("CFLAGS", "CXXFLAGS"), "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16")
    return {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)} | dict(os.environ) | variables


def _pip(compiler: tuple[str, str]) -> subprocess.CompletedProcess[bytes]:
    c = compiler[0]
    command = [str(PYTHON), "-m", "pip", "install", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, env=build_environment(compiler), check=False)
    if done.returncode == 0:
        said = subprocess.run([c, "--version"], capture_output=True, check=True, text=True).stdout
        (VENV / "compiler").write_text(said.splitlines()[0] + "\n", encoding="utf-8")
    return done


if __name__ == "__main__":
    sys.exit(main())
