"""Models of images, loaded from bundles with real graphs: what they say against NumPy, and what they refuse."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.errors import BadImage, DamagedBundle, EngineError, InvalidOption, UnsupportedTask
from edgevlm_runtime.image import ImageSource
from edgevlm_runtime.labels import Classification, sigmoid, softmax
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import LoadOptions
from edgevlm_runtime.preprocess import prepare_image
from edgevlm_runtime.records import write_record
from tests.runtime.image_bundle import (
    COLORS,
    DIM,
    HEAD,
    IMAGE,
    MATCH,
    NAMES,
    TABLE,
    WORDS,
    write_classifier,
    write_dual_encoder,
    write_encoder,
)

Pixels = npt.NDArray[np.uint8]
ENGINE = LoadOptions(engine="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_classifier(tmp_path_factory.mktemp("classifier")), ENGINE)


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_dual_encoder(tmp_path_factory.mktemp("dual")), ENGINE)


def photo(seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (20, 33, 3), dtype=np.uint8)


def plain(channel: int) -> Pixels:
    pixels = np.zeros((9, 30, 3), np.uint8)
    pixels[..., channel] = 255
    return pixels


def features_of(pixels: Pixels) -> npt.NDArray[np.float64]:
    return np.asarray(prepare_image(pixels, IMAGE).astype(np.float64).mean(axis=(1, 2)) @ COLORS)


def unit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(x / np.sqrt((x * x).sum(axis=-1, keepdims=True)))


def as_vector(found: Classification, names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Probabilities in the order of the classes."""
    assert all(label.name == names[label.index] for label in found.labels)
    by_index = {label.index: label.probability for label in found.labels}
    return np.array([by_index[index] for index in range(len(names))])


def test_a_classifier_gives_the_softmax_of_its_logits(classifier: Model) -> None:
    logits = features_of(photo()) @ HEAD
    wanted = np.exp(logits) / np.exp(logits).sum()
    found = classifier.classify(photo(), top_k=99)
    np.testing.assert_allclose(as_vector(found, NAMES), wanted, rtol=1e-4)
    order = [label.index for label in found.labels]
    assert order == np.argsort(-wanted).tolist()
    assert [label.index for label in classifier.classify(photo(), top_k=2).labels] == order[:2]
    assert found.timings.load_ms == classifier.load_ms > 0 and found.timings.image_ms > 0
    assert write_record(found)["labels"][0]["name"] == NAMES[order[0]]


def test_a_classifiers_embedding_is_its_features(classifier: Model) -> None:
    embedding = classifier.embed(photo())
    assert embedding.shape == (DIM,) and embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, features_of(photo()), rtol=1e-4, atol=1e-5)


def test_neighbors_in_a_batch_change_nothing(classifier: Model, dual: Model) -> None:
    images = [photo(seed) for seed in range(11)]
    done: list[int] = []
    together = classifier.classify_many(images, top_k=5, done=lambda: done.append(1))
    assert len(done) == 11
    for image, found in zip(images, together, strict=True):
        alone = classifier.classify(image)
        np.testing.assert_allclose(as_vector(found, NAMES), as_vector(alone, NAMES), rtol=1e-5)
    embeddings = dual.embed_many(images)
    assert embeddings.shape == (11, DIM)
    for image, embedding in zip(images, embeddings, strict=True):
        np.testing.assert_allclose(dual.embed(image), embedding, rtol=1e-5, atol=1e-6)
    assert classifier.classify_many([]) == []
    assert classifier.embed_many([]).shape == (0, DIM)


def test_zero_shot_is_the_softmax_of_scaled_cosines(dual: Model) -> None:
    labels = ("red", "green bicycle", "blue")
    ids = {"red": "red", "green bicycle": "green bicycle", "blue": "blue"}
    texts = []
    for label in labels:
        words = ["<s>", *ids[label].split(), "</s>"]
        texts.append(TABLE[[WORDS.index(word) for word in words]].mean(axis=0).astype(np.float64))
    cosines = unit(features_of(photo())) @ unit(np.array(texts)).T
    wanted = np.exp(MATCH.scale * cosines) / np.exp(MATCH.scale * cosines).sum()
    found = dual.classify(photo(), labels=labels, template="{}")
    np.testing.assert_allclose(as_vector(found, labels), wanted, rtol=1e-4)


