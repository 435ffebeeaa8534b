"""A streamed module computes what a loaded one does and never holds more than it must."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from edgevlm_export.modules.moondream2 import Moondream2, prefix_mask
from edgevlm_export.streaming import streamed
from tests.export.shrunken import GROUPED, build


class Counted(Mapping[str, Tensor]):
    """Tensors in bfloat16, produced anew at each access; counts what was asked for."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.tensors[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def on_meta() -> Moondream2:
    with torch.device("meta"):
        return Moondream2(GROUPED)


def held(module: torch.nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in module.named_parameters() if p.device.type != "meta"}


@pytest.fixture(name="loaded")
def fixture_loaded() -> tuple[Moondream2, Counted]:
    module, tensors = build(GROUPED, seed=3)
    weights = Counted(tensors)
    module.load_state_dict({name: t.float() for name, t in weights.tensors.items()})
    return module, weights


def test_streamed_equals_loaded(loaded: tuple[Moondream2, Counted]) -> None:
    module, weights = loaded
    crops = torch.randn(2, 3, GROUPED.vision.crop_size, GROUPED.vision.crop_size)
    ids, positions, mask = torch.arange(12)[None], torch.arange(12), prefix_mask(12, 5)
    lazy = on_meta()
    with streamed(lazy, weights):
        torch.testing.assert_close(lazy.vision.encode(crops), module.vision.encode(crops), rtol=0, atol=0)
        hidden = lazy.text.hidden(lazy.text.embed(ids), positions, mask)
        expected = module.text.hidden(module.text.embed(ids), positions, mask)
        torch.testing.assert_close(lazy.text.logits(hidden), module.text.logits(expected), rtol=0, atol=0)
        box_sizes = torch.rand(2, 2)
        torch.testing.assert_close(
            lazy.region.encode_size(box_sizes), module.region.encode_size(box_sizes), rtol=0, atol=0
        )


def test_one_layer_is_held_at_a_time(loaded: tuple[Moondream2, Counted]) -> None:
    _, weights = loaded
    lazy = on_meta()
    most: list[dict[str, int]] = []
    for layer in lazy.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda *_: most.append(held(lazy.text)))
    with streamed(lazy.text, {name.removeprefix("text."): weights[name] for name in weights if name[:5] == "text."}):
        always = held(lazy.text)
        lazy.text.logits(lazy.text.hidden(torch.randn(1, 4, GROUPED.text.dim), torch.arange(4), None))
        assert set(always) == {"wte"} and held(lazy.text) == always
    assert len(most) == 3 * 5 + 2
    assert all(len(now) <= len(always) + 2 for now in most)  # beside the table, one weight and its bias
    assert not held(lazy)


def test_every_tensor_is_read_once_and_unused_ones_never(loaded: tuple[Moondream2, Counted]) -> None:
    _, weights = loaded
    lazy = on_meta()
    with streamed(lazy, weights, unused=("text.wte",)):
        lazy.text.logits(lazy.text.hidden(torch.randn(3, 4, GROUPED.text.dim), torch.arange(4), None))
    text = sorted(name for name in weights.asked if name.startswith("text."))
    assert text == sorted(name for name in weights if name.startswith("text.") and name != "text.wte")


def test_nothing_stays_after_an_error(loaded: tuple[Moondream2, Counted]) -> None:
    _, weights = loaded
    lazy = on_meta()
    with pytest.raises(RuntimeError, match="invalid for input of size"), streamed(lazy, weights):
        assert held(lazy)
        lazy.vision.encode(torch.zeros(1, 3, 2, 2))
    assert not held(lazy)
