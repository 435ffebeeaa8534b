"""Model: images asked many times and by many threads, cancellation, laziness, asyncio, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.errors import BadImage, DamagedBundle, EngineError, InvalidOption, ModelNotFound, UnsupportedTask
from edgevlm_runtime.manifest import SamplingSpec
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from tests.runtime.fake_bundle import EOS, PROMPT, make_model, write_bundle
from tests.runtime.fake_engine import FakeEngine, TinyDecoder

Tiny = tuple[Model, TinyDecoder]
Pixels = npt.NDArray[np.uint8]
SHORT = GenerateOptions(max_tokens=8)


def used(image: EncodedImage) -> int:
    """Positions in use of an image's own cache."""
    return image._cache.length


def test_an_image_is_encoded_once_and_asked_many_times(tiny: Tiny, photo: Pixels) -> None:
    model, decoder = tiny
    image = model.encode(photo)
    assert decoder.calls == [(0, 10)]
    assert image.embeddings.shape == (9, 16)
    assert image.embeddings.dtype == np.float32
    assert (image.width, image.height) == (33, 20)
    assert repr(image) == "EncodedImage(33 x 20 pixels, 9 tokens)"
    questions = ["how many", "where?", "how many"]
    answers = [model.query(image, question, SHORT) for question in questions]
    assert answers[0].token_ids == answers[2].token_ids != answers[1].token_ids
    assert [model.query(photo, question, SHORT).token_ids for question in questions] == [a.token_ids for a in answers]
    assert answers[0].timings.image_ms == 0 < model.query(photo, "a", SHORT).timings.image_ms
    assert used(image) == 10


def test_a_context_ends_an_answer_and_is_at_most_the_models(bundle: Bundle, photo: Pixels) -> None:
    decoder = TinyDecoder(320, dict.fromkeys(range(64), 40))
    model = Model(bundle, FakeEngine(decoder), context=24)
    answer = model.query(photo, "how many")
    assert answer.finish_reason == "length"
    assert 10 + answer.usage.prompt_tokens + answer.usage.completion_tokens == 24 + 1  # the last is not read anymore
    with pytest.raises(InvalidOption, match="context is 65, but tiny knows 64 positions at most"):
        Model(bundle, FakeEngine(decoder), context=65)


def test_images_of_every_kind_give_the_same(tiny: Tiny, photo: Pixels, tmp_path: Path) -> None:
    model, _ = tiny
    picture = Image.fromarray(photo)
    path = tmp_path / "photo.png"
    picture.save(path)
    expected = model.query(photo, "how many", SHORT).token_ids
    for source in (picture, path, str(path), path.read_bytes()):
        assert model.query(source, "how many", SHORT).token_ids == expected


def test_fewer_crops_are_another_answer(tiny: Tiny, photo: Pixels) -> None:
    model, _ = tiny
    one = model.encode(photo, max_crops=1)
    assert np.abs(one.embeddings - model.encode(photo).embeddings).max() > 1e-3
    logits = model.query(photo, "a", replace(SHORT, max_crops=1, logits=True)).first_logits
    np.testing.assert_array_equal(logits, model.next_token_logits(one, "a"))
    with pytest.raises(InvalidOption):
        model.encode(photo, max_crops=0)


def test_threads_share_a_model_and_an_image(tiny: Tiny, photo: Pixels) -> None:
    model, decoder = tiny
    image = model.encode(photo)
    questions = [f"how many {word}" for word in ("cups", "boxes", "circles", "red cups")] * 3
    expected = [model.query(image, question, SHORT).token_ids for question in questions]
    barrier = threading.Barrier(4)
    decoder.on_run = lambda: barrier.wait(timeout=60)  # for three others, so that all four run at once
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda question: model.query(image, question, SHORT).token_ids, questions))
    assert answers == expected
    decoder.on_run = None
    assert used(image) == 10
    assert model.query(image, questions[0], SHORT).token_ids == expected[0]