def test_the_models_own_template_is_used(dual: Model) -> None:
    labels = ["red", "green"]
    own = dual.classify(photo(), labels=labels)
    assert own.labels == dual.classify(photo(), labels=labels, template="a photo of a {}.").labels
    assert own.labels != dual.classify(photo(), labels=labels, template="{}").labels
    # Braces of a label, or of the template, are only text.
    assert len(dual.classify(photo(), labels=["{0}", "{x}"], template="{} {y}").labels) == 2


def test_sigmoid_judges_each_label_by_itself(tmp_path: Path) -> None:
    model = load(write_dual_encoder(tmp_path, match=replace(MATCH, activation="sigmoid")), ENGINE)
    both = as_vector(model.classify(photo(), labels=["red", "green"]), ("red", "green"))
    alone = model.classify(photo(), labels=["red"]).labels[0].probability
    assert both[0] == pytest.approx(alone)
    cosine = float(model.embed(photo()) @ model.embed_texts(["a photo of a red."])[0])
    assert alone == pytest.approx(1 / (1 + np.exp(-(MATCH.scale * cosine + MATCH.bias))), rel=1e-5)


def test_embeddings_of_a_dual_encoder_have_length_1(dual: Model) -> None:
    images, texts = dual.embed_many([photo(), plain(0)]), dual.embed_texts(["red", "a photo"])
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([images, texts]), axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(images[0], unit(features_of(photo())), rtol=1e-4, atol=1e-5)


def test_an_image_encoder_alone(tmp_path: Path) -> None:
    model = load(write_encoder(tmp_path), ENGINE)
    np.testing.assert_allclose(model.embed(photo()), features_of(photo()), rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedTask, match=r"tiny-images can not classify; it can: embed$"):
        model.classify(photo())


def test_what_a_classifier_can_not_do_says_what_it_can(classifier: Model) -> None:
    asks: dict[str, Callable[[], object]] = {
        "query": lambda: classifier.query(photo(), "what is this?"),
        "caption": lambda: classifier.caption(photo()),
        "detect": lambda: classifier.detect(photo(), "cup"),
        "write text": lambda: classifier.encode(photo()),
        "embed texts": lambda: classifier.embed_texts(["a"]),
        "search": lambda: classifier.search(".", "a"),
    }
    for what, ask in asks.items():
        with pytest.raises(UnsupportedTask, match=f"tiny-images can not {what}; it can: classify, embed$"):
            ask()


def test_options_that_can_not_be_used(classifier: Model, dual: Model) -> None:
    refused: dict[str, Callable[[], object]] = {
        "5 classes of its own": lambda: classifier.classify(photo(), labels=["a"]),
        "leave out labels and template": lambda: classifier.classify(photo(), template="{}"),
        "say which: --labels": lambda: dual.classify(photo()),
        "no {}": lambda: dual.classify(photo(), labels=["a"], template="a photo"),
        "labels: a list": lambda: dual.classify(photo(), labels=[]),
        "none of them may be blank": lambda: dual.classify(photo(), labels=["a", " "]),
        "labels: a list of": lambda: dual.classify(photo(), labels="red"),
        "texts: a list": lambda: dual.embed_texts([]),
        "top_k is 0": lambda: classifier.classify(photo(), top_k=0),
        "top_k is True": lambda: dual.search(".", "a", top_k=True),
        "Unicode": lambda: dual.embed_texts(["caf\udce9"]),
    }
    for message, ask in refused.items():
        with pytest.raises(InvalidOption) as error:
            ask()
        assert message in str(error.value) and "\n" not in str(error.value)


def test_a_bad_image_among_many_is_named(classifier: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"^\S*broken\.png: not an image"):
        classifier.classify_many([photo(), tmp_path / "broken.png"])
    with pytest.raises(BadImage, match=r"^image 2 of 2: the image's bytes: "):
        classifier.embed_many([photo(), b"no image"])
    with pytest.raises(BadImage, match=r"^the image's bytes: "):
        classifier.classify(b"no image")


