"""One frame and a few words in, a frame out, through the real command: with and without the language model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from core import video
from projects.lego import data, extract, generate, predict, train
from projects.lego.model import vlm_files
from projects.lego.model.vlm import Vlm
from tests.lego import tiny
from tests.lego.test_vlm import TEXT, VISION
from tests.support import GOLDEN

WIDE = ("model.feature_width=64", "data.vision_side=28")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ and weights as in `home`, vlm/, and a run of each kind: both features, image features alone, none.

    The features of the validation part are those that extract wrote with the language model.
    """
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("predict")
    tiny.write_dataset(root / "data", train=2, val=2, width=64)
    tiny.write_stable_diffusion(root / "sd.ckpt")
    tiny.write_tokenizer(root / "merges.txt")
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "lego" / "llava_labels")
    vlm_files.save_vlm(Vlm(VISION, TEXT | {"vocab_size": 520}), tokenizer, root / "vlm")
    extract.main([
        f"run.out={root / 'extract'}", "run.device=cpu", f"data.root={root / 'data'}", "data.vllm=ours",
        f"extract.vlm={root / 'vlm'}", "extract.longest=6", "extract.prompt=ours", "loader.workers=0",
    ])  # fmt: skip
    for features in ("both", "image", "none"):
        more = [*WIDE, f"model.features={features}", "optim.epochs=1"]
        train.main(tiny.settings(root, root / features, *more))
    return root


def command(base: Path, features: str, out: Path, *more: str) -> dict:
    return predict.main(
        tiny.settings(base, base / features, *WIDE, f"model.features={features}", f"predict.out={out}", *more)
    )


@pytest.fixture(scope="module")
def record(base: Path) -> data.Record:
    """The first action of the validation part, with the description that the language model wrote."""
    return data.load(tiny.configured(base, base / "x").data, "val")[0]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_the_language_model_describes_and_the_frame_is_drawn(base: Path, record: data.Record, tmp_path: Path) -> None:
    image = data.source_path(base / "data", record)
    more = [f"predict.image={image}", f"predict.action={record.prompt('action')}", "predict.count=2"]
    answer = command(base, "both", tmp_path, *more, f"predict.vllm={base / 'vlm'}")
    stem = image.stem
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}_0.jpg", f"{stem}_1.jpg", "predict.json", "predict.html"
    }  # fmt: skip
    assert json.loads((tmp_path / "predict.json").read_text()) == answer
    assert answer["prompt"]
    assert answer["frames"] == [str(tmp_path / f"{stem}_{number}.jpg") for number in range(2)]
    first, second = (pixels(Path(path)) for path in answer["frames"])
    assert first.shape == (32, round(32 * 48 / 36), 3)
    assert np.abs(first - second).max() > 20, "each has noise of its own"
    page = (tmp_path / "predict.html").read_text()
    assert page.count("<img") == 3
    assert "the_language_model" not in page
    again = command(base, "both", tmp_path / "again", *more, f"predict.vllm={base / 'vlm'}")
    assert again["prompt"] == answer["prompt"]
    assert Path(again["frames"][0]).read_bytes() == Path(answer["frames"][0]).read_bytes()


def test_a_given_description_gets_features_of_its_own(base: Path, record: data.Record, tmp_path: Path) -> None:
    words = record.prompt("llava_forecast_finetune")
    (tmp_path / "words.txt").write_text(f"  {words}\n")
    more = [
        f"predict.image={data.source_path(base / 'data', record)}", f"predict.vllm={base / 'vlm'}",
        f"predict.action={record.prompt('action')}",
    ]  # fmt: skip
    answers = {
        name: command(base, "both", tmp_path / name, *more, *given)
        for name, given in {
            "text": [f"predict.description='{words}'"],
            "file": [f"predict.description={tmp_path / 'words.txt'}"],
            "own": [],
        }.items()
    }
    assert answers["text"]["prompt"] == answers["file"]["prompt"] == words != answers["own"]["prompt"]
    contents = {name: Path(answer["frames"][0]).read_bytes() for name, answer in answers.items()}
    assert contents["text"] == contents["file"] != contents["own"]
    describer = extract.Describer(base / "vlm", torch.device("cpu"))
    frame = data.read_image(data.source_path(base / "data", record))
    (read,) = describer.read([frame], [record.prompt("action")], "ego4d", [words])
    longer, other = describer.read(
        [frame, frame], [record.prompt("action")] * 2, "ego4d", [f"{words} Slowly.", "Slowly."]
    )
    known = len(read.text_features) - 2  # before the blank and the end
    assert torch.allclose(read.text_features[:known], longer.text_features[:known], atol=1e-5)
    assert not torch.allclose(read.text_features[1], other.text_features[1], atol=1e-2)