def test_a_second_question_while_a_stream_is_open_gets_a_copy(tiny: Tiny, photo: Pixels) -> None:
    model, _ = tiny
    image = model.encode(photo)
    expected = model.query(image, "how many", SHORT)
    other = model.query(image, "where?", SHORT)
    stream = model.stream(image, "how many", SHORT)
    pieces = [next(stream)]
    assert model.query(image, "where?", SHORT).token_ids == other.token_ids
    assert used(image) > 10
    pieces += stream
    assert "".join(pieces) == expected.text
    assert stream.answer is not None
    assert stream.answer.token_ids == expected.token_ids
    assert used(image) == 10


def test_a_stream_starts_at_its_first_piece_and_closing_it_cancels(tiny: Tiny, photo: Pixels) -> None:
    model, decoder = tiny
    image = model.encode(photo)
    stream = model.stream(image, "how many")
    assert len(decoder.calls) == 1
    next(stream)
    n_calls = len(decoder.calls)
    stream.close()
    assert used(image) == 10
    assert list(stream) == []
    assert stream.answer is None
    assert len(decoder.calls) == n_calls
    stream.close()
    with pytest.raises(InvalidOption, match="closed before"):
        stream.finish()


def test_leaving_a_stream_rolls_back(tiny: Tiny, photo: Pixels) -> None:
    model, _ = tiny
    image = model.encode(photo)
    with model.stream(image, "how many") as stream:
        next(stream)
    assert used(image) == 10
    for _ in model.stream(image, "how many"):
        break  # the generator is collected
    assert used(image) == 10
    assert not image._busy.locked()


def test_a_failure_rolls_back(tiny: Tiny, photo: Pixels) -> None:
    model, decoder = tiny
    image = model.encode(photo)
    expected = model.query(image, "how many", SHORT).token_ids
    decoder.fail_at = 22
    for ask in (lambda: model.query(image, "how many"), lambda: model.detect(image, "how many red cups")):
        with pytest.raises(MemoryError):
            ask()
        assert used(image) == 10
    decoder.fail_at = None
    assert model.query(image, "how many", SHORT).token_ids == expected


def test_closing_from_another_thread_stops_a_running_answer(tiny: Tiny, photo: Pixels) -> None:
    model, decoder = tiny
    decoder.script = dict.fromkeys(range(64), EOS + 2)  # a special token: no piece of text ever comes
    image = model.encode(photo)
    allowed = threading.Semaphore(4)
    decoder.on_run = lambda: allowed.acquire(timeout=60)
    stream = model.stream(image, "how many")
    worker = threading.Thread(target=lambda: list(stream))
    worker.start()
    while allowed.acquire(blocking=False):  # until the worker waits for its fifth call
        allowed.release()
        time.sleep(0.001)
    closer = threading.Thread(target=stream.close)
    closer.start()
    assert stream._closing.wait(60)
    assert closer.is_alive()  # it waits for the call that is running
    allowed.release(99)
    worker.join(60)
    closer.join(60)
    assert not worker.is_alive()
    assert not closer.is_alive()
    assert len(decoder.calls) == 1 + 5
    assert used(image) == 10
    assert stream.answer is None


def test_closing_stops_the_encoding_of_an_image(bundle: Bundle, photo: Pixels) -> None:
    closers: list[threading.Thread] = []

    def close_at_the_second_crop(role: str) -> None:
        ran.append(role)
        if len(ran) == 2:
            closers.append(threading.Thread(target=stream.close))
            closers[0].start()
            assert stream._closing.wait(60)

    ran: list[str] = []
    decoder = TinyDecoder(320)
    model = Model(bundle, FakeEngine(decoder, close_at_the_second_crop))
    stream = model.stream(photo, "how many")
    assert list(stream) == []
    closers[0].join(60)
    assert ran == ["vision", "vision"]
    assert decoder.calls == []
    assert stream.answer is None