def test_images_of_any_kind(classifier: Model, tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    kinds: list[ImageSource] = [
        photo(),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        data,
        io.BytesIO(data),
        Image.fromarray(photo()),
    ]
    found = classifier.classify_many(kinds)
    assert all(each.labels == found[0].labels for each in found)


@pytest.mark.parametrize("labels", ["red\ngreen\n", "\n".join(NAMES) + "\nsixth\n", "", "\n".join(NAMES) + "\n\n"])
def test_labels_of_another_number_are_damaged(tmp_path: Path, labels: str) -> None:
    bundle = write_classifier(tmp_path, labels=labels)
    with pytest.raises(DamagedBundle, match=r"labels\.txt: \d labels for 5 classes"):
        load(bundle, ENGINE)


def test_labels_from_other_editors(tmp_path: Path) -> None:
    found = load(write_classifier(tmp_path / "dos", labels="\r\n".join(NAMES)), ENGINE).classify(photo())
    assert {label.name for label in found.labels} == set(NAMES)
    unnamed = load(write_classifier(tmp_path / "none", labels=None), ENGINE).classify(photo())
    assert {label.name for label in unnamed.labels} == {f"class {index}" for index in range(5)}
    bundle = write_classifier(tmp_path / "latin")
    bundle.path("labels.txt").write_bytes("Käse\n".encode("latin-1") * 5)
    with pytest.raises(DamagedBundle, match="not a list of labels"):
        load(bundle, ENGINE)


def test_a_manifest_without_a_part_is_damaged(tmp_path: Path) -> None:
    def without(bundle: Bundle, **changes: object) -> Model:
        return load(replace(bundle, manifest=replace(bundle.manifest, **changes)), ENGINE)  # type: ignore[arg-type]

    classifier, dual = write_classifier(tmp_path / "classifier"), write_dual_encoder(tmp_path / "dual")
    graphs = classifier.manifest.graphs
    with pytest.raises(DamagedBundle, match="image is missing"):
        without(classifier, image=None)
    with pytest.raises(DamagedBundle, match="no graph of images"):
        without(dual, graphs={"text": dual.manifest.graphs["text"]})
    with pytest.raises(DamagedBundle, match="no number of classes"):
        without(classifier, graphs={"classifier": replace(graphs["classifier"], outputs=())})
    logits_only = tuple(each for each in graphs["classifier"].outputs if each.name == "logits")
    with pytest.raises(DamagedBundle, match="no output features"):
        without(classifier, graphs={"classifier": replace(graphs["classifier"], outputs=logits_only)}).embed(photo())
    for part in ("text", "tokenizer"):
        with pytest.raises(DamagedBundle, match=f"{part} is missing"):
            without(dual, **{part: None}).embed_texts(["a"])
    with pytest.raises(DamagedBundle, match="match is missing"):
        without(dual, match=None).classify(photo(), labels=["red"])


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    with load(write_dual_encoder(tmp_path / "dual"), ENGINE) as model:
        model.classify(photo(), labels=["red"])
    asks: tuple[Callable[[], object], ...] = (lambda: model.embed(photo()), lambda: model.embed_texts(["a"]))
    for ask in asks:
        with pytest.raises(EngineError, match="was closed"):
            ask()


def test_threads_share_a_model(dual: Model) -> None:
    def ask(seed: int) -> Classification:
        labels = ["red", "green"] if seed % 2 else ["blue", "bicycle", "photo"]
        return dual.classify(photo(seed), labels=labels)

    wanted = [ask(seed).labels for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert [each.labels for each in pool.map(ask, range(12))] == wanted


def test_activations_do_not_overflow() -> None:
    with np.errstate(all="raise"):
        large = np.array([[-2000, 0, 2000]], np.float32)
        np.testing.assert_array_equal(sigmoid(large), [[0, 0.5, 1]])
        assert softmax(large[:, 1:] / np.float32(4)).tolist()[0] == pytest.approx([np.exp(-500.0), 1])
