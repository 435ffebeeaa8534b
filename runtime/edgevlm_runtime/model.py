"""Model: what a bundle can be asked. Parts are opened here and put together; the work is done in the other files."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from edgevlm_runtime.answer import Answer, Detections, Points, timings_of, usage_of
from edgevlm_runtime.bundle import Bundle, open_bundle
from edgevlm_runtime.decoder import Session
from edgevlm_runtime.drafting import Drafter, Guessers, check_draft
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.engines import Engine, FloatArray, open_engine
from edgevlm_runtime.errors import EngineError, UnsupportedTask
from edgevlm_runtime.frames import FramesSource
from edgevlm_runtime.generate import Writer
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import ImageSource
from edgevlm_runtime.image_cache import ImageCache, open_image_cache
from edgevlm_runtime.image_reader import ImageReader
from edgevlm_runtime.image_tasks import Done, ImageTasks
from edgevlm_runtime.labels import Classification
from edgevlm_runtime.manifest import Manifest, Task
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from edgevlm_runtime.parts import TextParts, needed, open_text
from edgevlm_runtime.prompts import Prompt, SpatialRef
from edgevlm_runtime.regions import Locator
from edgevlm_runtime.search import SearchResult
from edgevlm_runtime.sessions import AnyImage, Sessions
from edgevlm_runtime.speculate import Draft
from edgevlm_runtime.streams import AnswerStream, Checkpoint, iterate, run_to_end
from edgevlm_runtime.text_boxes import read_boxes
from edgevlm_runtime.tuning import tuned_options

GREEDY = GenerateOptions()
T = TypeVar("T")


def load(source: str | os.PathLike[str] | Bundle, options: LoadOptions | None = None) -> Model:
    """Open a bundle, given as its folder or already opened.

    Raises:
        BundleError: it is missing or damaged.
        EngineError: the engine is not installed, or can not open the decoder or the classifier.
        InvalidOption: the draft has another tokenizer.
    """
    options = options or LoadOptions()
    start = time.perf_counter()
    bundle = source if isinstance(source, Bundle) else open_bundle(Path(source))
    tuned = tuned_options(options, bundle)
    engine = open_engine(tuned.engine, tuned.threads, bundle.manifest)
    images = open_image_cache(bundle, engine, tuned)
    return Model(
        bundle,
        engine,
        low_memory=options.low_memory,
        context=options.context,
        images=images,
        open_draft=None if options.draft is None else _draft_opener(Path(options.draft), bundle.manifest, options),
        start=start,
    )


def _draft_opener(path: Path, manifest: Manifest, options: LoadOptions) -> Callable[[], Model]:
    draft = open_bundle(path)
    check_draft(draft.manifest, manifest)
    return partial(load, draft, replace(options, draft=None, context=None))


class Model:
    """A model to ask about images, shared by threads. Close it, or use it in a with statement, to free its memory.

    `image` is an image of any kind, or one that `encode` gave, which saves encoding it again (`options.max_crops`
    then has no effect). Whatever a bundle can not do raises UnsupportedTask; an image that can not be decoded,
    BadImage; a prompt that does not fit, ContextOverflow.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        low_memory: bool = False,
        context: int | None = None,
        images: ImageCache | None = None,
        open_draft: Callable[[], Drafter] | None = None,
        start: float | None = None,
    ) -> None:
        """`low_memory` and `context` as in LoadOptions; without `images` no encoded image is remembered.

        `open_draft` opens the model that guesses, see `LoadOptions.draft`, when it is first needed;
        `start` is the perf_counter value from which `load_ms` counts.
        """
        start = time.perf_counter() if start is None else start
        self._bundle = bundle
        self._graphs = Graphs(bundle, engine)
        self._parts: TextParts | None = None
        self._images: ImageTasks | None = None
        try:
            if "decoder" in bundle.manifest.graphs:
                self._parts = open_text(bundle, self._graphs, context)
            else:
                self._images = ImageTasks(bundle, self._graphs)
        except BaseException:
            self._graphs.close()  # what is still being opened in the background
            raise
        self._encoded = images or ImageCache(bundle, engine.name)
        self._guessers = Guessers(open_draft if self._parts and self._parts.decoder.forgets_exactly else None)
        self._sessions = self._open_sessions(low_memory)
        self.load_ms = 1e3 * (time.perf_counter() - start)

    def __repr__(self) -> str:
        return f"Model({self.manifest.name!r}, {self.manifest.precision}: {', '.join(self.manifest.tasks)})"

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._bundle.manifest

    @property
    def reference_options(self) -> GenerateOptions:
        """The sampling that the model's authors use; greedy where the bundle names none."""
        sampling = self.manifest.sampling
        if sampling is None:
            return GREEDY
        return GenerateOptions(max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p)

    def close(self) -> None:
        """Let go of the graphs; what still runs on one keeps it until it is done.

        Waits for an image that is being written to the image cache.
        """
        self._graphs.close()
        self._parts = self._sessions = None
        self._encoded.close()
        if self._images is not None:
            self._images.close()
        self._guessers.close()

    def encode(
        self, image: ImageSource | FramesSource, *, max_crops: int | None = None, checkpoint: Checkpoint | None = None
    ) -> EncodedImage:
        """Encode an image once, to ask it many times; fewer crops are faster and see less detail.

        Models that see several images at once also take a list of them, a folder, or a video.
        `checkpoint` is called with the index and the number of crops, or of frames, before each; what it raises ends
        the encoding. An image that the image cache knows is not encoded again.
        """
        return self._open(self._sessions).reader.read(image, max_crops, checkpoint)

    def caption(self, image: AnyImage, length: str = "normal", options: GenerateOptions = GREEDY) -> Answer:
        """Describe an image; `length` is one of the model's, usually "short", "normal" or "long"."""
        return self.stream_caption(image, length, options).finish()

    def stream_caption(
        self, image: AnyImage, length: str = "normal", options: GenerateOptions = GREEDY
    ) -> AnswerStream:
        """`caption`, piece by piece."""
        prompt = self._need("caption").prompts.caption(length)
        return AnswerStream(partial(self._write, image, prompt, options))

    def query(
        self,
        image: AnyImage | None,
        question: str,
        options: GenerateOptions = GREEDY,
        spatial_refs: Sequence[SpatialRef] = (),
    ) -> Answer:
        """Answer a question about an image, about places in it, or about nothing but what the question says."""
        return self.stream(image, question, options, spatial_refs).finish()

    def stream(
        self,
        image: AnyImage | None,
        question: str,
        options: GenerateOptions = GREEDY,
        spatial_refs: Sequence[SpatialRef] = (),
    ) -> AnswerStream:
        """`query`, piece by piece. Nothing runs before the first piece is asked for; closing the stream cancels it."""
        prompts = self._need("query").prompts
        prompt = prompts.query(question, spatial_refs, image=image is not None, reasoning=options.reasoning)
        return AnswerStream(partial(self._write, image, prompt, options, reasoning=options.reasoning))

    def next_token_logits(self, image: AnyImage | None, prompt: str) -> FloatArray:
        """Float32 (vocab,) logits of the first token that would answer the question `prompt`."""
        parts = self._need("query")
        asked = parts.prompts.query(prompt, image=image is not None)
        with self._session(image, asked) as (session, embeddings):
            return session.prefill(embeddings).logits

    def detect(self, image: AnyImage, name: str, options: GenerateOptions = GREEDY) -> Detections:
        """Find all objects of a name and their boxes; of `options`, max_objects and max_crops matter."""
        parts = self._need("detect")
        asked = parts.prompts.locate(needed(parts.spec.detect, "prompt.detect"), name)
        if parts.spec.boxes_in_text is not None:
            written = replace(GREEDY, max_tokens=options.max_tokens, max_crops=options.max_crops)
            answer = AnswerStream(partial(self._write, image, asked, written)).finish()
            boxes = read_boxes(answer.text, parts.spec.boxes_in_text)[: options.max_objects]
            return Detections(objects=boxes, usage=answer.usage, timings=answer.timings)
        with self._session(image, asked, options.max_crops) as (session, embeddings):
            boxes = tuple(self._locator(parts, options).boxes(session, embeddings))
            return Detections(
                objects=boxes, usage=usage_of(session, session.n_steps), timings=timings_of(session, self.load_ms)
            )

    def point(self, image: AnyImage, name: str, options: GenerateOptions = GREEDY) -> Points:
        """Find the centers of all objects of a name; of `options`, max_objects and max_crops matter."""
        parts = self._need("point")
        asked = parts.prompts.locate(needed(parts.spec.point, "prompt.point"), name)
        with self._session(image, asked, options.max_crops) as (session, embeddings):
            points = tuple(self._locator(parts, options).points(session, embeddings))
            return Points(
                points=points, usage=usage_of(session, session.n_steps), timings=timings_of(session, self.load_ms)
            )

    def classify(
        self,
        image: ImageSource,
        *,
        top_k: int = 5,
        labels: Sequence[str] | None = None,
        template: str | None = None,
    ) -> Classification:
        """Tell which classes an image is of; see `classify_many`."""
        return self.classify_many([image], top_k=top_k, labels=labels, template=template)[0]

    def classify_many(
        self,
        images: Sequence[ImageSource],
        *,
        top_k: int = 5,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        done: Done | None = None,
    ) -> list[Classification]:
        """Tell which classes images are of, the `top_k` likeliest of each; `done` is called after each image.

        A model without classes of its own chooses among `labels`, of which `template` makes texts: a label takes the
        place of {}. Labels for a model that has classes, or none for one that has not, raise InvalidOption.
        """
        tasks = self._need_images("classify")
        return tasks.classify(images, top_k=top_k, labels=labels, template=template, load_ms=self.load_ms, done=done)

    def embed(self, image: ImageSource) -> FloatArray:
        """The embedding float32 (dim,) of an image; see `embed_many`."""
        embedding: FloatArray = self.embed_many([image])[0]
        return embedding

    def embed_many(self, images: Sequence[ImageSource], *, done: Done | None = None) -> FloatArray:
        """Embeddings float32 (images, dim); `done` is called after each image.

        Those of a model that reads text too have length 1, so that their products are cosines; those of others are
        the features as they are.
        """
        return self._need_images("embed").embed(images, done)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings float32 (texts, dim) of length 1, to compare with those of images."""
        if "text" not in self.manifest.graphs:
            raise self._can_not("embed texts")
        return self._need_images("embed").embed_texts(texts)

    def search(
        self, folder: str | os.PathLike[str], text: str, *, top_k: int = 10, done: Done | None = None
    ) -> SearchResult:
        """Rank the images of a folder and its folders by how alike they are to a text.

        Their embeddings are kept in FOLDER/.edgevlm where it can be written, and made again for files that changed.
        `done` is called after each image file. What can not be read is skipped and named in the result.

        Raises:
            InvalidOption: there is no such folder, or no image in it.
        """
        return self._need_images("search").search(folder, text, top_k=top_k, done=done)

    def astream(
        self,
        image: AnyImage | None,
        question: str,
        options: GenerateOptions = GREEDY,
        spatial_refs: Sequence[SpatialRef] = (),
    ) -> AsyncGenerator[str, None]:
        """`stream` for asyncio: closing it, or cancelling its task, stops the model at the next token."""
        return iterate(self.stream(image, question, options, spatial_refs))

    async def aquery(
        self,
        image: AnyImage | None,
        question: str,
        options: GenerateOptions = GREEDY,
        spatial_refs: Sequence[SpatialRef] = (),
    ) -> Answer:
        """`query` for asyncio; cancelling its task stops the model at the next token."""
        return await run_to_end(self.stream(image, question, options, spatial_refs))

    async def acaption(self, image: AnyImage, length: str = "normal", options: GenerateOptions = GREEDY) -> Answer:
        """`caption` for asyncio; cancelling its task stops the model at the next token."""
        return await run_to_end(self.stream_caption(image, length, options))

    async def adetect(self, image: AnyImage, name: str, options: GenerateOptions = GREEDY) -> Detections:
        """`detect` for asyncio."""
        import asyncio

        return await asyncio.to_thread(self.detect, image, name, options)

    async def apoint(self, image: AnyImage, name: str, options: GenerateOptions = GREEDY) -> Points:
        """`point` for asyncio."""
        import asyncio

        return await asyncio.to_thread(self.point, image, name, options)

    def _need(self, task: Task) -> TextParts:
        """The parts that read and write, if the model can do the task."""
        if task not in self.manifest.tasks:
            raise self._can_not(task)
        return self._open_parts()

    def _need_images(self, task: Task) -> ImageTasks:
        """What an image model can be asked, if the model is one and can do the task."""
        if task not in self.manifest.tasks or self._images is None:
            raise self._can_not(task)
        return self._images

    def _can_not(self, what: str) -> UnsupportedTask:
        return UnsupportedTask(f"{self.manifest.name} can not {what}; it can: {', '.join(self.manifest.tasks)}")

    def _open_parts(self) -> TextParts:
        return self._open(self._parts)

    def _open(self, part: T | None) -> T:
        """A part of models that write text, while there is one."""
        if self._images is not None:
            raise self._can_not("write text")
        if part is None:
            raise EngineError(f"{self.manifest.name} was closed; load it again")
        return part

    def _open_sessions(self, low_memory: bool) -> Sessions | None:
        if self._parts is None:
            return None
        images, guessers = self._encoded, self._guessers
        reader = ImageReader(self.manifest, self._graphs, self._parts, images, guessers, low_memory=low_memory)
        return Sessions(parts=self._parts, reader=reader, images=images)

    def _locator(self, parts: TextParts, options: GenerateOptions) -> Locator:
        regions = parts.need_regions()
        limit = min(options.max_objects, regions.spec.max_objects)
        return Locator(regions=regions, eos_id=parts.spec.eos_id, max_objects=limit)

    def _write(
        self,
        image: AnyImage | None,
        prompt: Prompt,
        options: GenerateOptions,
        checkpoint: Checkpoint,
        *,
        reasoning: bool = False,
    ) -> Generator[str, None, Answer]:
        """Encode, read the prompt and answer it, as an AnswerStream asks for it."""
        parts = self._open_parts()
        writer = Writer(spec=parts.spec, tokenizer=parts.tokenizer, load_ms=self.load_ms)
        with self._session(image, prompt, options.max_crops, checkpoint) as (session, embeddings):
            thoughts = parts.thoughts(session) if reasoning else None
            with self._guessers.of(session, prompt, options) as guessers:
                return (yield from writer.write(session, embeddings, options, thoughts, guessers))

    @contextmanager
    def drafting(self, image: EncodedImage | None, prompt: Prompt) -> Iterator[Draft]:
        """Guess how another model answers a prompt about an image that this one has encoded."""
        parts = self._open_parts()
        with self._session(image, prompt) as (session, embeddings):
            yield Draft(session, embeddings, parts.spec.suppressed_ids)

    def _session(
        self, image: AnyImage | None, prompt: Prompt, max_crops: int | None = None, checkpoint: Checkpoint | None = None
    ) -> AbstractContextManager[tuple[Session, FloatArray]]:
        """See `Sessions.open`."""
        return self._open(self._sessions).open(image, prompt, max_crops, checkpoint)
