"""Lists, folders and videos to frames: the right ones, one at a time, and one line for what can not be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgevlm_runtime.errors import BadImage, EngineError, UnsupportedTask
from edgevlm_runtime.frames import FramesSource, is_frames, open_frames
from edgevlm_runtime.manifest import FrameSpec
from edgevlm_runtime.model import Model
from edgevlm_runtime.video import open_video, spread
from tests.runtime.fake_engine import TinyDecoder

SPEC = FrameSpec()
Pixels = npt.NDArray[np.uint8]


def write_video(path: Path, n_frames: int, rate: int) -> Path:
    """Frame i is all of the gray i * 4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if path.suffix != ".avi" else "mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(n_frames):
            pixels = np.full((48, 64, 3), index * 4, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def published_indexes(total_frames: int, average_fps: float) -> list[int]:
    """As the published code chooses them, at one frame a second."""
    n = int(total_frames // average_fps)
    share = float(total_frames - 1) / n
    found = []
    for i in range(n):
        start, end = int(np.round(share * i)), int(np.round(share * (i + 1)))
        found.append((start + end) // 2)
    return found


@pytest.mark.parametrize(
    ("total", "rate"), [(250, 25.0), (61, 10.0), (300, 29.97), (1000, 23.976), (30, 30.0), (59, 7.5)]
)
def test_frames_are_spread_as_in_the_published_code(total: int, rate: float) -> None:
    assert list(spread(total, rate)) == published_indexes(total, rate)


@pytest.mark.parametrize("total", [1, 2, 7])
def test_a_clip_shorter_than_a_second_gives_its_middle(total: int) -> None:
    assert spread(total, 30.0) == ((total - 1) // 2,)


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.avi"])
def test_a_video(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, n_frames=45, rate=10)
    assert is_frames(path) and is_frames(str(path))
    frames = open_frames(path, SPEC)
    assert frames.count == 4
    grays = [int(pixels.mean().round()) for pixels in frames.read()]
    assert [pixels.shape for pixels in frames.read()] == [(48, 64, 3)] * 4
    wanted = [index * 4 for index in published_indexes(45, 10.0)]
    assert all(abs(gray - value) <= 3 for gray, value in zip(grays, wanted, strict=True)), (grays, wanted)


def test_frames_of_another_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=40, rate=10)
    assert len(open_video(path, fps=5.0).indexes) == 20


def test_a_folder_in_the_order_of_names(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"frame{index:03}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert [int(pixels[0, 0, 0]) for pixels in open_frames(tmp_path, SPEC).read()] == [1, 2, 10]


def test_frames_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    good = np.zeros((4, 4, 3), np.uint8)
    frames = open_frames([good, tmp_path / "missing.png", good], SPEC).read()
    assert next(frames).shape == (4, 4, 3)
    with pytest.raises(BadImage, match=r"missing\.png"):
        next(frames)


def read_all(source: FramesSource) -> Iterator[Pixels]:
    return open_frames(source, SPEC).read()


def test_what_can_not_be_read_is_one_line(tmp_path: Path) -> None:
    damaged = write_video(tmp_path / "cut.mp4", n_frames=20, rate=10)
    damaged.write_bytes(damaged.read_bytes()[:300])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    named = {
        damaged: "cut.mp4: can not be read as a video",
        tmp_path / "text.mp4": "text.mp4: can not be read as a video",
        tmp_path / "none.mp4": "none.mp4: there is no such file",
        tmp_path / "empty": "empty: there is no image in this folder",
    }
    for path, words in named.items():
        with pytest.raises(BadImage) as caught:
            list(read_all(path))
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(BadImage, match="list of frames is empty"):
        list(read_all([]))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    with pytest.raises(BadImage, match="there is no video in it"):
        open_frames(path, SPEC)


def test_without_pyav_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EngineError, match=r'pip install "edgevlm\[video\]"'):
        open_frames(tmp_path / "a.mp4", SPEC)


def test_models_that_look_at_one_image_refuse_others(tiny: tuple[Model, TinyDecoder], photo: Pixels) -> None:
    model, _ = tiny
    for source in ([photo, photo], (photo,), "clip.mp4"):
        with pytest.raises(UnsupportedTask, match="tiny looks at one image at a time"):
            model.query(source, "how many")