def test_progress_of_an_image(tiny: Tiny, photo: Pixels) -> None:
    seen: list[tuple[int, int]] = []
    tiny[0].encode(photo, checkpoint=lambda index, count: seen.append((index, count)))
    assert len(seen) > 1
    assert seen == [(index, len(seen)) for index in range(len(seen))]


def test_graphs_are_opened_when_needed_and_once(bundle: Bundle, photo: Pixels) -> None:
    engine = FakeEngine(TinyDecoder(320))
    model = Model(bundle, engine)
    assert engine.opened == ["decoder"]
    model.query(None, "how many", SHORT)
    assert engine.opened == ["decoder"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: model.query(photo, "how many", SHORT), range(8)))
    assert sorted(engine.opened) == ["decoder", "project", "vision"]
    model.point(photo, "cup")
    assert set(engine.opened[3:]) == {"region_coordinate_decoder", "region_coordinate_encoder"}
    model.detect(photo, "cup")
    assert sorted(engine.opened) == sorted(set(engine.opened))


def test_low_memory_closes_the_image_encoder_after_each_image(bundle: Bundle, photo: Pixels) -> None:
    engine = FakeEngine(TinyDecoder(320))
    model = Model(bundle, engine, low_memory=True)
    answers = [model.query(photo, "how many", SHORT).token_ids for _ in range(2)]
    assert engine.opened[0] == "decoder"
    assert sorted(engine.opened[1:3]) == sorted(engine.opened[3:]) == ["project", "vision"]
    assert answers == [Model(bundle, FakeEngine(TinyDecoder(320))).query(photo, "how many", SHORT).token_ids] * 2


def test_what_a_model_can_not_do_says_what_it_can(tmp_path: Path, photo: Pixels) -> None:
    model, _ = make_model(write_bundle(tmp_path / "asks", tasks=("query",)))
    for task, ask in (
        ("caption", lambda: model.caption(photo)),
        ("detect", lambda: model.detect(photo, "cup")),
        ("point", lambda: model.point(photo, "cup")),
        ("caption", lambda: model.stream_caption(photo)),
    ):
        with pytest.raises(UnsupportedTask, match=f"tiny can not {task}; it can: query"):
            ask()
    assert repr(model) == "Model('tiny', fp32: query)"


def test_reasoning_of_a_model_that_has_none(tmp_path: Path, photo: Pixels) -> None:
    model, _ = make_model(write_bundle(tmp_path / "plain", prompt=replace(PROMPT, reasoning=None)))
    with pytest.raises(UnsupportedTask, match="does not reason"):
        model.stream(photo, "a", GenerateOptions(reasoning=True))
    # A caption's prompt is not one that asks to think.
    assert model.caption(photo, options=GenerateOptions(reasoning=True, max_tokens=3)).reasoning is None


def test_an_image_of_another_model_is_refused(bundle: Bundle, photo: Pixels) -> None:
    (first, _), (second, _) = make_model(bundle), make_model(bundle)
    with pytest.raises(InvalidOption, match="another model"):
        second.query(first.encode(photo), "a")


def test_a_closed_model_says_so(bundle: Bundle, photo: Pixels) -> None:
    with make_model(bundle)[0] as model:
        image = model.encode(photo)
    for ask in (lambda: model.query(image, "a"), lambda: model.encode(photo), lambda: model.detect(image, "a")):
        with pytest.raises(EngineError, match="tiny was closed"):
            ask()
    model.close()


