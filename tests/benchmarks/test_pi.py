"""What the emulated board's command reads, counts and reports; the emulation itself needs qemu and is not run here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pi import models
from benchmarks.pi.ask import Answers, Order, read_file, write_file
from benchmarks.pi.compare import Agreement, agreement, choice_deficits, count_choices
from benchmarks.pi.guest import ask_here
from benchmarks.pi.memory import Resident, read_smaps
from benchmarks.pi.report import Tried, as_json, render
from benchmarks.pi.root import EMULATOR, cpu_files
from benchmarks.pi.tools import complaint, require, run_tool
from benchmarks.pi.wheels import Wheel, for_the_board, installed, same_versions
from edgevlm.home import BUILT_IN_PATH
from edgevlm_export.families import FAMILIES
from edgevlm_export.pipeline import ExportRequest
from edgevlm_runtime.errors import DamagedBundle
from edgevlm_runtime.model import load
from edgevlm_runtime.options import GenerateOptions
from training.proofs.catalog import HERE, PROOFS

_SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
_ORDER = Order(
    bundle=str(BUILT_IN_PATH),
    images=(str(_SCENE),),
    questions=("How many objects are there?", "What is in the image?"),
    labels=(),
    max_tokens=8,
    threads=1,
)
_SMAPS = f"""\
00400000-00916000 r--p 00000000 fe:00 2592560                            /root/usr/bin/python3.11
Size:               5208 kB
Rss:                4000 kB
Pss:                 100 kB
5556cd2000-5556cd4000 rw-p 00000000 00:00 0 
Rss:                 500 kB
55558df14000-55558f167000 rw-p 00000000 00:00 0                          [heap]
Rss:                1000 kB
7efe14200000-7efe1c1ff000 rwxp 00000000 00:00 0 
Rss:               90000 kB
7efe1cc00000-7efe1ce28000 r--p 00000000 fe:00 123                        /usr/bin/{EMULATOR}
Rss:                2000 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Rss:                   0 kB
"""


def test_memory_is_parted_by_address() -> None:
    found = read_smaps(_SMAPS, EMULATOR)
    assert found == Resident(program=1024 * 4500, emulator=1024 * 93000)
    assert read_smaps("", EMULATOR) == Resident(program=0, emulator=0)


def test_a_process_that_is_not_emulated_is_refused() -> None:
    moved = _SMAPS.replace("7efe1cc00000-7efe1ce28000", "5600000000-5600228000")
    with pytest.raises(ValueError, match=EMULATOR):
        read_smaps(moved, EMULATOR)


def test_this_process_has_no_memory_below_the_border_but_its_program() -> None:
    """The kernel's own file, in its own format: all that is resident is found once."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    total = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:"))
    found = read_smaps(text, EMULATOR)
    assert found.program + found.emulator == 1024 * total > 0


def test_choices_are_the_same_or_ties_or_neither() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.4, 0.39, 0.21]], np.float32))
    deficits = choice_deficits(logits, [0, 2, 1])
    np.testing.assert_allclose(deficits, [0, np.log(0.5 / 0.3), np.log(0.4 / 0.39)], atol=1e-6)
    found = count_choices(deficits, 0.1, identical=False)
    assert (found.choices, found.equal, found.tied) == (3, 1, 1)
    assert not found.passes("int8")
    assert count_choices(deficits, 0.6, identical=False).passes("int8")


def test_nothing_answered_is_no_agreement() -> None:
    assert not Agreement(choices=0, equal=0, tied=0, worst_nats=0.0, identical=True).passes("int8")


def test_features_must_point_the_same_way() -> None:
    found = Agreement(choices=4, equal=4, tied=0, worst_nats=0.0, identical=True, cosine=0.9995)
    assert found.passes("int8") and not found.passes("fp32")


def test_images_are_compared_by_first_class_and_features() -> None:
    here = Answers(peak_rss=1, probabilities=((0.6, 0.4), (0.48, 0.52)), features=((1.0, 0.0), (0.0, 2.0)))
    board = replace(here, probabilities=((0.7, 0.3), (0.51, 0.49)))
    found = agreement(_ORDER, board, here, "int8")
    assert (found.choices, found.equal, found.tied, found.identical) == (2, 1, 1, False)
    assert found.worst_nats == pytest.approx(np.log(0.52 / 0.48)) and found.cosine == pytest.approx(1.0)
    turned = replace(board, features=((0.0, 1.0), (0.0, 2.0)))
    assert agreement(_ORDER, turned, here, "int8").cosine == pytest.approx(0.5)
    with pytest.raises(ValueError, match="probabilities"):
        agreement(_ORDER, replace(board, probabilities=((0.7, 0.3),)), here, "int8")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return ask_here(_ORDER, tmp_path_factory.mktemp("asked"))


def test_the_asked_process_answers_as_the_model_does(answers: Answers) -> None:
    with load(BUILT_IN_PATH) as model:
        options = GenerateOptions(max_tokens=_ORDER.max_tokens)
        expected = [model.query(str(_SCENE), question, options).token_ids for question in _ORDER.questions]
    short, long = answers.token_ids
    assert short[:-1] == expected[0] and short[-1] == 0, "with the token that ended it"
    assert long == expected[1] and len(long) == _ORDER.max_tokens, "cut off, without one"
    assert 50e6 < answers.peak_rss < 1e9


