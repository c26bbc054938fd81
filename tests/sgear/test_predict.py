"""Answers for a video: at every second, about what comes, from nothing that is not yet seen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import simplejson
import torch

from core import config, dist, video
from core import run as runs
from core.checkpoint import save_weights
from projects.sgear import clips, data, demo, predict, report, weights
from projects.sgear.config import Config, DataConfig

CONFIGS = Path(__file__).parents[2] / "projects/sgear/configs"


def made(kitchen: Path, out: Path, name: str, *options: str) -> list[str]:
    """The command line of a network without training, its weights in the run folder."""
    language = f"model.prototypes.language={kitchen / 'encodings_epic100.pth'}"
    args = [str(CONFIGS / f"{name}.yaml"), f"data.root={kitchen}", language, f"run.out={out}", "run.device=cpu",
            "loader.workers=0", *options]  # fmt: skip
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


@contextmanager
def run_of(cfg: Config) -> Iterator[runs.Run]:
    with mock.patch.object(dist, "shutdown"), runs.start(cfg, cfg.run, visit=True) as job:
        yield job


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


@pytest.mark.parametrize("source", ["video", "features"])
def test_nothing_is_seen_at_or_after_a_moment(kitchen: Path, source: str) -> None:
    """Whatever the anticipation time that is asked for, and the last frame before it is seen."""
    cfg = DataConfig(root=kitchen, source=source, frames=4, rate=2.0, tau_o=2.0, tau_a=0.5)
    moments = predict.Moments(video_of(kitchen), cfg, 0.7)
    asked = predict.questions(moments, [0.5, 0.2, 1.7])
    assert len(asked) == 3 * len(moments.times_s)
    assert [question.end_s for question in asked] == sorted(question.end_s for question in asked)
    for question in asked:
        back_s, steps = {0.5: (0, 0), 0.2: (0.3, 0), 1.7: (0.3, 3)}[question.tau_a]
        assert question.steps == steps
        assert question.end_s == pytest.approx(moments.times_s[question.moment] - back_s)
        latest = moments.choose(question.end_s).numbers[-1]
        if source == "video":
            assert latest / demo.FPS < question.end_s - 1e-6
            assert (latest + 1) / demo.FPS >= question.end_s - 1e-6
        else:  # feature n is on screen from (n - 1) / 30 to n / 30
            assert latest / 30 <= question.end_s + 1e-9 < (latest + 1) / 30 + 1e-6


def test_a_clip_before_the_first_second_is_padded(kitchen: Path) -> None:
    cfg = DataConfig(root=kitchen, frames=15, rate=1.0, tau_o=15.0)
    assert predict.Moments(video_of(kitchen), cfg, 1.0).choose(1.0).numbers == [9] * 15


@pytest.mark.parametrize("options", [[], ["eval.crops=3", "pixels.short_side=40"], ["model.compat=true"]])
def test_answers_are_those_of_whole_windows(kitchen: Path, tmp_path: Path, options: list[str]) -> None:
    """Frames are decoded and encoded once each, and few are kept; the answers are the network's for every window."""
    args = [*made(kitchen, tmp_path / "run", "demo", *options), f"predict.input={video_of(kitchen)}"]
    cfg = config.parse(Config, [*args, "predict.hop_s=0.5", "predict.topk=3", "predict.tau_a=[0.25,1.0]"])
    decoded: list[int] = []
    kept: list[int] = []
    read, at = predict.frames.read, predict.FrameWindows.at

    def counted(path: Path, numbers: list[int]) -> torch.Tensor:
        decoded.extend(numbers)
        return read(path, numbers)

    def watched(self: predict.FrameWindows, choice: clips.Choice) -> list:
        found = at(self, choice)
        kept.append(len(self.tokens))
        return found

    with run_of(cfg) as job:
        net, names = weights.answering(cfg, job)
        with mock.patch.object(predict.frames, "read", counted), mock.patch.object(predict.FrameWindows, "at", watched):
            answer = predict.predict(net, names, video_of(kitchen), cfg, job)
    assert len(decoded) == len(set(decoded))
    assert max(kept) <= 3 * cfg.data.frames, "clips of two phases, and what is read ahead"
    assert "left out" not in (tmp_path / "run/run.log").read_text()

    moments = predict.Moments(video_of(kitchen), cfg.data, 0.5)
    change = data.transform(cfg, crops=cfg.eval.crops)
    assert [moment["time_s"] for moment in answer["moments"]] == moments.times_s
    for moment in answer["moments"]:
        pixels = read(video_of(kitchen), moments.choose(moment["time_s"]).numbers)[None]
        with torch.inference_mode():
            logits = net(change({"video": pixels}, [random.Random(0)])["video"]).logits["action"][0]
        best = report.best_of(logits.numpy(), names, 3)
        assert [entry["action"] for entry in moment["top"]] == [entry["action"] for entry in best]
        assert [entry["share"] for entry in moment["top"]] == pytest.approx([e["share"] for e in best], abs=2e-5)
    nearer = {k: answer["moments"][k]["further"][0] for k in range(1, len(moments.times_s))}
    assert all(answer_of["tau_a"] == 0.25 for answer_of in nearer.values())
    assert answer["moments"][3]["further"][1]["starts_s"] == moments.times_s[3] + 1.0