def test_bad_images_and_bundles(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = tiny
    with pytest.raises(BadImage):
        model.query(b"no image", "a")
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    with pytest.raises(BadImage):
        model.encode(buffer.getvalue()[:60])
    with pytest.raises(ModelNotFound):
        load(tmp_path / "nowhere")
    with pytest.raises(InvalidOption, match="engine"):
        load(write_bundle(tmp_path / "whole"), LoadOptions(engine="nothing"))


@pytest.mark.parametrize("missing", ["prompt", "cache", "tokenizer", "embedding"])
def test_a_manifest_without_a_part_is_damaged(tmp_path: Path, missing: str) -> None:
    bundle = write_bundle(tmp_path / missing)
    damaged = replace(bundle, manifest=replace(bundle.manifest, **{missing: None}))  # type: ignore[arg-type]
    with pytest.raises(DamagedBundle, match=f"manifest.json: {missing} is missing"):
        make_model(damaged)


@pytest.mark.parametrize("table", [np.zeros((3, 4, 5), np.float32), np.zeros((3, 4), np.int8), b"not an array", b""])
def test_an_embedding_that_is_no_table_is_damaged(tmp_path: Path, table: npt.NDArray[np.float32] | bytes) -> None:
    bundle = write_bundle(tmp_path / "table")
    path = bundle.path("embedding.npy")
    path.write_bytes(table) if isinstance(table, bytes) else np.save(path, table)
    with pytest.raises(DamagedBundle, match=r"embedding\.npy: "):
        make_model(bundle)


def test_the_references_own_sampling(tmp_path: Path, tiny: Tiny) -> None:
    assert tiny[0].reference_options == GenerateOptions()
    sampling = SamplingSpec(max_tokens=12, temperature=0.5, top_p=0.3)
    model, _ = make_model(write_bundle(tmp_path / "sampling", sampling=sampling))
    assert model.reference_options == GenerateOptions(max_tokens=12, temperature=0.5, top_p=0.3)


def test_asyncio_gives_what_threads_give(tiny: Tiny, photo: Pixels) -> None:
    model, _ = tiny
    image = model.encode(photo)

    async def ask() -> None:
        pieces = [piece async for piece in model.astream(image, "how many", SHORT)]
        assert pieces == list(model.stream(image, "how many", SHORT))
        answers = await asyncio.gather(*(model.aquery(image, "how many", SHORT) for _ in range(3)))
        assert {answer.text for answer in answers} == {"".join(pieces)}
        assert (await model.acaption(image, "short", SHORT)).text == model.caption(image, "short", SHORT).text
        assert (await model.adetect(image, "cup")).objects == model.detect(image, "cup").objects
        assert (await model.apoint(image, "cup")).points == model.point(image, "cup").points

    asyncio.run(ask())
    assert used(image) == 10


def test_closing_an_async_stream_stops_the_model(tiny: Tiny, photo: Pixels) -> None:
    model, decoder = tiny
    image = model.encode(photo)

    async def close_early() -> None:
        stream = model.astream(image, "how many")
        await anext(stream)
        n_calls = len(decoder.calls)
        await stream.aclose()
        assert used(image) == 10
        assert len(decoder.calls) == n_calls

    asyncio.run(close_early())
    assert not image._busy.locked()


@pytest.mark.parametrize("way", ["astream", "aquery"])
def test_cancelling_a_task_stops_the_model(tiny: Tiny, photo: Pixels, way: str) -> None:
    model, decoder = tiny
    image = model.encode(photo)
    decoder.script = dict.fromkeys(range(64), 70)  # never ends by itself
    go_on = threading.Event()
    decoder.on_run = lambda: len(decoder.calls) < 5 or go_on.wait(60)

    async def read() -> None:
        if way == "aquery":
            await model.aquery(image, "how many")
        async for _ in model.astream(image, "how many"):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(read())
        while len(decoder.calls) < 5:
            await asyncio.sleep(0.001)
        task.cancel()
        asyncio.get_running_loop().call_later(0.5, go_on.set)  # the sixth call ends after the cancellation
        with pytest.raises(asyncio.CancelledError):
            await task
        assert used(image) == 10

    asyncio.run(cancel())
    assert len(decoder.calls) <= 6
    assert not image._busy.locked()
