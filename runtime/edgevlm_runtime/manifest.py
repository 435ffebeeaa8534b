"""What a bundle's manifest.json says, as frozen records: everything a model needs to be run.

Nothing here names a model. A field that only one model would use belongs into its graphs instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgevlm_runtime.kinds import CacheType as CacheType
from edgevlm_runtime.kinds import Precision as Precision
from edgevlm_runtime.kinds import Role as Role
from edgevlm_runtime.kinds import Task as Task

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph: NumPy's dtype name and axes, an int where fixed and a name where free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One graph: its file, relative to the bundle, and what goes in and out.

    `compiled` maps an engine's name to the file that it opens instead of the ONNX file.
    """

    file: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    compiled: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TilingSpec:
    """How a large image is cut into overlapping local crops, and how their features are joined again.

    A crop is `grid` x `grid` patches of `patch_px`; neighbors share 2 * `margin_patches` of them. Features of local
    crops are stitched without their margins, averaged down to one grid and put beside the global crop's.
    """

    patch_px: int
    margin_patches: int
    max_crops: int


@dataclass(frozen=True, kw_only=True)
class CenterCropSpec:
    """Shorter side to `shortest_px`, the longer one in proportion (rounded down), then the square in the middle.

    Where the margin is odd, its half is rounded to the even neighbor ("half_even", as torchvision does) or down
    ("floor", as transformers does).
    """

    shortest_px: int
    rounding: Literal["half_even", "floor"]


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """Several images, or a video, as one input: a frame is resized to the square whatever its shape.

    A video gives `fps` frames a second, each from the middle of its share of the time.
    """

    resample: Literal["nearest"] = "nearest"
    fps: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Image to crops: square crops of `crop_px`, values (x / 255 - mean) / std, RGB.

    Without `tiling` and `center_crop` the whole image is resized to a square. `split` cuts an image into that many
    rows and columns of equal tiles, each made a crop as the whole image, which comes last. `frames`: several images
    can be one input.
    """

    crop_px: int
    resample: Literal["lanczos", "bicubic", "bilinear"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tiling: TilingSpec | None = None
    center_crop: CenterCropSpec | None = None
    split: int = 1
    frames: FrameSpec | None = None


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Words to the token ids (texts, tokens) of a text tower, at most `context` of them.

    Shorter texts are padded with `pad_id` to the longest of the call, or to `context` where `pad_to_context`.
    `end_id` stays the last token of a text that is cut. `lowercase` and `strip_punctuation` come before the tokenizer.
    """

    context: int
    pad_id: int
    end_id: int | None = None
    pad_to_context: bool
    lowercase: bool = False
    strip_punctuation: bool = False


@dataclass(frozen=True, kw_only=True)
class MatchSpec:
    """How alike an image and a text are: scale * cosine + bias of their embeddings is a logit.

    Over several texts "softmax" gives one probability shared among them, "sigmoid" one for each. `template` makes a
    text of a label, which replaces its {}.
    """

    scale: float
    bias: float
    activation: Literal["softmax", "sigmoid"]
    template: str


@dataclass(frozen=True, kw_only=True)
class NpuSpec:
    """The chip that a bundle's graphs were compiled for, and how the compiled graphs compare with float32.

    `target` as on the command line; `compiler` and its version; `checked_on` says where: a simulator or another
    device. `cosine` is the mean over the golden images, the worst output's; `top1_agreement` is None for embeddings.
    """

    target: str
    engine: str
    compiler: str
    checked_on: str
    cosine: float
    top1_agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """The decoder's KV cache: keys and values (1, kv_heads, max_context, head_dim) of `dtype` per layer.

    The scales of int8 are the graph's. Engines that keep the cache themselves have a type of their own.
    """

    n_layers: int
    n_kv_heads: int
    head_dim: int
    max_context: int
    dtype: CacheType = "float32"