def test_later_actions_are_decoded_step_by_step(kitchen: Path, tmp_path: Path) -> None:
    """At tau_a + k / rate the answer is that of the decoder after k more steps, the predictions taken as observed."""
    args = made(kitchen, tmp_path / "run", "demo_features")
    (answer,) = run([*args, "predict.input=P07_201", "predict.tau_a=[1.5,0.5]", "predict.hop_s=2"])
    cfg = config.parse(Config, args)
    with run_of(cfg) as job:
        net, names = weights.answering(cfg, job)
    moments = predict.Moments(Path("P07_201"), cfg.data, 2.0)
    windows = predict.FeatureWindows(net, moments, torch.device("cpu"))
    for moment in answer["moments"]:
        (further,) = moment["further"]  # 0.5 is the model's own
        assert (further["tau_a"], further["starts_s"]) == (1.5, moment["time_s"] + 1.5)
        with torch.inference_mode():
            ((observed, seen),) = windows.at(moments.choose(moment["time_s"]))
            scores = net.ahead(observed, seen, 3)[0]
            own = net.anticipate(observed, seen).logits["action"][0]
        torch.testing.assert_close(scores[0], own, atol=1e-5, rtol=1e-4)
        assert further["top"] == report.best_of(scores[2].numpy(), names, 5)


def test_damaged_frames_cost_their_moments_only(kitchen: Path, tmp_path: Path) -> None:
    args = [*made(kitchen, tmp_path / "run", "demo"), f"predict.input={video_of(kitchen)}"]
    read = predict.frames.read

    def broken(path: Path, numbers: list[int]) -> torch.Tensor:
        if 54 in numbers:
            raise video.VideoError(path, "frame 54 is damaged")
        return read(path, numbers)

    (whole,) = run(args)
    with mock.patch.object(predict.frames, "read", broken):
        (answer,) = run(args)
    lost = {m["time_s"] for m in whole["moments"]} - {m["time_s"] for m in answer["moments"]}
    assert lost == {6.0, 7.0}, "the clips of 2 s in which frame 54 is shown"
    assert "2 of" in (tmp_path / "run/run.log").read_text()


def test_equal_answers_in_a_row_become_a_segment() -> None:
    def moment(time_s: float, action: str, share: float) -> dict:
        return {"time_s": time_s, "top": [{"action": action, "share": share}]}

    found = report.expected([moment(1, "a", 0.2), moment(2, "a", 0.4), moment(3, "b", 0.5), moment(5, "b", 0.5)], 1.0)
    assert [(s.start_s, s.end_s, s.label) for s in found] == [(1, 3, "a"), (3, 4, "b"), (5, 6, "b")]
    assert found[0].score == pytest.approx(0.3)