def test_tokens_of_another_machine_are_followed(answers: Answers) -> None:
    """A foreign token counts against that answer only: what follows is judged after it, not after our own."""
    assert agreement(_ORDER, answers, answers, "fp32") == Agreement(
        choices=len(answers.token_ids[0]) + 8,
        equal=len(answers.token_ids[0]) + 8,
        tied=0,
        worst_nats=0.0,
        identical=True,
    )
    wrong = (answers.token_ids[0], (*answers.token_ids[1][:-1], answers.token_ids[1][-1] + 1))
    found = agreement(_ORDER, replace(answers, token_ids=wrong), answers, "int8")
    assert found.choices - found.equal - found.tied == 1 and found.worst_nats > 0.1
    assert not found.identical and not found.passes("int8")


def test_a_failing_process_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1: .*ModelNotFound") as failed:
        ask_here(replace(_ORDER, bundle=str(tmp_path / "none")), tmp_path)
    assert "\n" not in str(failed.value)


def test_orders_survive_their_file(tmp_path: Path) -> None:
    write_file(tmp_path / "order.json", _ORDER)
    assert read_file(Order, tmp_path / "order.json") == _ORDER
    with pytest.raises(DamagedBundle, match=r"order\.json: .*bundle"):
        read_file(Answers, tmp_path / "order.json")


def test_missing_tools_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"^missing: qemu-aarch64-static, debootstrap; .*apt install"):
        require("qemu-aarch64-static", "debootstrap")


def test_a_tool_that_fails_is_one_line() -> None:
    code = "import sys; print('ERROR: no such wheel', file=sys.stderr); print('a hint', file=sys.stderr); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"failed: ERROR: no such wheel$"):
        run_tool([sys.executable, "-c", code])
    assert complaint("one\n\n  two \n") == "two" and complaint("") == "no output"


def test_the_board_has_four_cores_that_libraries_know() -> None:
    files = cpu_files()
    assert files["proc/cpuinfo"].count("CPU part\t: 0xd0b") == 4 and "asimddp" in files["proc/cpuinfo"]
    assert files["sys/devices/system/cpu/possible"] == "0-3\n"
    assert files["sys/devices/system/cpu/cpu3/topology/core_id"] == "3\n"


def test_wheels_are_for_the_board_in_our_versions() -> None:
    options = for_the_board()
    assert "manylinux_2_36_aarch64" in options and "manylinux_2_37_aarch64" not in options
    assert f"numpy=={np.__version__}\n" in same_versions() and "\nedgevlm==" not in same_versions()


def test_packages_are_weighed_without_bytecode(tmp_path: Path) -> None:
    _install(tmp_path, "small", ["small.py"], 10)
    _install(tmp_path, "large", ["large/__init__.py", "large/data.bin"], 1000)
    first, second = installed(tmp_path)
    assert (first.name, first.version, first.tag) == ("large", "1.0", "cp311-cp311-manylinux_2_28_aarch64")
    everything = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert first.bytes + second.bytes == everything and first.bytes > 2000 > second.bytes


def test_every_family_and_every_trained_model_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each from a folder of its own: names of families are those of checkpoints too."""
    requests: list[ExportRequest] = []
    monkeypatch.setattr(models, "export", requests.append)
    for family in FAMILIES.values():
        monkeypatch.setattr(family, "shrink", Path.mkdir)
    tried = list(models.subjects(tmp_path))
    assert len({subject.bundle for subject in tried}) == len({(each.name, each.precision) for each in tried})
    assert [each.out for each in requests] == [subject.bundle for subject in tried[1:]], "all but the built-in one"
    asked = {(each.source, each.precision): each.family for each in requests}
    families = {tmp_path / f"{name}-checkpoint": name for name in FAMILIES}
    families |= {HERE / name: proof.family for name, proof in PROOFS.items()}
    for source, name in families.items():
        assert asked[source, "int8"] == asked[source, "fp32"] == name
    assert {source for source, precision in asked if precision == "int4"} >= {HERE / name for name in PROOFS}


def test_the_report_has_every_model_and_the_large_packages() -> None:
    tried = Tried(
        name="nano",
        precision="int8",
        agreement=Agreement(choices=40, equal=39, tied=1, worst_nats=0.01, identical=False),
        resident=Resident(program=100_000_000, emulator=140_000_000),
        board_peak=230_000_000,
        peak_here=110_000_000,
    )
    wheels = [
        Wheel(name="onnxruntime", version="1.31.1", tag="cp311", bytes=50_000_000),
        Wheel(name="mdurl", version="0.1.2", tag="py3", bytes=20_000),
    ]
    text = render([tried], wheels)
    assert "| nano | int8 | 40 | 39 | 1 |  | 100 | 230 | 110 |" in text
    assert "50 MB in 2 packages" in text and "onnxruntime 50" in text and "mdurl" not in text
    written = json.loads(json.dumps(as_json([tried], wheels)))
    assert written["models"][0]["passed"] is True and len(written["wheels"]) == 2


def _install(site: Path, name: str, files: Sequence[str], n_bytes: int) -> None:
    """A package as pip leaves it."""
    information = site / f"{name}-1.0.dist-info"
    contents = {
        **dict.fromkeys(files, "x" * n_bytes),
        f"{information.name}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{information.name}/WHEEL": "Tag: cp311-cp311-manylinux_2_28_aarch64\nTag: cp311-cp311-any\n",
    }
    contents[f"{information.name}/RECORD"] = "".join(
        f"{path},,\n" for path in (*contents, f"{information.name}/RECORD")
    )
    for path, content in contents.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content, encoding="utf-8")
