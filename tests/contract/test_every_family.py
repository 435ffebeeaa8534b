"""Every family that generates text, from its shrunken checkpoint to answers: real files and the real engine.

A new entry of FAMILIES is picked up here without a change, or in test_every_image_family.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from edgevlm_export.families import FAMILIES
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_export.scene import draw_image
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.decoder import Decoder
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import DamagedBundle
from edgevlm_runtime.image import load_image
from edgevlm_runtime.manifest import Precision
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from edgevlm_runtime.parts import needed
from edgevlm_runtime.verify import verify_bundle
from edgevlm_runtime.vision import open_tower

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")
QUESTION = "What is this?"
_TIE_NATS = {"float32": 0.0, "float16": 0.02, "int8": 0.05}  # by what keys and values are kept as
SHORT = GenerateOptions(max_tokens=12)
LONG = GenerateOptions(max_tokens=40)
SAMPLED = GenerateOptions(max_tokens=12, temperature=1.0, seed=7)


@pytest.fixture(scope="module", params=sorted(name for name, family in FAMILIES.items() if family.generates_text))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / str(request.param)
    FAMILIES[request.param].shrink(folder)
    return folder


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """One verified bundle of each precision; the one in float32 is for OpenVINO too."""
    root = tmp_path_factory.mktemp("bundles")
    for precision in PRECISIONS:
        export(
            ExportRequest(
                name="shrunken",
                family=checkpoint.name,
                source=checkpoint,
                out=root / precision,
                precision=precision,
                openvino=precision == "fp32",
            )
        )
    return {precision: root / precision for precision in PRECISIONS}


@pytest.fixture(scope="module")
def model(bundles: dict[Precision, Path]) -> Iterator[Model]:
    with load(bundles["fp32"], LoadOptions(engine="onnxruntime")) as opened:
        yield opened


@pytest.fixture(scope="module")
def in_openvino(bundles: dict[Precision, Path]) -> Iterator[Model]:
    with load(bundles["fp32"], LoadOptions(engine="openvino")) as opened:
        yield opened


@pytest.fixture(scope="module")
def mixed(bundles: dict[Precision, Path]) -> Iterator[Model]:
    with load(bundles["fp32"], LoadOptions(engine="mixed")) as opened:
        yield opened


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bundle_says_how_true_it_is(bundles: dict[Precision, Path], precision: Precision) -> None:
    report = open_bundle(bundles[precision]).manifest.fidelity
    assert report is not None and report.n_positions >= 200
    if precision == "fp32":
        assert report.logits_relative_error < 1e-3
        assert report.greedy_agreement == report.top1_agreement == 1.0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_verify_repeats_the_golden_test(bundles: dict[Precision, Path], precision: Precision) -> None:
    result = verify_bundle(bundles[precision])
    assert result.checks and all(check.passed for check in result.checks)


def test_an_encoded_image_answers_as_a_new_one(model: Model) -> None:
    encoded = model.encode(draw_image())
    model.caption(encoded, "short", SHORT)
    again = model.query(encoded, QUESTION, SHORT)
    assert again.token_ids == model.query(draw_image(), QUESTION, SHORT).token_ids


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_cached_answers_equal_recomputed_ones(bundles: dict[Precision, Path], precision: Precision) -> None:
    """Each token once more, from the logits of the whole sequence read anew; where sums are in another order, one in
    a cache may be rounded the other way."""
    with load(bundles[precision], LoadOptions(engine="onnxruntime")) as model:
        encoded = model.encode(draw_image())
        answer = model.query(encoded, QUESTION, SHORT)
        parts = model._open_parts()
        prompt = parts.embed(parts.prompts.query(QUESTION), encoded.states)
        for n_fed in range(len(answer.token_ids)):
            embeddings = np.concatenate((prompt, parts.decoder.embed(answer.token_ids[:n_fed])))
            with encoded.borrow() as cache:
                logits = parts.decoder.run(embeddings, cache).logits.copy()
                tie_nats = _TIE_NATS[cache.layout.partition(" ")[0]]
            if n_fed:
                logits[list(parts.spec.suppressed_ids)] = -np.inf
            assert logits.max() - logits[answer.token_ids[n_fed]] <= tie_nats


def test_other_crops_change_nothing(model: Model) -> None:
    """The features of a crop are the same to the bit, whichever crops were encoded before it."""
    image = load_image(draw_image())
    tower = open_tower(needed(model.manifest.image, "image"), model._graphs)
    alone = tower.encode(image, 1)
    tower.encode(255 - image, None)
    assert_array_equal(tower.encode(image, 1), alone)


def test_the_same_seed_gives_the_same_tokens(model: Model) -> None:
    first, second = (model.query(draw_image(), QUESTION, SAMPLED) for _ in range(2))
    other = model.query(draw_image(), QUESTION, replace(SAMPLED, seed=8))
    assert first.token_ids == second.token_ids != other.token_ids


def test_next_token_logits_are_those_of_the_first_token(model: Model) -> None:
    answer = model.query(draw_image(), QUESTION, replace(SHORT, logits=True))
    logits: FloatArray = model.next_token_logits(draw_image(), QUESTION)
    assert answer.first_logits is not None and logits.dtype == np.float32
    assert_array_equal(logits, answer.first_logits)
    assert int(logits.argmax()) == answer.token_ids[0]


def test_threads_share_a_model_and_an_image(model: Model) -> None:
    encoded = model.encode(draw_image())
    expected = model.query(encoded, QUESTION, SHORT).token_ids
    found: list[tuple[int, ...]] = []

    def ask() -> None:
        found.append(model.query(encoded, QUESTION, SHORT).token_ids)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_engines_agree_on_every_token(model: Model, in_openvino: Model, mixed: Model) -> None:
    """Also on later questions about an image, and on where things are."""
    models = (model, in_openvino, mixed)
    images = [each.encode(draw_image()) for each in models]
    for question in (QUESTION, "How many?", QUESTION):
        answers = [each.query(image, question, SHORT) for each, image in zip(models, images, strict=True)]
        assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids
    for task in {"detect", "point"} & set(model.manifest.tasks):
        found = [getattr(each, task)(draw_image(), "cup", SHORT) for each in models]
        places = [getattr(each, "objects" if task == "detect" else "points") for each in found]
        assert places[0] == places[1] == places[2]


def test_threads_share_an_image_in_openvino(in_openvino: Model) -> None:
    encoded = in_openvino.encode(draw_image())
    questions = [QUESTION, "How many?"] * 3
    expected = [in_openvino.query(encoded, question, SHORT).token_ids for question in questions]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda question: in_openvino.query(encoded, question, SHORT).token_ids, questions))
    assert found == expected


@pytest.mark.parametrize(
    ("precision", "engine"),
    [
        ("fp32", "onnxruntime"),
        ("fp32", "openvino"),
        ("fp32", "mixed"),
        ("int8", "onnxruntime"),
        ("int4", "onnxruntime"),
    ],
)
def test_an_image_from_disk_answers_as_a_new_one(
    bundles: dict[Precision, Path], precision: Precision, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path))
    answers = []
    for _ in range(2):
        with load(bundles[precision], LoadOptions(engine=engine, image_cache=True)) as opened:
            answers.append([opened.query(draw_image(), text, SHORT).token_ids for text in (QUESTION, "How many?")])
            opens_vision = "vision" in opened._graphs._opened
    assert answers[0] == answers[1]
    assert not opens_vision, "the second model did not encode"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_guessed_tokens_change_no_answer(bundles: dict[Precision, Path], engine: str) -> None:
    """A model as its own draft, and a lookup; in OpenVINO neither guesses."""
    source, options = bundles["fp32"], LoadOptions(engine=engine)
    with load(source, options) as plain, load(source, replace(options, draft=source)) as drafted:
        for question in (QUESTION, "How many? How many?"):
            expected = plain.query(draw_image(), question, LONG)
            looked_up = plain.query(draw_image(), question, replace(LONG, lookup=4))
            guessed = drafted.query(draw_image(), question, LONG)
            assert expected.token_ids == looked_up.token_ids == guessed.token_ids
            assert (guessed.usage.accepted_tokens > 0) == (engine == "onnxruntime")
            assert (guessed.usage.guessed_tokens > 0) == (engine == "onnxruntime")


@pytest.mark.parametrize(
    ("precision", "engine"), [*((precision, "onnxruntime") for precision in PRECISIONS), ("fp32", "openvino")]
)
def test_the_prefix_of_questions_without_an_image_changes_no_token(
    bundles: dict[Precision, Path], precision: Precision, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = (QUESTION, "How many?", QUESTION)
    with load(bundles[precision], LoadOptions(engine=engine)) as model:
        found = [model.query(None, question, LONG).token_ids for question in questions]
        parts = model._open_parts()
        prefix = parts.prompts.query(QUESTION, image=False).prefix
        assert len(prefix) > 1 and list(parts.prefixes._caches) == [prefix] * parts.decoder.continues_exactly
        assert parts.decoder.continues_exactly or precision == "int4", "whose cache has 8 bits"
        monkeypatch.setattr(Decoder, "continues_exactly", False)  # so that prompts are read whole
        assert [model.query(None, question, LONG).token_ids for question in questions] == found


def test_asyncio_streams_the_same_text(model: Model) -> None:
    async def read() -> str:
        return "".join([piece async for piece in model.astream(draw_image(), QUESTION, SHORT)])

    assert asyncio.run(read()) == model.query(draw_image(), QUESTION, SHORT).text


def test_greedy_tokens_agree_across_precisions(bundles: dict[Precision, Path], model: Model) -> None:
    """Float16 only rounds the weights: tokens may differ where two are equally likely, but not the first."""
    with load(bundles["fp16"]) as half:
        assert (
            half.query(draw_image(), QUESTION, SHORT).token_ids[0]
            == (model.query(draw_image(), QUESTION, SHORT).token_ids[0])
        )


def test_a_bit_flip_in_any_file_is_found(bundles: dict[Precision, Path]) -> None:
    root = bundles["int8"]
    for path in sorted(root.iterdir()):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 0x10
        path.write_bytes(flipped)
        try:
            with pytest.raises(DamagedBundle):
                open_bundle(root)
        finally:
            path.write_bytes(content)
    open_bundle(root)
