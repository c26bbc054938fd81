"""Verbs and nouns of one video together: pairs by hand, the whole command, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from core import config
from projects.actionformer import data, joint
from projects.actionformer.joint import JointConfig, candidates
from tests.actionformer import small
from tests.actionformer.folders import entry, write_annotations
from tests.actionformer.test_postprocess import said


def test_pairs_of_a_point() -> None:
    """One point: verb 1 and noun 2 with scores p and q; the root of their product, and the mean of their segments."""
    verbs, nouns = said((8, 4), classes=3), said((8, 4), classes=5)
    verbs.logits[0, 4, 1], nouns.logits[0, 4, 2] = 1.0, 3.0
    verbs.offsets[0, 4], nouns.offsets[0, 4] = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0])
    p, q = torch.sigmoid(torch.tensor([1.0, 3.0])).tolist()
    found = candidates(verbs, nouns, 0, JointConfig())
    best = int(found.scores.argmax())
    assert found.labels[best] == 1 * 300 + 2
    assert found.scores[best] == pytest.approx((p * q) ** 0.5, rel=1e-5)
    np.testing.assert_allclose(found.segments[best], [4 - (p + 2 * q) / (p + q), 4 + (p + 3 * q) / (p + q)], rtol=1e-5)
    nouns_only = candidates(verbs, nouns, 0, JointConfig(noun_weight=1.0))
    assert nouns_only.scores.max() == pytest.approx(q, rel=1e-5)
    few = candidates(verbs, nouns, 0, JointConfig(verbs=1, nouns=1, postprocess={"score_threshold": 0.0}))
    assert len(few.scores) == 12


def both(root: Path) -> list[str]:
    """Two tasks on the same videos: labels of verbs and of nouns, and a network for each."""
    overrides = []
    for task, classes in (("verb", 3), ("noun", 4)):
        place = root / task
        cfg = small.configured(place)
        database = small.database()
        rows = {
            name: [
                (f"{task} {(k + row['label_id']) % classes}", (k + row["label_id"]) % classes, *row["segment"])
                for k, row in enumerate(video["annotations"])
            ]
            for name, video in database.items()
        }
        facts = {name: {key: video[key] for key in ("duration", "fps")} for name, video in database.items()}
        write_annotations(place, {n: entry(database[n]["subset"], rows[n], **facts[n]) for n in database})
        data_section = cfg.data.model_copy(
            update={"classes": classes, "dataset": "epic", "features": (root / "verb" / "features",)}
        )
        cfg = cfg.model_copy(update={"data": data_section})
        (place / "config.yaml").write_text(config.dump(cfg))
        overrides += [f"{task}={place / 'config.yaml'}", f"{task}_ckpt={small.saved(cfg, place / 'net.safetensors')}"]
    return overrides


def test_the_command(tmp_path: Path) -> None:
    arguments = [*both(tmp_path), f"run.out={tmp_path / 'run'}", "run.device=cpu", "postprocess.max_detections=60"]
    figures = joint.main(arguments)
    assert {name.split("/")[1].split("@")[0] for name in figures} == {"verb_mAP", "noun_mAP", "action_mAP"}
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == figures
    content = json.loads((tmp_path / "run" / "submission.json").read_text())
    assert set(content["results"]) == set("abcdef")
    row = content["results"]["c"][0]
    assert row["action"] == f"{row['verb']},{row['noun']}"
    assert row["verb"] < 3
    assert row["noun"] < 4
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text())["results"]["c"]
    assert predictions[0]["label"].startswith("verb ")
    assert "noun " in predictions[0]["label"]
    assert len(predictions) <= 60
    html = (tmp_path / "run" / "report.html").read_text()
    assert "action mAP, %" in html
    assert joint.main([*arguments, "save_only=true", "batch_size=3"]) == {}


def test_networks_that_look_at_other_points_are_refused(tmp_path: Path) -> None:
    arguments = both(tmp_path)
    path = tmp_path / "noun" / "config.yaml"
    cfg = small.configured(tmp_path / "noun", "data.max_length=96")
    path.write_text(config.dump(cfg))
    with pytest.raises(ValueError, match="must share features, pyramid and max_length"):
        joint.main([*arguments, f"run.out={tmp_path / 'run'}", "run.device=cpu"])


def test_annotations_must_list_the_same_segments(tmp_path: Path) -> None:
    both(tmp_path)
    benchmarks = [data.load(small.configured(tmp_path / task).data) for task in ("verb", "noun")]
    actions = joint.truth(benchmarks, "validation")
    assert len(actions["verb"].videos) == len(actions["action"].videos) == 9
    pairs = np.asarray(actions["action"].labels)
    np.testing.assert_array_equal(pairs // 300, actions["verb"].labels)
    np.testing.assert_array_equal(pairs % 300, actions["noun"].labels)
    content = json.loads((tmp_path / "noun" / "annotations.json").read_text())
    content["database"]["a"]["annotations"].pop()
    (tmp_path / "noun" / "annotations.json").write_text(json.dumps(content))
    changed = data.load(small.configured(tmp_path / "noun").data)
    with pytest.raises(ValueError, match="must list the same segments of 'validation'"):
        joint.truth([benchmarks[0], changed], "validation")
