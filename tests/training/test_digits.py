"""The shipped networks for digits: trained at all, whole after int8, and never tested on what they were trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from edgevlm.catalog import find_entry
from training.digits import train
from training.digits.evaluate import HERE, count_right, export_digits, read
from training.digits.networks import NETWORKS, PREPROCESSING, SIDE, Network, prepare
from training.digits.scans import LABELS, Scans, held_out_scans, training_scans
from training.digits.train import accuracy, vary


@pytest.fixture(params=NETWORKS, ids=lambda network: network.folder)
def network(request: pytest.FixtureRequest) -> Network:
    chosen: Network = request.param
    return chosen


def test_the_parts_are_disjoint_and_whole() -> None:
    training, held_out = training_scans(), held_out_scans()
    assert (len(training.images), len(held_out.images)) == (1438, 359)
    data = load_digits()
    assert held_out.digits.tolist() == data.target[4::5].tolist()
    np.testing.assert_array_equal(held_out.images[7][:, :, 1], np.rint(data.images[39] * 255 / 16))
    unseen = {image.tobytes() for image in held_out.images}
    assert not any(image.tobytes() in unseen for image in training.images)
    assert set(held_out.digits.tolist()) == set(range(len(LABELS)))


def test_checkpoints_are_small_and_in_timms_layout(network: Network) -> None:
    folder = HERE / network.folder
    assert (folder / "model.safetensors").stat().st_size < 1_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == network.architecture and config["label_names"] == list(LABELS)
    assert config["pretrained_cfg"]["input_size"] == [3, SIDE, SIDE]
    names = network.load(folder).state_dict()
    assert any("conv_kxk" in name or ".bn." in name for name in names)  # branches and norms are still apart


def test_float32_reads_nearly_all_held_out_digits(network: Network) -> None:
    assert accuracy(network.load(HERE / network.folder), held_out_scans()) >= 0.97


def test_int8_costs_at_most_half_a_percent(network: Network, tmp_path: Path) -> None:
    """A whole export through the runtime against the module in torch."""
    scans = held_out_scans()
    bundle = export_digits(network, tmp_path, "int8")
    right = count_right(read(bundle, scans), scans) / len(scans.images)
    assert right >= accuracy(network.load(HERE / network.folder), scans) - 0.005
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert "in float32" not in manifest["notes"]  # all of its layers are int8
    assert manifest["image"]["crop_px"] == PREPROCESSING.crop_px


def test_networks_are_in_the_catalog(network: Network) -> None:
    entry = find_entry(f"digits-{network.folder}")
    assert entry is not None and entry.folder == f"training/digits/{network.folder}"


def test_training_learns_and_is_published_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = training_scans()
    monkeypatch.setattr(train, "training_scans", lambda: Scans(images=scans.images[:256], digits=scans.digits[:256]))
    model = train.train(NETWORKS[0], epochs=4)
    losses = [float(line.split()[2].rstrip(",")) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.1
    NETWORKS[0].publish(model, tmp_path)
    images = prepare(scans.images[:4])
    with torch.no_grad():
        assert torch.equal(NETWORKS[0].load(tmp_path)(images), model(images))


def test_variations_stay_near_the_scan() -> None:
    images = prepare(training_scans().images[:8])
    torch.manual_seed(0)
    varied = vary(images)
    assert varied.shape == images.shape and not torch.equal(varied, images)
    similarity = torch.nn.functional.cosine_similarity(varied.flatten(1) + 1, images.flatten(1) + 1)
    assert similarity.min() > 0.5 and similarity.max() < 0.999
