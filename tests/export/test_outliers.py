"""int8 where activations have outliers a hundred times above the rest, and without what makes it survive them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from edgevlm_export import calibrate, pipeline, text_pipeline
from edgevlm_export.families.moondream2.random_weights import TINY_ERA, write_random
from edgevlm_export.fidelity import BARS
from edgevlm_export.modules.layers import Linear
from edgevlm_export.modules.moondream2 import (
    Moondream2,
    Moondream2Config,
    RegionConfig,
    TextConfig,
    VisionConfig,
    prefix_mask,
)
from edgevlm_export.quantize import NOT_CALIBRATED
from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.errors import FidelityError
from edgevlm_runtime.fidelity import mean_cosine, mean_divergence, relative_error, share_agreeing
from tests.export.conftest import caching_trace, read_recipe

N_PREFIX, N_TOKENS = 10, 60
OUTLIER = 100.0
# Outliers as a language model has them: 1 channel of 256. The vision MLP's 269 is not a multiple of any block.
CONFIG = Moondream2Config(
    text=TextConfig(
        dim=256, ff_dim=512, n_layers=2, n_heads=4, n_kv_heads=4, vocab_size=800, max_context=256, prefix_attn=N_PREFIX
    ),
    vision=VisionConfig(
        enc_dim=144,
        enc_ff_dim=269,
        enc_n_layers=2,
        enc_n_heads=2,
        crop_size=42,
        proj_inner_dim=64,
        proj_out_dim=256,
        overlap_margin=1,
    ),
    region=RegionConfig(dim=256, coord_feat_dim=32, coord_out_dim=64, size_feat_dim=48, size_out_dim=128, inner_dim=96),
)
CHANNELS = {0: 17, 1: 18}  # of each layer's norm
Export = Callable[[Path], Bundle]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without outliers."""
    folder = tmp_path_factory.mktemp("plain")
    write_random(folder, CONFIG, TINY_ERA, seed=5)
    return folder


