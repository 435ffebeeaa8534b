"""What `pip install edgevlm` puts on the board: arm64 wheels, in the versions of this environment, and their sizes."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.pi.root import GLIBC_MINOR, PYTHON
from benchmarks.pi.tools import run_tool
from benchmarks.tables import ROOT

_OLDEST_GLIBC_MINOR = 17  # manylinux2014
_OURS = "edgevlm"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """An installed package: its most specific tag, and the bytes of its files, without bytecode."""

    name: str
    version: str
    tag: str
    bytes: int


def install(site: Path, work: Path) -> None:
    """Build this project's wheel, and install it anew with all that it requires into `site`; scratch goes to `work`.

    Raises:
        RuntimeError: the index can not be reached, or has no wheel for the board in a version of this environment.
    """
    built, constraints = work / "built", work / "constraints.txt"
    for folder in (built, site):
        shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip"]
    run_tool([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(built), str(ROOT)])
    constraints.write_text(same_versions(), encoding="utf-8")
    options = ["--quiet", "--no-compile", "--constraint", str(constraints), "--target", str(site)]
    run_tool([*pip, "install", *options, *for_the_board(), *map(str, built.glob("*.whl"))])


def for_the_board() -> list[str]:
    """pip's options for wheels of the board's system and Python, whatever runs pip."""
    minors = range(GLIBC_MINOR, _OLDEST_GLIBC_MINOR - 1, -1)
    platforms = [*(f"manylinux_2_{minor}_aarch64" for minor in minors), "manylinux2014_aarch64"]
    tags = [("--platform", platform) for platform in platforms]
    tags += [("--abi", abi) for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
    return [
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={PYTHON}",
        *(part for tag in tags for part in tag),
    ]


def same_versions() -> str:
    """Constraints, one a line: whatever this environment has, in its version."""
    found = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name and name != _OURS)


def installed(site: Path) -> tuple[Wheel, ...]:
    """The packages of `site`, the largest first."""
    found = [_wheel(package) for package in metadata.distributions(path=[str(site)])]
    return tuple(sorted(found, key=lambda wheel: (-wheel.bytes, wheel.name)))


def _wheel(package: metadata.Distribution) -> Wheel:
    tags = [line.removeprefix("Tag: ") for line in (package.read_text("WHEEL") or "").splitlines() if "Tag: " in line]
    files = {Path(str(package.locate_file(file))) for file in package.files or ()}
    return Wheel(
        name=package.metadata["Name"],
        version=package.version,
        tag=max(tags, key=len, default="unknown"),
        bytes=sum(file.stat().st_size for file in files if file.is_file()),
    )
