"""Which engine a bundle runs on: by itself, when asked for, and what is said where an NPU is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import choice, installed_engines, open_engine
from edgevlm_runtime.engines.choice import usable_engines
from edgevlm_runtime.errors import EngineError, InvalidOption
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.manifest import FileRecord, GraphSpec, Manifest, NpuSpec, Precision, Provenance
from tests.runtime.fake_engine import FakeEngine, TinyDecoder


def manifest(compiled: dict[str, dict[str, str]], npu: NpuSpec | None = None) -> Manifest:
    graphs = {
        role: GraphSpec(file=f"{role}.onnx", precision="int8", inputs=(), outputs=(), compiled=files)
        for role, files in compiled.items()
    }
    files = [
        *(spec.file for spec in graphs.values()),
        *(file for files in compiled.values() for file in files.values()),
    ]
    return Manifest(
        schema_version=1,
        name="spots",
        family="spots",
        description="",
        precision="int8",
        tasks=("embed",),
        graphs=graphs,
        files={file: FileRecord(bytes=0, sha256="") for file in files},
        provenance=Provenance(source="spots", revision="main", license="CC0-1.0", date="", tools={}),
        npu=npu,
    )


def npu(engine: str) -> NpuSpec:
    return NpuSpec(target="hexagon-v75", engine=engine, compiler="", checked_on="", cosine=1.0)


IR, CONTEXT = {"openvino": "vision.xml"}, {"qnn": "vision.qnn.onnx"}
WRITES = manifest({"vision": IR, "decoder": {"openvino": "decoder.xml"}})
ON_HEXAGON = manifest({"vision": CONTEXT, "text": {}}, npu("qnn"))


def test_all_engines_are_installed_here() -> None:
    assert installed_engines() == ("onnxruntime", "openvino", "qnn")


@pytest.mark.parametrize(
    ("bundle", "engine"),
    [
        (None, "onnxruntime"),
        (manifest({"vision": {}}), "onnxruntime"),
        (manifest({"vision": IR}), "openvino"),
        (manifest({"vision": IR, "text": {}}), "onnxruntime"),
        (manifest({"vision": IR, "text": {"openvino": "text.xml"}}), "openvino"),
        (manifest({"vision": IR}, npu("openvino")), "openvino"),
    ],
)
def test_auto(bundle: Manifest | None, engine: str) -> None:
    assert open_engine("auto", 1, bundle).name == engine


@pytest.mark.parametrize(
    ("precision", "megabytes", "compiled", "engine"),
    [
        ("int8", 1370, {"openvino": "decoder.xml"}, "openvino"),
        ("int8", 1370, {}, "onnxruntime"),
        ("int8", 370, {"openvino": "decoder.xml"}, "onnxruntime"),
        ("int4", 1370, {"openvino": "decoder.xml"}, "onnxruntime"),
        ("fp32", 5400, {"openvino": "decoder.xml"}, "onnxruntime"),
    ],
)
def test_auto_for_a_decoder(precision: Precision, megabytes: int, compiled: dict[str, str], engine: str) -> None:
    """Only large ones in 8 bits gain by OpenVINO from the first image on."""
    bundle = manifest({"decoder": compiled, "vision": IR})
    decoder = replace(bundle.graphs["decoder"], precision=precision)
    weights = {"decoder.onnx.data": FileRecord(bytes=megabytes * 10**6, sha256="")}
    bundle = replace(bundle, graphs={**bundle.graphs, "decoder": decoder}, files={**bundle.files, **weights})
    assert open_engine("auto", 1, bundle).name == engine


def test_openvino_for_a_decoder_needs_its_ir() -> None:
    """Its cache could not be kept in an ONNX file; the first token would be too late to say so."""
    with pytest.raises(InvalidOption) as error:
        open_engine("openvino", 1, manifest({"decoder": {}, "vision": IR}))
    assert str(error.value) == (
        "spots has no OpenVINO IR of its decoder graph; export it with --openvino, or use --engine onnxruntime"
    )
    assert open_engine("openvino", 1, WRITES).name == "openvino"


def test_mixed_needs_a_decoder_and_an_image_encoder_in_ir() -> None:
    assert open_engine("mixed", 1, manifest({"decoder": {}, "vision": IR})).name == "mixed"
    with pytest.raises(InvalidOption, match="spots has no OpenVINO IR of its vision graph; export it with --openvino"):
        open_engine("mixed", 1, manifest({"decoder": {}, "vision": {}}))
    with pytest.raises(InvalidOption, match="spots writes no text, so that there is nothing to mix"):
        open_engine("mixed", 1, manifest({"vision": IR}))


def test_mixed_opens_images_with_one_engine_and_tokens_with_the_other(tmp_path: Path) -> None:
    for name in WRITES.files:
        (tmp_path / name).touch()
    fake = FakeEngine(TinyDecoder(vocab=8))
    fake.name = "mixed"
    graphs = Graphs(Bundle(root=tmp_path.resolve(), manifest=WRITES), fake)
    graphs.open("vision")
    graphs.open("decoder")
    assert [path.name for path in fake.paths] == ["vision.xml", "decoder.onnx"]


def test_engines_that_can_run_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_engines(WRITES) == ["onnxruntime", "openvino", "mixed"]
    assert usable_engines(manifest({"vision": IR, "decoder": {}})) == ["onnxruntime", "mixed"]
    assert usable_engines(manifest({"vision": {}, "decoder": {}})) == ["onnxruntime"]
    assert usable_engines(manifest({"vision": {}})) == ["onnxruntime", "openvino"]
    monkeypatch.setattr(choice, "installed_engines", lambda: ("onnxruntime", "qnn"))
    assert usable_engines(WRITES) == ["onnxruntime"]


def test_images_that_mixed_encoded_are_known_by_both_versions() -> None:
    open_engine("mixed", 1)
    parts = [choice.engine_version(name) for name in ("onnxruntime", "openvino")]
    assert all(" " in part for part in parts)
    assert choice.engine_version("mixed") == f"mixed ({parts[0]}, {parts[1]})"


def test_auto_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "installed_engines", lambda: ("onnxruntime",))
    assert open_engine("auto", 1, manifest({"vision": IR})).name == "onnxruntime"


def test_auto_wants_the_npu_that_a_bundle_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError) as error:
        open_engine("auto", 1, ON_HEXAGON)
    assert str(error.value) == (
        "spots is compiled for hexagon-v75, an NPU that this machine does not have; its engines: onnxruntime, "
        "openvino, qnn (only the simulator: --engine qnn); --engine onnxruntime runs the uncompiled graph on the CPU"
    )
    monkeypatch.setattr(choice, "finds_npu", lambda engine: engine == "qnn")
    assert open_engine("auto", 1, ON_HEXAGON).name == "qnn"


def test_the_simulator_only_when_asked_for() -> None:
    assert open_engine("qnn", 1, ON_HEXAGON).name == "qnn"
    with pytest.raises(InvalidOption, match="spots is not compiled for an NPU of engine qnn"):
        open_engine("qnn", 1, manifest({"vision": IR}))


@pytest.mark.parametrize(("engine", "file"), [("qnn", "vision.qnn.onnx"), ("onnxruntime", "vision.onnx")])
def test_an_engine_opens_what_was_compiled_for_it(engine: str, file: str, tmp_path: Path) -> None:
    for name in ON_HEXAGON.files:
        (tmp_path / name).touch()
    fake = FakeEngine(TinyDecoder(vocab=8))
    fake.name = engine
    graphs = Graphs(Bundle(root=tmp_path.resolve(), manifest=ON_HEXAGON), fake)
    graphs.open("vision")
    graphs.open("text")
    assert fake.opened == [Path(file).stem, "text"]