@pytest.fixture(scope="module")
def spiky(tmp_path_factory: pytest.TempPathFactory, plain: Path) -> Path:
    """The same checkpoint with outliers before the text model's matrices."""
    folder = tmp_path_factory.mktemp("spiky")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((plain / name).read_bytes())
    tensors = load_file(plain / "model.safetensors")
    for layer, channel in CHANNELS.items():
        tensors[f"model.text.blocks.{layer}.ln.weight"][channel] = OUTLIER
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def export_int8(tmp_path_factory: pytest.TempPathFactory) -> Export:
    traced = caching_trace()

    def export(source: Path) -> Bundle:
        out = tmp_path_factory.mktemp("bundles") / "int8"
        request = pipeline.ExportRequest(name="t", family="moondream2", source=source, out=out, precision="int8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_pipeline, "trace", traced)
            return pipeline.export(request)

    return export


@pytest.fixture(scope="module")
def split(export_int8: Export, spiky: Path) -> Bundle:
    return export_int8(spiky)


@pytest.fixture(scope="module")
def module(spiky: Path) -> Moondream2:
    module = Moondream2(CONFIG).eval().requires_grad_(False)
    recipe = read_recipe(spiky)
    module.load_state_dict({name: recipe.weights[name] for name in recipe.weights})
    return module


def operators(bundle: Bundle, role: str) -> Counter[str]:
    graph = onnx.load(bundle.path(f"{role}.onnx"), load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def torch_logits(module: Moondream2) -> npt.NDArray[np.float32]:
    embeddings = torch.randn(N_TOKENS, CONFIG.text.dim, generator=torch.Generator().manual_seed(1))
    mask, positions = prefix_mask(N_TOKENS, N_PREFIX), torch.arange(N_TOKENS)
    hidden = module.text.hidden(embeddings[None], positions, mask)[0, N_PREFIX:]
    return module.text.logits(hidden).numpy()


def figures(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> dict[str, bool]:
    """Which of the int8 bar's figures are reached."""
    bar = BARS["int8"]
    return {
        "cosine": mean_cosine(logits, reference) >= bar.limits.graph_cosine,
        "top1": share_agreeing(reference, logits.argmax(-1), bar.limits.tie_nats) >= bar.top1_agreement,
        "kl": mean_divergence(logits, reference) <= bar.kl_divergence,
    }


def per_tensor(x: Tensor) -> Tensor:
    scale = x.abs().max() / 127
    return (x / scale).round() * scale


def test_the_text_model_survives_outliers(split: Bundle) -> None:
    report = split.manifest.fidelity  # the export was held to the bar
    assert report is not None
    decoder = next(graph for graph in report.graphs if graph.role == "decoder")
    assert decoder.cosine > 0.9995 and report.top1_agreement > 0.98
    assert split.manifest.notes == {"in float32": "4 outlier channels of 4 matrices"}


def test_it_does_not_when_they_stay_in_int8(export_int8: Export, spiky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "observe", lambda *_: NOT_CALIBRATED)
    with pytest.raises(FidelityError, match="of decoder"):
        export_int8(spiky)


def test_one_scale_for_a_tensor_does_not(module: Moondream2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with weights as good as float32."""
    reference = torch_logits(module)
    monkeypatch.setattr(Linear, "forward", lambda self, x: functional.linear(per_tensor(x), self.weight, self.bias))
    assert not figures(torch_logits(module), reference)["cosine"]


def test_only_matrices_with_outliers_have_more_nodes(export_int8: Export, plain: Path, split: Bundle) -> None:
    unsplit = export_int8(plain)
    assert unsplit.manifest.notes == {}
    added = operators(split, "decoder") - operators(unsplit, "decoder")
    # A layer's two matrices after its norm; both read one split of its values.
    assert added == {"Mul": 2, "Gather": 2, "MatMul": 4, "Add": 4}
    assert operators(unsplit, "decoder") - operators(split, "decoder") == Counter()
    for role in set(split.manifest.graphs) - {"decoder"}:
        assert operators(split, role) == operators(unsplit, role)


def test_the_channels_that_stand_out_are_found(plain: Path, spiky: Path) -> None:
    parts: list[None] = []
    assert calibrate.observe(read_recipe(plain), lambda: parts.append(None)).outliers == {}
    assert len(parts) == calibrate.N_PARTS
    assert calibrate.observe(read_recipe(spiky)).outliers == {
        f"text.blocks.{layer}.{matrix}.weight": (channel,)
        for layer, channel in CHANNELS.items()
        for matrix in ("attn.qkv", "mlp.fc1")
    }


def test_every_matrix_is_seen(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "FACTOR", 0.0)
    recipe = read_recipe(plain)
    matrices = {name for name in recipe.weights if name.endswith(".weight") and len(recipe.weights.shape(name)) == 2}
    found = calibrate.observe(recipe).outliers
    assert found.keys() == matrices
    assert all(len(channels) == recipe.weights.shape(name)[1] // 32 for name, channels in found.items())


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        ({}, ()),
        ({5: 8.1}, (5,)),
        ({5: 7.9}, ()),
        ({63: 50.0, 2: 20.0, 40: 100.0}, (40, 63)),  # 2 of 64 at most, the strongest, in order
    ],
)
def test_which_channels_stand_out(peaks: dict[int, float], expected: tuple[int, ...]) -> None:
    x = torch.ones(2, 3, 64)
    x[..., :20] = 0  # never active, so not typical
    for channel, peak in peaks.items():
        x[1, 2, channel] = -peak  # one token is enough
    layer = torch.nn.Sequential(Linear(64, 1))
    seen = calibrate.Peaks()
    seen.watch(layer)
    layer(x)
    layer(torch.ones(1, 64))
    assert seen.found().outliers == ({"0.weight": expected} if expected else {})


def test_a_matrix_that_is_never_active_has_no_outliers() -> None:
    layer, seen = torch.nn.Sequential(Linear(64, 1)), calibrate.Peaks()
    seen.watch(layer)
    layer(torch.zeros(1, 64))
    assert seen.found().outliers == {}


def test_floats_are_not_calibrated(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(text_pipeline, "trace", stop)
    monkeypatch.setattr(calibrate, "observe", lambda *_: pytest.fail("calibrated"))
    request = pipeline.ExportRequest(
        name="t", family="moondream2", source=plain, out=tmp_path / "out", precision="fp16"
    )
    with pytest.raises(Stopped):
        pipeline.export(request)


def test_crops_of_a_batch_do_not_disturb_each_other(split: Bundle, module: Moondream2) -> None:
    side = CONFIG.vision.crop_size
    crops = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1
    crops[1] *= 50  # an outlier of a neighbor, far out of an image's range
    graph = open_engine(threads=1).open(split.path("vision.onnx"))
    together = graph.run({"crops": crops.numpy()})["features"]
    for index in range(3):
        alone = graph.run({"crops": crops[index : index + 1].numpy()})["features"]
        # Not bit for bit: sums of another number of rows may be in another order.
        assert relative_error(together[index], alone[0]) < 1e-4
    plain = [0, 2]
    assert mean_cosine(together[plain], module.vision.encode(crops[plain]).numpy()) >= BARS["int8"].limits.graph_cosine
