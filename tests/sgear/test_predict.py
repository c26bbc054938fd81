"""Answers for a video: at every second, about what comes, from nothing that is not yet seen."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import pytest
import simplejson
import torch

from core import config, dist, video
from core.checkpoint import save_weights
from projects.sgear import data, demo, predict, report, weights
from projects.sgear.config import Config, DataConfig

CONFIGS = Path(__file__).parents[2] / "projects/sgear/configs"


def made(kitchen: Path, out: Path, name: str) -> list[str]:
    """The command line of a network without training, its weights in the run folder."""
    language = f"model.prototypes.language={kitchen / 'encodings_epic100.pth'}"
    args = [str(CONFIGS / f"{name}.yaml"), f"data.root={kitchen}", language, f"run.out={out}", "run.device=cpu",
            "loader.workers=0"]  # fmt: skip
    cfg = config.load(Config, CONFIGS / f"{name}.yaml", args[1:])
    torch.manual_seed(0)
    benchmark = data.load(cfg.data)
    save_weights(weights.build(cfg, benchmark), out / "checkpoints/best.safetensors", weights.about(cfg, benchmark))
    return args


def video_of(kitchen: Path, name: str = "P07_201") -> Path:
    return kitchen / f"DATA/videos/EpicKitchens100/videos_extension_ht256px/{name[:3]}/{name}.MP4"


def run(args: list[str]) -> list[dict]:
    with mock.patch.object(dist, "shutdown"):
        return predict.main(args)


def test_a_video_is_answered_every_second(kitchen: Path, tmp_path: Path) -> None:
    args = made(kitchen, tmp_path / "run", "demo")
    (answer,) = run([*args, f"predict.input={video_of(kitchen)}"])
    info = video.probe(video_of(kitchen))
    assert answer["duration_s"] == pytest.approx(info.duration_s, abs=0.05)
    times = [moment["time_s"] for moment in answer["moments"]]
    assert times == [float(k) for k in range(1, int(info.duration_s + 0.001) + 1)]
    known = {f"{demo.VERBS[verb]} {demo.NOUNS[noun]}" for verb, noun in demo.PAIRS}
    for moment in answer["moments"]:
        assert moment["starts_s"] == moment["time_s"] + 0.5
        shares = [entry["share"] for entry in moment["top"]]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
        assert {entry["action"] for entry in moment["top"]} <= known
    assert all(len(curve) == len(times) for curve in answer["curves"].values())
    assert simplejson.loads((tmp_path / "run/predictions.json").read_text()) == [answer]
    page = (tmp_path / "run/predict.html").read_text()
    assert "data:video/mp4;base64," in page
    assert answer["moments"][3]["top"][0]["action"] in page


def test_answers_from_features_need_the_name_only(kitchen: Path, tmp_path: Path) -> None:
    args = made(kitchen, tmp_path / "run", "demo_features")
    (answer,) = run([*args, "predict.input=P07_201", "predict.hop_s=0.5"])
    last_s = int(demo.script("P07_201")[-1].end_s * 30) / 30
    assert answer["duration_s"] == pytest.approx(last_s)
    assert len(answer["moments"]) == int(last_s / 0.5)
    with pytest.raises(ValueError, match="no feature of P09_999"):
        run([*args, "predict.input=P09_999"])


def test_a_folder_goes_on_without_its_broken_file(kitchen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"broken")
    (folder / "b.mp4").write_bytes(video_of(kitchen).read_bytes())
    args = made(kitchen, tmp_path / "run", "demo")
    answers = run([*args, f"predict.input={folder}", "predict.hop_s=5"])
    assert [Path(answer["video"]).name for answer in answers] == ["b.mp4"]
    assert "a.mp4" in (tmp_path / "run/run.log").read_text()
    with pytest.raises(ValueError, match="neither a video nor a folder with videos"):
        run([*args, f"predict.input={tmp_path / 'nowhere.mp4'}"])


def test_nothing_is_seen_at_or_after_a_moment(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    read = predict.frames.read
    monkeypatch.setattr(
        predict.frames, "read", lambda path, numbers: asked.append(list(numbers)) or read(path, numbers)
    )
    cfg = DataConfig(root=kitchen, frames=4, rate=2.0, tau_o=2.0)
    moments = predict.Moments(video_of(kitchen), cfg, 0.7)
    for index in range(len(moments)):
        moments.sample(index, random.Random(0))
        assert max(asked[-1]) / demo.FPS < moments.times_s[index] - 1e-6
        assert (max(asked[-1]) + 1) / demo.FPS >= moments.times_s[index] - 1e-6, "and the last frame before it is"


def test_a_clip_before_the_first_second_is_padded(kitchen: Path) -> None:
    cfg = DataConfig(root=kitchen, frames=15, rate=1.0, tau_o=15.0)
    moments = predict.Moments(video_of(kitchen), cfg, 1.0)
    assert moments.sample(0, random.Random(0))["video"].shape == (15, demo.SIZE, demo.SIZE, 3)


def test_equal_answers_in_a_row_become_a_segment() -> None:
    def moment(time_s: float, action: str, share: float) -> dict:
        return {"time_s": time_s, "top": [{"action": action, "share": share}]}

    found = report.expected([moment(1, "a", 0.2), moment(2, "a", 0.4), moment(3, "b", 0.5), moment(5, "b", 0.5)], 1.0)
    assert [(s.start_s, s.end_s, s.label) for s in found] == [(1, 3, "a"), (3, 4, "b"), (5, 6, "b")]
    assert found[0].score == pytest.approx(0.3)
