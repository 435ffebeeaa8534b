"""What an image model can be asked: classify, embed, search. Encoders are opened when they are first needed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import BadImage, DamagedBundle, InvalidOption
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import ImageSource, Pixels, load_image
from edgevlm_runtime.image_encoder import ImageEncoder
from edgevlm_runtime.labels import Classification, ImageTimings, likeliest, read_labels, sigmoid, softmax
from edgevlm_runtime.manifest import MatchSpec, Role
from edgevlm_runtime.options import Range
from edgevlm_runtime.parts import needed, open_image_encoder, open_text_encoder
from edgevlm_runtime.search import FolderIndex, Hit, SearchResult, rank
from edgevlm_runtime.text_encoder import TextEncoder

Done: TypeAlias = Callable[[], None]
_TOP_K = Range(low=1, whole=True)


@dataclass(frozen=True, kw_only=True)
class LabelTexts:
    """Labels that a caller gave, and the embeddings (classes, dim) of their texts, of length 1."""

    labels: tuple[str, ...]
    template: str
    embeddings: FloatArray


class ImageTasks:
    """An image model: a classifier of fixed classes, or an encoder of images with or without one of texts.

    Threads may share it. Which of its methods fit the model is for the caller to know.

    Raises:
        DamagedBundle: the manifest describes no graph of images, or labels.txt does not fit it.
    """

    def __init__(self, bundle: Bundle, graphs: Graphs) -> None:
        self._bundle = bundle
        self._graphs = graphs
        self._role = _role(bundle)
        self._names = _class_names(bundle) if self._role == "classifier" else ()
        self._images: ImageEncoder | None = None
        self._texts: TextEncoder | None = None
        self._opening = threading.Lock()
        self._last: LabelTexts | None = None
        if len(bundle.manifest.graphs) == 1:
            self._image_encoder()

    def close(self) -> None:
        """Let go of the graphs."""
        with self._opening:
            self._images = self._texts = None

    def classify(
        self,
        images: Sequence[ImageSource],
        *,
        top_k: int,
        labels: Sequence[str] | None,
        template: str | None,
        load_ms: float,
        done: Done | None = None,
    ) -> list[Classification]:
        """The `top_k` likeliest classes of each image; see `Model.classify_many`."""
        if top_k not in _TOP_K:
            raise InvalidOption(f"top_k is {top_k!r}, but must be {_TOP_K}")
        given = self._label_texts(labels, template)
        start = time.perf_counter()
        if given is None:
            names, probabilities = self._names, softmax(self._run(images, "logits", done))
        else:
            names, probabilities = given.labels, self._match(self.embed(images, done), given.embeddings)
        image_ms = 1e3 * (time.perf_counter() - start) / max(1, len(images))
        timings = ImageTimings(load_ms=load_ms, image_ms=image_ms)
        return [Classification(labels=likeliest(row, names, top_k), timings=timings) for row in probabilities]

    def embed(self, images: Sequence[ImageSource], done: Done | None = None) -> FloatArray:
        """Embeddings (images, dim), of length 1 where they are compared with texts."""
        features = self._run(images, _OUTPUTS[self._role], done)
        return features if self._bundle.manifest.match is None else _unit(features)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (texts, dim) of length 1.

        Raises:
            InvalidOption: there is no text, one is blank or not valid Unicode.
        """
        _check_words(texts, "texts")
        return _unit(self._text_encoder().embed(texts))

    def search(
        self, folder: str | os.PathLike[str], text: str, *, top_k: int, done: Done | None = None
    ) -> SearchResult:
        """See `Model.search`."""
        if top_k not in _TOP_K:
            raise InvalidOption(f"top_k is {top_k!r}, but must be {_TOP_K}")
        wanted = self.embed_texts([text])
        bundle = self._bundle
        index = FolderIndex(folder, name=bundle.manifest.name, fingerprint=bundle.fingerprint, dim=wanted.shape[1])
        found = index.refresh(lambda pixels: self.embed([pixels])[0], done)
        scores: FloatArray = found.embeddings @ wanted[0]
        chances = self._match(found.embeddings, wanted)[:, 0] if self._match_spec.activation == "sigmoid" else None
        hits = tuple(
            Hit(
                path=found.paths[i],
                score=float(scores[i]),
                probability=None if chances is None else float(chances[i]),
            )
            for i in rank(scores, top_k)
        )
        return SearchResult(hits=hits, skipped=found.skipped, n_images=len(found.paths))

    @property
    def _match_spec(self) -> MatchSpec:
        return needed(self._bundle.manifest.match, "match")

    def _match(self, images: FloatArray, texts: FloatArray) -> npt.NDArray[np.float64]:
        """Probabilities (images, texts) of embeddings of length 1."""
        spec = self._match_spec
        logits: FloatArray = spec.scale * (images @ texts.T) + spec.bias
        return softmax(logits) if spec.activation == "softmax" else sigmoid(logits)

    def _run(self, images: Sequence[ImageSource], output: str, done: Done | None) -> FloatArray:
        outputs = self._image_encoder().run(_load_all(images), done)
        if output not in outputs:
            raise DamagedBundle(f"manifest.json: graph {self._role} has no output {output}; export the model again")
        return outputs[output]

    def _label_texts(self, labels: Sequence[str] | None, template: str | None) -> LabelTexts | None:
        """The labels to choose among; None where the model has its own.

        Raises:
            InvalidOption: labels are missing or can not be used, or the model has its own.
        """
        name = self._bundle.manifest.name
        if self._role == "classifier":
            if labels is not None or template is not None:
                raise InvalidOption(f"{name} has {len(self._names)} classes of its own; leave out labels and template")
            return None
        if labels is None:
            raise InvalidOption(f'{name} has no classes of its own; say which: --labels "a cat, a dog"')
        _check_words(labels, "labels")
        template = self._match_spec.template if template is None else template
        if "{}" not in template:
            raise InvalidOption(f'template {template!r} has no {{}} for the label; an example: "a photo of a {{}}."')
        return self._embed_labels(tuple(labels), template)

    def _embed_labels(self, labels: tuple[str, ...], template: str) -> LabelTexts:
        """The embeddings of labels; those of the last call are kept for the next image."""
        last = self._last
        if last is None or (last.labels, last.template) != (labels, template):
            embeddings = self.embed_texts([template.replace("{}", label) for label in labels])
            self._last = last = LabelTexts(labels=labels, template=template, embeddings=embeddings)
        return last

    def _image_encoder(self) -> ImageEncoder:
        with self._opening:
            if self._images is None:
                self._images = open_image_encoder(self._bundle, self._graphs, self._role)
            return self._images

    def _text_encoder(self) -> TextEncoder:
        with self._opening:
            if self._texts is None:
                self._texts = open_text_encoder(self._bundle, self._graphs)
            return self._texts


