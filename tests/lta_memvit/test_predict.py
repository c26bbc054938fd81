"""Own videos without annotations: segments, what was seen, what is expected, files and faults."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import simplejson
import torch

from core import video
from projects.lta_memvit import data, predict
from projects.lta_memvit.config import Config
from projects.lta_memvit.model import Network
from projects.lta_memvit.predict import Slides
from tests.lta_memvit.tiny import configured, network, saved, settings, started

ONE_SECOND = ("predict.segment_s=1", "predict.hop_s=1")
MEMORY = ("model.backbone=memvit_nano", "memory.sampler=all")


@pytest.fixture
def clip(made: Path) -> Path:
    """Thirteen actions of a second."""
    return made / "clips" / "val-0001.mp4"


def loaded(made: Path, out: Path, *more: str) -> tuple[Config, Network, Any]:
    cfg = configured(made, out, *ONE_SECOND, *more)
    return cfg, network(cfg), data.load(cfg.data).taxonomy


# --- segments


@pytest.mark.parametrize(
    ("segment_s", "hop_s", "at_s", "expected"),
    [
        (1, 1, -1, [(k, k + 1) for k in range(13)]),
        (8, 2, -1, [(1, 9), (3, 11), (5, 13)]),
        (8, 2, 10, [(0, 8), (2, 10)]),
        (8, 2, 500, [(1, 9), (3, 11), (5, 13)]),
        (60, 4, -1, [(0, 13)]),  # the video is shorter than a segment
        (8, 2, 3, [(0, 3)]),
    ],
)
def test_segments_end_where_the_forecast_begins(
    made: Path, clip: Path, tmp_path: Path, segment_s: float, hop_s: float, at_s: float, expected: list[Any]
) -> None:
    more = (f"predict.segment_s={segment_s}", f"predict.hop_s={hop_s}", f"predict.at_s={at_s}")
    slides = Slides(clip, configured(made, tmp_path, *more), several=True)
    assert [span for pair in slides.spans for span in pair] == pytest.approx([t for pair in expected for t in pair])
    assert slides.sample(len(slides) - 1, None)["video"].shape == (1, 8, 48, 48, 3)


# --- forecasts


@pytest.mark.parametrize("more", [(), MEMORY], ids=["slowfast", "memory"])
def test_a_forecast_is_that_of_the_same_window_of_the_dataset(
    made: Path, clip: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """The clip seen up to 9 s, and the window of the actions before: with a memory, of all actions from the first."""
    cfg, net, names = loaded(made, tmp_path, "predict.at_s=9", *more)
    with started(cfg) as job:
        verb, noun = predict.forecast(net, Slides(clip, cfg, several=True), cfg, job)
        answer = predict.predict(net, None, names, clip, cfg, job)
    dataset = data.load(cfg.data).forecasting("val", cfg.clip)
    first = dataset.ids.index("val-0001_1")
    net.forget()
    with torch.inference_mode():
        for index in range(first, first + 8):
            sample = dataset.sample(index, random.Random(0))
            pixels = data.transform(cfg.clip)({"video": sample["video"][None]}, [random.Random(0)])["video"]
            streams = [predict.model.Place(*sample["stream"])]
            outputs = net(pixels, streams=streams)
    assert sample["id"] == "val-0001_8"
    torch.testing.assert_close(verb, outputs.verb, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noun, outputs.noun, atol=1e-4, rtol=1e-4)
    best = [names.verbs[k] for k in outputs.verb[0].argmax(-1).tolist()]
    assert [entry["verb"][0]["class"] for entry in answer["next"]] == best
    assert [entry["start_s"] for entry in answer["next"]] == [9, 10, 11]


def test_the_memory_of_a_long_video_does_not_grow(made: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.mp4"
    video.write(long, iter(torch.randint(0, 255, (400, 48, 48, 3), dtype=torch.uint8)), 8)
    sizes = []
    for at_s in (20, 50):
        cfg, net, _ = loaded(made, tmp_path / "run", f"predict.at_s={at_s}", *MEMORY)
        with started(cfg) as job, torch.inference_mode():
            predict.forecast(net, Slides(long, cfg, several=True), cfg, job)
        (stream,) = net.memory.streams.values()
        sizes.append(sum(t.numel() for kept in stream.clips for pair in kept.values() for t in pair))
    assert sizes[0] == sizes[1] > 0


def test_what_was_seen_is_recognized_segment_by_segment(made: Path, clip: Path, tmp_path: Path) -> None:
    cfg, net, names = loaded(made, tmp_path, "task=recognition")
    with started(cfg) as job:
        answer = predict.predict(None, net, names, clip, cfg, job)
    samples = data.load(cfg.data).recognition("val", cfg.clip)
    rows = [row for row, name in enumerate(samples.ids) if name.startswith("val-0001")]
    pixels = torch.stack([samples.sample(row, random.Random(0))["video"] for row in rows])
    with torch.inference_mode():
        outputs = net(data.pipeline(cfg.clip)(pixels))
    assert [entry["verb"][0]["class"] for entry in answer["seen"]] == [
        names.verbs[k] for k in outputs.verb.argmax(-1).tolist()
    ]
    assert answer["seen"][4]["noun"][0]["share"] == pytest.approx(float(outputs.noun[4].softmax(-1).max()), abs=1e-4)
    assert [entry["start_s"] for entry in answer["seen"]] == list(range(13))
    assert answer["note"] == predict.REPEATED
    assert [entry["verb"] for entry in answer["next"]] == [answer["seen"][-1]["verb"]] * 3


def test_a_video_with_fewer_segments_than_inputs_repeats_its_first(made: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.mp4"
    video.write(short, iter(torch.randint(0, 255, (6, 48, 48, 3), dtype=torch.uint8)), 8)
    for more in ((), MEMORY):
        cfg, net, names = loaded(made, tmp_path / "run", "data.inputs=3", *more)
        with started(cfg) as job:
            answer = predict.predict(net, None, names, short, cfg, job)
        assert len(answer["next"]) == 3
        assert len(answer["futures"]) == 5
        assert all(set(future["noun"]) <= set(names.nouns) for future in answer["futures"])


def test_the_likeliest_come_first() -> None:
    found = predict.top(torch.tensor([0.2, 0.5, 0.2, 0.1]), ("a", "b", "c", "d"), 3)
    assert [(entry["class"], entry["share"]) for entry in found] == [("b", 0.5), ("a", 0.2), ("c", 0.2)]


# --- the command


def weights_of(made: Path, out: Path, *more: str) -> Path:
    cfg = configured(made, out, *more)
    return saved(cfg, out.with_suffix(".safetensors"), data.load(cfg.data))


def test_the_command_answers_in_text_and_pictures(made: Path, clip: Path, tmp_path: Path) -> None:
    forecaster = weights_of(made, tmp_path / "f")
    recognizer = weights_of(made, tmp_path / "r", "task=recognition")
    (answer,) = predict.main(
        settings(made, tmp_path / "run", f"ckpt={forecaster}", f"predict.recognizer={recognizer}",
                 f"predict.input={clip}", "data.annotations=nowhere", *ONE_SECOND)
    )  # fmt: skip
    assert simplejson.loads((tmp_path / "run/predictions.json").read_text()) == [answer]
    assert (len(answer["seen"]), len(answer["next"]), len(answer["futures"])) == (13, 3, 5)
    assert answer["at_s"] == pytest.approx(13)
    assert len(answer["next"][0]["verb"]) == 3
    page = (tmp_path / "run/predict.html").read_text()
    for words in ("<video", "verb seen", "noun expected", "p(verb)", answer["next"][2]["noun"][0]["class"]):
        assert words in page
    log = (tmp_path / "run/run.log").read_text()
    assert f"   3. {answer['next'][2]['verb'][0]['class']} (" in log


def test_a_folder_is_answered_without_its_broken_files(made: Path, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(clip.read_bytes())
    (folder / "b.mp4").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("no video")
    path = weights_of(made, tmp_path / "r", "task=recognition")
    answers = predict.main(
        settings(made, tmp_path / "run", f"ckpt={path}", "task=recognition", f"predict.input={folder}", *ONE_SECOND)
    )
    assert [Path(answer["video"]).name for answer in answers] == ["a.mp4"]
    assert "left out: " in (tmp_path / "run/run.log").read_text()
    assert predict.REPEATED in (tmp_path / "run/predict.html").read_text()


def test_what_cannot_be_answered_is_explained(made: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a video nor a folder with videos"):
        predict.find(tmp_path / "nothing.mp4")
    with pytest.raises(ValueError, match="neither a video nor a folder with videos"):
        predict.find(tmp_path)
    args = settings(made, tmp_path / "run", f"predict.input={clip}")
    with pytest.raises(ValueError, match="holds no weights; train first"):
        predict.main(args)
    with pytest.raises(ValueError, match="needs a model that sees video"):
        predict.main([*args, "model.backbone=none", "features.source=ego4d"])
