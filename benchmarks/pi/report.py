"""The README's table, and everything as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.pi.compare import LEAST_COSINE, TIE_NATS, Agreement
from benchmarks.pi.memory import Resident
from benchmarks.pi.root import PYTHON, SUITE
from benchmarks.pi.wheels import Wheel
from benchmarks.tables import table
from edgevlm_runtime.manifest import Precision

_MB = 1e6
_LARGE = 5 * _MB


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A bundle on both machines. Bytes: `resident` on the board by whose it is, `board_peak` of both, `peak_here`."""

    name: str
    precision: Precision
    agreement: Agreement
    resident: Resident
    board_peak: int
    peak_here: int

    @property
    def passed(self) -> bool:
        """Whether the board answers as this machine does."""
        return self.agreement.passes(self.precision)


def render(tried: Sequence[Tried], wheels: Sequence[Wheel]) -> str:
    """The README's section."""
    header = [
        "model",
        "precision",
        "tokens or classes",
        "the same",
        "ties",
        "cosine",
        "peak MB",
        "with emulator",
        "on x86",
    ]
    return "\n\n".join(
        (
            table(header, [_row(each) for each in tried]),
            f"Installed: {_mb(sum(wheel.bytes for wheel in wheels))} MB in {len(wheels)} packages without bytecode, "
            f"of which {_large(wheels)}. Speed is not measured: an emulator says nothing about it. "
            "`python -m benchmarks.pi WORK`.",
        )
    )


def as_json(tried: Sequence[Tried], wheels: Sequence[Wheel]) -> dict[str, object]:
    """Everything that was measured."""
    return {
        "board": f"emulated Raspberry Pi 5 (Cortex-A76), Debian {SUITE}, Python {PYTHON}",
        "limits": {"tie_nats": dict(TIE_NATS), "least_cosine": dict(LEAST_COSINE)},
        "models": [{**asdict(each), "passed": each.passed} for each in tried],
        "installed_bytes": sum(wheel.bytes for wheel in wheels),
        "wheels": [asdict(wheel) for wheel in wheels],
    }


def _row(tried: Tried) -> list[str]:
    found = tried.agreement
    return [
        tried.name,
        tried.precision,
        str(found.choices),
        str(found.equal),
        str(found.tied),
        "" if found.cosine is None else f"{found.cosine:.6f}",
        _mb(tried.resident.program),
        _mb(tried.board_peak),
        _mb(tried.peak_here),
    ]


def _large(wheels: Sequence[Wheel]) -> str:
    return ", ".join(f"{wheel.name} {_mb(wheel.bytes)}" for wheel in wheels if wheel.bytes >= _LARGE)


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / _MB:.0f}"