@dataclass(frozen=True, kw_only=True)
class FusionSpec:
    """Layers that mix an image's patches and compressed tokens with the words asked, before the decoder.

    Of an image's tokens the decoder gets the last `n_compressed`. Float32 keys and values (1, kv_heads, max_context,
    head_dim) per layer and frame. Tokens of `raw_ids` are neither seen by nor changed in fusion, and take no position
    there.
    """

    n_compressed: int
    n_layers: int
    n_kv_heads: int
    head_dim: int
    max_context: int
    raw_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Template:
    """Token ids put before and after the words of a prompt."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ReasoningSpec:
    """How a model thinks before it answers: think until `answer_id`, which starts the answer.

    Between `ground_start_id` and `ground_end_id` the text is grounded: each `coordinate_id` is one coordinate, read
    from the hidden state by the region graphs, and two of them are a point.
    """

    template: Template
    answer_prompt: tuple[int, ...]
    answer_id: int
    coordinate_id: int
    ground_start_id: int
    ground_end_id: int
    suppressed_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """From words to token ids, and when an answer ends.

    `suppressed_ids` never follow the first token of an answer. `object_prefix` is put before the name of an object,
    `question_prefix` before a question.
    `spatial_point` and `spatial_box` are the placeholders of a reference to a place in the image; their embeddings
    are replaced by those of its coordinates and size.

    `before_image` are the ids before the image's tokens, (bos_id,) where None; both together are the prefix, whose
    tokens see each other ("bidirectional") or only what comes before them ("causal"). A question without an image goes
    into `text_query`; without one, it is bos_id and `query`. A question that begins with one of `tags` goes into
    `tagged` instead of `query`.
    An answer ends at eos_id, at one of `stop_ids` and before one of `stop_strings`. `boxes_in_text`: answers write
    boxes as {<x1><y1><x2><y2>} on a grid of so many steps, from which `detect` reads them.
    """

    bos_id: int
    eos_id: int
    captions: dict[str, tuple[int, ...]]
    query: Template
    detect: Template | None = None
    point: Template | None = None
    reasoning: ReasoningSpec | None = None
    suppressed_ids: tuple[int, ...] = ()
    object_prefix: str = ""
    question_prefix: str = ""
    spatial_point: tuple[int, ...] = ()
    spatial_box: tuple[int, ...] = ()
    before_image: tuple[int, ...] | None = None
    image_attention: Literal["bidirectional", "causal"] = "bidirectional"
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    text_query: Template | None = None
    tags: tuple[str, ...] = ()
    tagged: Template | None = None
    boxes_in_text: int | None = None


@dataclass(frozen=True, kw_only=True)
class RegionSpec:
    """Bins of coordinates and sizes. A coordinate is bin / coordinate_bins.

    A size is bin / size_bins ("linear") or 2 ** (10 * bin / (size_bins - 1) - 10) ("log").
    """

    coordinate_bins: int
    size_bins: int
    size_scale: Literal["log", "linear"]
    max_objects: int = 50


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """The reference's own sampling, used when a caller asks for the model's defaults."""

    max_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a bundle comes from. `tools` maps a package's name to its version; `date` is ISO 8601 in UTC."""

    source: str
    revision: str
    license: str
    date: str
    tools: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class GraphFidelity:
    """One graph against its torch module on the golden inputs.

    `relative_error` is the largest absolute difference over the largest absolute value; `cosine` the mean over rows.
    """

    role: Role
    relative_error: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class FidelityReport:
    """A bundle that generates text against the torch module in float32.

    `greedy_agreement` is the share of greedily generated tokens that the module would have chosen too;
    `top1_agreement` and `kl_divergence` (mean, nats) compare next-token distributions over `n_positions` held-out
    positions.
    """

    graphs: tuple[GraphFidelity, ...]
    logits_relative_error: float
    greedy_agreement: float
    top1_agreement: float
    kl_divergence: float
    n_positions: int


@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """What structural reparameterization did to a graph: its nodes before and after.

    `relative_error` is the largest difference between outputs of the folded graph in float32 and of the published
    module, over the module's largest value.
    """

    nodes_before: int
    nodes_after: int
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class ImageFidelityReport:
    """An image model's bundle against the torch module in float32, on `n_images` images that it was not calibrated on.

    `top1_agreement` is the share of images of the same first class, None for embeddings; `folds` are by role.
    """

    graphs: tuple[GraphFidelity, ...]
    n_images: int
    top1_agreement: float | None = None
    folds: dict[str, FoldReport] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and checksum of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole of manifest.json. Paths are relative to the bundle and use forward slashes."""

    schema_version: int
    name: str
    family: str
    description: str
    precision: Precision
    tasks: tuple[Task, ...]
    graphs: dict[str, GraphSpec]
    files: dict[str, FileRecord]
    provenance: Provenance
    image: ImageSpec | None = None
    cache: CacheSpec | None = None
    fusion: FusionSpec | None = None
    prompt: PromptSpec | None = None
    region: RegionSpec | None = None
    sampling: SamplingSpec | None = None
    text: TextSpec | None = None
    match: MatchSpec | None = None
    npu: NpuSpec | None = None
    tokenizer: str | None = None
    embedding: str | None = None
    golden: str | None = None
    labels: str | None = None
    fidelity: FidelityReport | None = None
    image_fidelity: ImageFidelityReport | None = None
    notes: dict[str, str] = field(default_factory=dict)