_OUTPUTS: dict[Role, str] = {"classifier": "features", "vision": "embeddings"}


def _role(bundle: Bundle) -> Role:
    """Which of a bundle's graphs takes images."""
    for role in _OUTPUTS:
        if role in bundle.manifest.graphs:
            return role
    raise DamagedBundle(f"{bundle.root}: manifest.json has no graph of images; export the model again")


def _class_names(bundle: Bundle) -> tuple[str, ...]:
    """The names of a classifier's classes; their numbers where it has no labels.txt."""
    manifest = bundle.manifest
    logits = [output for output in manifest.graphs["classifier"].outputs if output.name == "logits"]
    n_classes = logits[0].shape[-1] if logits and logits[0].shape else None
    if not isinstance(n_classes, int):
        raise DamagedBundle(f"{bundle.root}: manifest.json has no number of classes; export the model again")
    if manifest.labels is None:
        return tuple(f"class {index}" for index in range(n_classes))
    return read_labels(bundle.path(manifest.labels), n_classes)


def _load_all(images: Sequence[ImageSource]) -> Iterator[Pixels]:
    """Pixels one by one; an error says which image it is about."""
    for number, image in enumerate(images, 1):
        try:
            yield load_image(image)
        except BadImage as error:
            if len(images) == 1 or isinstance(image, str | os.PathLike):
                raise
            raise BadImage(f"image {number} of {len(images)}: {error}") from error


def _check_words(texts: Sequence[str], what: str) -> None:
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InvalidOption(f"{what}: a list of at least one is needed, and none of them may be blank")


def _unit(x: FloatArray) -> FloatArray:
    """Rows of length 1; a row of zeros stays."""
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)
