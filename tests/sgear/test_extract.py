"""Features made of videos: the encoder's own, of the right pictures, resumable, as good as the frames themselves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import config, dist, video
from core.checkpoint import save_weights
from projects.sgear import clips, convert, data, demo, extract, features, frames, predict, weights
from projects.sgear.clips import Rule
from projects.sgear.config import Config
from tests.sgear.test_predict import made, video_of

AVT = ["model.kind=avt", "loss.semantic=0", "loss.distance=0", "model.classify_past=false"]


@pytest.fixture
def folder(kitchen: Path, tmp_path: Path) -> Path:
    """Two videos."""
    (tmp_path / "videos").mkdir()
    for name in ("P07_201", "P08_201"):
        (tmp_path / "videos" / f"{name}.MP4").symlink_to(video_of(kitchen, name))
    return tmp_path / "videos"


def run(args: list[str]) -> Path | None:
    with mock.patch.object(dist, "shutdown"):
        return extract.main(args)


def test_features_are_the_encoders_answer_to_what_is_on_screen(kitchen: Path, folder: Path, tmp_path: Path) -> None:
    args = made(kitchen, tmp_path / "run", "demo", *AVT)
    out = run([*args, f"extract.input={folder}", f"extract.out={tmp_path / 'db'}"])
    assert out == tmp_path / "db"
    assert {path.name for path in out.iterdir()} == {"data.mdb"}
    store = features.Features([out])
    net = convert.open_model(tmp_path / "run/checkpoints/best.safetensors")[0]
    change = data.transform(config.parse(Config, args))
    count = video.probe(video_of(kitchen)).frames
    assert store.length("P07_201") == 3 * (count - 1) + 1  # 10 frames a second: the last begins at (count - 1) / 10
    numbers = [1, 3, 4, 31, 3 * count - 2]
    pixels = video.read(video_of(kitchen), [(number - 1) // 3 for number in numbers])
    with torch.inference_mode():
        tokens = net.backbone(change({"video": pixels[None]}, [random.Random(0)])["video"])
    torch.testing.assert_close(store.read("P07_201", numbers), tokens[0, :, 0], atol=1e-5, rtol=1e-4)
    assert store.length("P08_201") > 30


@given(
    fps=st.sampled_from([10.0, 23.976, 25.0, 29.97, 30.0, 50.0, 59.94]),
    count=st.integers(1, 400),
    every=st.integers(1, 10),
    begins_s=st.sampled_from([0.0, 0.02, 0.5]),
    limit_s=st.floats(0.2, 15.0),
)
def test_no_feature_knows_what_is_at_or_after_a_limit(
    fps: float, count: int, every: int, begins_s: float, limit_s: float
) -> None:
    """Protocol: the latest feature that a clip may read is of a picture before the limit, and the picture on screen."""
    clock = frames.Clock(np.arange(count) / fps + begins_s, fps)
    numbers, shown = extract.numbered(clock, every)
    times_s = clock.times_s[shown]
    assert numbers == sorted(set(numbers))
    starts_s = (np.array(numbers) - 1) / 30
    assert (times_s <= starts_s + 1e-6).all()
    following = [clock.times_s[k + 1] if k + 1 < count else np.inf for k in shown]
    assert (np.array(following) > starts_s).all()
    rule = Rule(4, 2.0)
    where = clips.span(limit_s - 2, limit_s, 30, rule, random.Random(0))
    latest = max(clips.feature_frames(where, rule).numbers)
    readable = [time_s for number, time_s in zip(numbers, times_s, strict=True) if number <= latest]
    assert all(time_s < limit_s - 1e-3 for time_s in readable)


def test_a_stopped_extraction_goes_on(kitchen: Path, folder: Path, tmp_path: Path) -> None:
    args = [*made(kitchen, tmp_path / "run", "demo"), f"extract.input={folder}", f"extract.out={tmp_path / 'db'}"]
    args.append("extract.every=10")
    add, done = extract.add, []

    def killed(database: Any, net: Any, name: str, *rest: Any) -> None:
        if done:
            raise KeyboardInterrupt
        add(database, net, name, *rest)
        done.append(name)

    with mock.patch.object(extract, "add", killed), pytest.raises(KeyboardInterrupt):
        run(args)
    assert not (tmp_path / "db").exists()
    read: list[Path] = []
    original = frames.read
    with mock.patch.object(frames, "read", lambda path, numbers: read.append(path) or original(path, numbers)):
        run(args)
    assert {path.stem for path in read} == {"P07_201", "P08_201"} - set(done)
    store = features.Features([tmp_path / "db"])
    one, same = store.read("P07_201", [11]), store.read("P07_201", [20])
    assert torch.equal(one, same), "one of 10 is stored, and answers for the nine after it"
    assert not torch.equal(one, store.read("P07_201", [21]))
    with pytest.raises(ValueError, match="is there already"):
        run(args)


def test_a_damaged_video_is_named_and_left_out(kitchen: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.mp4").write_bytes(b"nothing")
    args = made(kitchen, tmp_path / "run", "demo")
    run([*args, f"extract.input={folder}", f"extract.out={tmp_path / 'db'}", "extract.every=10"])
    assert "without 1 videos that cannot be read: broken" in (tmp_path / "run/run.log").read_text()
    assert features.Features([tmp_path / "db"]).length("P08_201") > 30


def test_a_frozen_encoder_is_its_features(kitchen: Path, tmp_path: Path) -> None:
    """AVT on extracted features answers as AVT on the frames they are made of."""
    args = made(kitchen, tmp_path / "run", "demo", *AVT)
    database = tmp_path / "db"
    run([*args, f"extract.input={video_of(kitchen)}", f"extract.out={database}"])
    state, about = convert.read(tmp_path / "run/checkpoints/best.safetensors")
    on_features = made(
        kitchen, tmp_path / "features", "demo_features", *AVT, f"data.features=[{database}]", "model.feature_dim=64"
    )
    cfg = config.parse(Config, on_features)
    net = weights.build(cfg, data.load(cfg.data))
    net.load_state_dict({name: value for name, value in state.items() if not name.startswith("backbone.")})
    about = weights.about(cfg, data.load(cfg.data))
    save_weights(net, tmp_path / "features/checkpoints/best.safetensors", about)
    with mock.patch.object(dist, "shutdown"):
        (wanted,) = predict.main([*args, f"predict.input={video_of(kitchen)}", "predict.hop_s=0.5"])
        (found,) = predict.main([*on_features, "predict.input=P07_201", "predict.hop_s=0.5"])
    for a, b in zip(wanted["moments"], found["moments"], strict=False):
        assert a["time_s"] == b["time_s"]
        assert [e["action"] for e in a["top"]] == [e["action"] for e in b["top"]]
        assert [e["share"] for e in a["top"]] == pytest.approx([e["share"] for e in b["top"]], abs=1e-5)


def test_all_videos_of_the_dataset_from_timms_weights(kitchen: Path, tmp_path: Path) -> None:
    net = convert.open_model(_saved(kitchen, tmp_path))[0]
    torch.save(net.backbone.model.state_dict(), tmp_path / "timm.pth")
    args = made(kitchen, tmp_path / "empty", "demo", f"model.init=[[backbone.model, {tmp_path / 'timm.pth'}]]")
    (tmp_path / "empty/checkpoints/best.safetensors").unlink()
    cfg = config.parse(Config, args)
    job = mock.Mock(out=tmp_path / "empty")
    encoder = extract.encoder(cfg, job)
    for name, value in net.backbone.state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[name], value), name
    names = [name for name, _, _ in extract.videos(cfg, job)]
    assert names == [name for part in ("train", "validation") for name in demo.names()[part]]


def _saved(kitchen: Path, tmp_path: Path) -> Path:
    made(kitchen, tmp_path / "run", "demo")
    return tmp_path / "run/checkpoints/best.safetensors"


def test_what_has_no_encoder_is_named(kitchen: Path, tmp_path: Path) -> None:
    job = mock.Mock(out=tmp_path / "run")
    args = made(kitchen, tmp_path / "run", "demo_features")
    with pytest.raises(ValueError, match="has no frame encoder"):
        extract.encoder(config.parse(Config, args), job)
    with pytest.raises(ValueError, match="no weights for the frame encoder"):
        extract.encoder(config.parse(Config, args), mock.Mock(out=tmp_path / "nowhere"))