def test_reading_a_text_gives_the_states_of_writing_it(base: Path) -> None:
    net, _ = vlm_files.open_vlm(base / "vlm")
    images = net.image_features(torch.randn(2, 3, 28, 28))
    given = [torch.tensor([1, 5, -200, 9]), torch.tensor([1, -200, 7, 8, 11, 12])]
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    written = net.write(given, images, generators=generators, stop=[2], longest=5, temperature=1.0)
    answers = [written[0].ids, written[1].ids[:3]]
    read = net.read(given, answers, images)
    for states, answer in zip(read, written, strict=True):
        assert torch.allclose(states, answer.states[: len(states)], atol=1e-5)
    assert [len(states) for states in read] == [len(answer) for answer in answers]


def test_image_features_need_clip_alone(base: Path, record: data.Record, tmp_path: Path) -> None:
    """On the fly through the folded map, the features are those of the files, and so is the frame."""
    image = data.source_path(base / "data", record)
    sees = ["data.image_features=frames", f"model.vision={base / 'vlm'}"]
    answer = command(base, "image", tmp_path / "clip", f"predict.image={image}", "predict.description=go", *sees)
    more = [f"predict.image={image}", "predict.description=go", f"predict.vllm={base / 'vlm'}"]
    other = command(base, "image", tmp_path / "vlm", *more)
    assert np.abs(pixels(Path(answer["frames"][0])) - pixels(Path(other["frames"][0]))).max() <= 3
    drawn = {}
    ways = {
        "files": ["data.vllm=ours"],
        "frames": sees,
        "projected": ["data.image_features=projected", f"model.vision={base / 'vlm'}"],
    }
    for name, how in ways.items():
        args = [*WIDE, "model.features=image", f"sample.out={tmp_path / name}", "data.prompt=ours", *how]
        folder = generate.main(tiny.settings(base, base / "image", *args))
        drawn[name] = pixels(generate.image_path(folder, record))
    assert np.abs(drawn["frames"] - drawn["files"]).max() <= 3
    assert np.array_equal(drawn["frames"], drawn["projected"])


def test_a_frame_of_a_video_and_a_model_without_features(base: Path, tmp_path: Path) -> None:
    frames = torch.full((10, 36, 48, 3), 60, dtype=torch.uint8)
    frames[5:] = 200
    video.write(tmp_path / "my.mp4", frames, fps=10)
    found = {}
    for time_s in (0.1, 0.8):
        out = tmp_path / f"{time_s}"
        answer = command(
            base, "none", out, f"predict.image={tmp_path / 'my.mp4'}", f"predict.time_s={time_s}", "data.prompt=action"
        )
        assert answer["prompt"] == "pick up the knife"
        found[time_s] = (out / "my_0.jpg").read_bytes()
    assert found[0.1] != found[0.8]
    assert "is given the action alone" not in (base / "none" / "run.log").read_text()
    command(base, "none", out, f"predict.image={tmp_path / 'my.mp4'}")
    assert "is given the action alone" in (base / "none" / "run.log").read_text()
    with pytest.raises(ValueError, match=r"predict\.time_s=3: .*my\.mp4 is 1\.00 s long"):
        command(base, "none", out, f"predict.image={tmp_path / 'my.mp4'}", "predict.time_s=3")


def test_what_is_missing_is_said(base: Path, record: data.Record, tmp_path: Path) -> None:
    image = f"predict.image={data.source_path(base / 'data', record)}"
    with pytest.raises(ValueError, match=r"predict\.image=nowhere\.jpg: no such file"):
        command(base, "none", tmp_path, "predict.image=nowhere.jpg")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png: no readable picture"):
        command(base, "none", tmp_path, f"predict.image={tmp_path / 'broken.png'}")
    with pytest.raises(ValueError, match=r"model\.features=both\): name the VLLM's folder with predict\.vllm="):
        command(base, "both", tmp_path, image)
    with pytest.raises(ValueError, match=r"let CLIP alone make them \(data\.image_features=frames model\."):
        command(base, "image", tmp_path, image)
    with pytest.raises(ValueError, match=r"holds no weights; train first"):
        command(base, "none", tmp_path, image, f"run.out={tmp_path / 'empty'}")
    with pytest.raises(ValueError, match=r"nowhere: no such folder; a language model is a folder"):
        command(base, "both", tmp_path, image, "predict.vllm=nowhere")
    with pytest.raises(ValueError, match=r"predict\.description=none\.txt: no such file"):
        command(base, "none", tmp_path, image, "predict.description=none.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"broken.png", "empty"}
