"""The root folder of the emulated board: 64-bit Debian 12 with Python 3.11, and what the kernel says about the CPU."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from benchmarks.pi.tools import require, run_tool

EMULATOR = "qemu-aarch64-static"
SUITE = "bookworm"
GLIBC_MINOR = 36  # that of the suite: 2.36
PYTHON = "3.11"
N_CORES = 4
_PACKAGES = ("python3", "libgomp1", "libstdc++6")
_CORTEX_A76 = "0x00000000414fd0b1"
_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


def make_root(root: Path) -> None:
    """Make the folder, once: later calls find it there. Needs the right to run debootstrap, which is root's.

    Raises:
        RuntimeError: qemu or debootstrap is missing, or debootstrap failed (no network, no rights).
    """
    if platform.system() != "Linux":
        raise RuntimeError("qemu runs programs of another processor on Linux only")
    require(EMULATOR, "debootstrap", "dpkg-deb")
    if root.exists():
        return
    unfinished = root.with_name(f"{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _unpack_debian(unfinished)
    write_cpu(unfinished)
    unfinished.rename(root)


def python_command(root: Path) -> list[str]:
    """How the root's Python is called on this machine."""
    return [EMULATOR, "-cpu", "cortex-a76", "-L", str(root), str(root / "usr" / "bin" / f"python{PYTHON}")]


def write_cpu(root: Path) -> None:
    """The board's CPU in place of this machine's, which the emulator passes through: libraries choose kernels by it."""
    for name, content in cpu_files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")


def cpu_files() -> dict[str, str]:
    """Files of /proc and /sys by name: four Cortex-A76 cores of one cluster."""
    folder = "sys/devices/system/cpu"
    files = {f"{folder}/{name}": f"0-{N_CORES - 1}\n" for name in ("possible", "present", "online")}
    for core in range(N_CORES):
        files |= {f"{folder}/cpu{core}/{name}": f"{value}\n" for name, value in _core(core).items()}
    return {"proc/cpuinfo": _cpuinfo(), **files}


def _core(core: int) -> dict[str, str]:
    together = f"0-{N_CORES - 1}"
    return {
        "topology/core_id": str(core),
        "topology/physical_package_id": "0",
        "topology/cluster_id": "0",
        "topology/core_siblings_list": together,
        "topology/package_cpus_list": together,
        "cpufreq/cpuinfo_max_freq": "2400000",
        "cpufreq/cpuinfo_min_freq": "1500000",
        "regs/identification/midr_el1": _CORTEX_A76,
    }


def _cpuinfo() -> str:
    core = {
        "BogoMIPS": "108.00",
        "Features": _FEATURES,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x4",
        "CPU part": "0xd0b",
        "CPU revision": "1",
    }
    lines = "".join(f"{name}\t: {value}\n" for name, value in core.items())
    cores = "".join(f"processor\t: {number}\n{lines}\n" for number in range(N_CORES))
    return f"{cores}Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n"


def _unpack_debian(root: Path) -> None:
    """Packages unpacked and not configured: their scripts would have to run in the emulator, and Python needs none."""
    run_tool(
        [
            "debootstrap",
            "--arch=arm64",
            "--foreign",
            "--variant=minbase",
            f"--include={','.join(_PACKAGES)}",
            SUITE,
            root,
        ]
    )
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        run_tool(["dpkg-deb", "--extract", package, root])
        package.unlink()
