"""Graphs opened ahead of time: at the same time, once each, with the errors of those that are asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import Graph
from edgevlm_runtime.errors import BadImage, DamagedBundle, EngineError, UnsupportedTask
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image_cache import ImageCache
from edgevlm_runtime.image_store import ImageStore
from edgevlm_runtime.model import Model
from tests.runtime.fake_bundle import write_bundle
from tests.runtime.fake_engine import FakeEngine, TinyDecoder


class SlowEngine(FakeEngine):
    """Opens a graph only when `allowed`, and fails for those of `broken`."""

    def __init__(self, *broken: str) -> None:
        super().__init__(TinyDecoder(320))
        self.broken = set(broken)
        self.started = threading.Semaphore(0)
        self.allowed = threading.Event()

    def open(self, path: Path) -> Graph:
        self.started.release()
        assert self.allowed.wait(60)
        if path.stem in self.broken:
            raise EngineError(f"{path}: broken")
        return super().open(path)


def opening_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "open-graph"]


def test_graphs_are_opened_at_the_same_time_and_once(bundle: Bundle) -> None:
    engine = SlowEngine()
    graphs = Graphs(bundle, engine)
    graphs.prefetch("vision", "project")
    assert engine.started.acquire(timeout=60) and engine.started.acquire(timeout=60)
    engine.allowed.set()
    assert graphs.open("vision") is graphs.open("vision")
    graphs.open("project")
    graphs.prefetch("vision", "project")
    graphs.close()
    assert sorted(engine.opened) == ["project", "vision"]
    assert not opening_threads()


def test_what_fails_in_the_background_is_raised_where_it_is_asked_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhandled: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", unhandled.append)
    engine = SlowEngine("vision")
    engine.allowed.set()
    graphs = Graphs(bundle, engine)
    graphs.prefetch("vision")
    with pytest.raises(EngineError, match="broken"):
        graphs.open("vision")
    engine.broken.clear()
    graphs.open("vision")
    graphs.close()
    assert not unhandled


def test_closing_waits_for_what_is_being_opened(bundle: Bundle) -> None:
    engine = SlowEngine()
    graphs = Graphs(bundle, engine)
    graphs.prefetch("vision")
    closing = threading.Thread(target=graphs.close)
    closing.start()
    assert opening_threads()
    engine.allowed.set()
    closing.join(60)
    assert not opening_threads()
    with pytest.raises(EngineError, match="closed"):
        graphs.prefetch("vision")


def test_a_graph_that_the_model_lacks_is_not_opened_ahead(bundle: Bundle) -> None:
    graphs = Graphs(bundle, FakeEngine(TinyDecoder(320)))
    graphs.prefetch("prefuse")
    with pytest.raises(UnsupportedTask, match="no prefuse graph"):
        graphs.open("prefuse")


@pytest.mark.parametrize("stored", [False, True])
def test_the_image_encoder_is_opened_before_an_image_that_is_surely_new(
    bundle: Bundle, tmp_path: Path, stored: bool
) -> None:
    engine = FakeEngine(TinyDecoder(320))
    images = ImageCache(bundle, "fake", store=ImageStore(tmp_path, 10**9) if stored else None)
    with Model(bundle, engine, images=images) as model, pytest.raises(BadImage):
        model.encode(b"not an image")
    assert sorted(engine.opened) == (["decoder"] if stored else ["decoder", "project", "vision"])
    assert not opening_threads()


def test_a_model_that_can_not_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    bundle.path("tokenizer.json").write_bytes(b"{}")
    engine = SlowEngine()
    threading.Timer(0.3, engine.allowed.set).start()
    with pytest.raises(DamagedBundle, match="not a tokenizer"):
        Model(bundle, engine)
    assert engine.opened == ["decoder"]
    assert not opening_threads()
