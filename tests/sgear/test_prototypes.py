"""Prototypes: sentences, encoders, files both ways, exemplars, relatives; the real encoder where its weights are."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import config
from projects.sgear import encoders, make_prototypes, prototype_files, sentences, train
from projects.sgear.config import Config
from tests.sgear.tiny import ACTIONS, settings, write_dataset
from tests.support import GOLDEN, SHARED, Parity

CASE = GOLDEN / "sgear" / "language_prototypes"
LABELS = {
    "epic100": "epic_kitchens100/rulstm/actions.csv",
    "epic55": "epic_kitchens55/rulstm/actions.csv",
    "egtea": "egtea/actions.csv",
}


# ------------------------------------------------------------------------------------------------------------ sentences


@pytest.mark.golden
@pytest.mark.parametrize("dataset", LABELS)
def test_sentences_of_the_real_label_files(dataset: str) -> None:
    path = SHARED / "data" / LABELS[dataset]
    if not path.is_file():
        pytest.skip(f"needs the real label file of {dataset}, which is not ours to publish")
    expected = [text.strip() for text in json.loads((CASE / "texts.json").read_text())[dataset]]
    found = sentences.read(path, dataset)
    assert list(found) == list(range(len(expected)))
    assert list(found.values()) == expected


@pytest.mark.parametrize(
    ("dataset", "text", "expected"),
    [
        (
            "epic100",
            "id,verb,noun,action\n0,0,0,take tap\n1,4,9,pick-up machine:sous:vide\n",
            ["take tap", "pick-up vide machine"],
        ),
        ("epic100", "0,0,0,take tap\n", ["take tap"]),
        (
            "epic55",
            "id,action,verb,noun\n0, take_pan,0,1\n1, wash_board:chopping,2,3\n",
            ["take pan", "wash chopping board"],
        ),
        (
            "egtea",
            "0, 0_0, Inspect/Read_recipe\n1, 2_3, Take_eating:utensil\n",
            ["Inspect recipe", "Take eating utensil"],
        ),
        ("egdea", "0, 0_0, Inspect/Read_recipe\n", ["Inspect recipe"]),
        ("50Salads", "0 cut_tomato\n1 action_start\n", ["cut tomato", "action start"]),
        ("salads", "0 place_cheese_into_bowl\n", ["place cheese into bowl"]),
        ("breakfast", "0 pour_cereals\n", ["pour cereals"]),
    ],
)
def test_sentences(tmp_path: Path, dataset: str, text: str, expected: list[str]) -> None:
    path = tmp_path / "labels"
    path.write_text(text)
    assert list(sentences.read(path, dataset).values()) == expected


@pytest.mark.parametrize(
    ("dataset", "text", "words"),
    [
        ("epic100", "0,0,0,take\n", "line 1: expected 'id,verb,noun,take tap' for epic100, found '0,0,0,take'"),
        ("epic55", "0, take_pan,0,1\nx, y_z,0,1\n", "line 2"),
        ("epic100", "0,0,0,take tap\n0,0,1,take cup\n", "action 0 was there before"),
        ("epic100", "id,verb,noun,action\n", "holds no actions"),
        ("epic101", "", "there is no dataset 'epic101'"),
    ],
)
def test_wrong_label_files(tmp_path: Path, dataset: str, text: str, words: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        sentences.read(path, dataset)
    with pytest.raises(ValueError, match="no such file"):
        sentences.read(tmp_path / "gone.csv", "egtea")


# ------------------------------------------------------------------------------------------------------------- encoders


def test_the_encoder_without_weights_is_the_same_everywhere() -> None:
    vectors = encoders.encode(["take tap", "take cup", "wash pan", "take tap"], encoders.WORDS)
    assert vectors.shape == (4, 768)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert torch.equal(vectors[0], vectors[3])
    alike = prototype_files.similarities(vectors)
    assert alike[0, 1] == pytest.approx(0.5, abs=0.1), "half of the words are shared"
    assert abs(alike[0, 2]) < 0.15
    expected = torch.tensor([0.0280, 0.0138, 0.0184])
    torch.testing.assert_close(vectors[0, :3], expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence transformer of the real kind, small and untrained: BERT, mean pooling, length 1."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "take", "tap", "cup", "wash", "pan", "the", "big"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [{"idx": i, "name": i, "path": p, "type": f"sentence_transformers.models.{k}"} for i, p, k in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def test_batches_encode_as_single_sentences(small: Path) -> None:
    texts = ["take tap", "wash the big pan", "cup", "take the cup", "take tap"]
    together = encoders.encode(texts, str(small))
    alone = torch.cat([encoders.encode([text], str(small)) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
    raw = encoders.encode(texts, str(small), normalize=False)
    assert (raw.norm(dim=1) - 1).abs().min() > 1e-2
    torch.testing.assert_close(torch.nn.functional.normalize(raw), together)
    (small / "modules.json").rename(small / "modules.off")
    try:
        torch.testing.assert_close(encoders.encode(texts, str(small)), raw, msg="mean pooling without a recipe")
    finally:
        (small / "modules.off").rename(small / "modules.json")


def test_an_encoder_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder 'no-such-encoder' is no folder.*--encoder words"):
        encoders.encode(["a"], "no-such-encoder")
    with pytest.raises(ValueError, match="no encoder that transformers can open"):
        encoders.encode(["a"], str(tmp_path))


def test_the_encoder_of_this_machine(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the hub's cache, by its published name; else one below the folder of weights; else the one of words."""
    cache: dict[str, Path] = {}
    monkeypatch.setattr(encoders, "_cached", lambda name: cache[name])
    monkeypatch.delenv("ACTION_SUITE_WEIGHTS", raising=False)
    assert encoders.installed() == "words"
    monkeypatch.setenv("ACTION_SUITE_WEIGHTS", str(tmp_path))
    assert encoders.installed() == "words"
    monkeypatch.setenv("ACTION_SUITE_WEIGHTS", str(small.parent))
    assert encoders.installed() == str(small)
    assert encoders.encode(["take tap"], encoders.installed()).shape == (1, 16)
    cache["sentence-transformers/all-MiniLM-L6-v2"] = tmp_path
    assert encoders.installed() == str(tmp_path)
    cache["sentence-transformers/all-mpnet-base-v2"] = small
    assert encoders.installed() == str(small)


@pytest.mark.golden
def test_the_real_encoder(pretrained: Path, parity: Parity) -> None:
    """All-MiniLM-L6-v2 over the first 200 actions of EK100, against the published script's functions."""
    folder = next((path.parent for path in pretrained.rglob("modules.json")), None)
    if folder is None:
        pytest.skip("the folder of real weights has no sentence transformer (modules.json)")
    with np.load(CASE / "expected_minilm_first200.npz") as expected:
        texts = json.loads((CASE / "texts.json").read_text())["epic100"][:200]
        vectors = encoders.encode(texts, str(folder))
        parity.check("encodings", vectors, expected["encodings"], atol=2e-6)
        parity.check("similarities", prototype_files.similarities(vectors), expected["similarities"], atol=3e-6)


# ---------------------------------------------------------------------------------------------------------------- files


def label_file(tmp_path: Path) -> Path:
    path = tmp_path / "actions.csv"
    path.write_text("id,verb,noun,action\n0,0,0,take tap\n1,0,1,take cup\n2,1,2,wash pan:big\n")
    return path


def test_language_prototypes_as_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The layout that the released code reads, with the origin inside."""
    labels = label_file(tmp_path)
    args = ["language", "--dataset", "epic100", "--label_file", str(labels), "--encoder", "words"]
    encodings, similarities = make_prototypes.main([*args, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{encodings}\n{similarities}\n"
    assert (encodings.name, similarities.name) == ("encodings_epic100.pth", "similarities_epic100.pth")
    stored = torch.load(encodings, weights_only=True)
    assert list(stored) == [0, 1, 2]
    assert all(vector.shape == (768,) and vector.dtype == torch.float32 for vector in stored.values())
    rows = torch.load(similarities, weights_only=True)
    assert all(row.shape == (1, 3) for row in rows.values())
    cosine = torch.nn.CosineSimilarity(dim=2, eps=1e-8)
    table = torch.stack(list(stored.values()))
    torch.testing.assert_close(torch.cat(list(rows.values())), cosine(table[:, None], table[None]))
    assert torch.equal(prototype_files.read(encodings, 3), table)
    assert torch.equal(prototype_files.read(similarities, 3), torch.cat(list(rows.values())))
    told = prototype_files.origin(encodings)
    assert (told["encoder"], told["dataset"], told["normalized"]) == ("words", "epic100", True)
    assert told["sentences"] == ["take tap", "take cup", "wash big pan"]


@pytest.mark.golden
def test_the_authors_files(tmp_path: Path, parity: Parity) -> None:
    """Files as the authors once committed them: plain dicts without our record; similarities are the cosines."""
    with np.load(CASE / "author_files.npz") as given:
        for name in ("egtea", "50salads"):
            table = torch.from_numpy(given[f"{name}_similarities"])
            path = tmp_path / f"similarities_{name}.pth"
            torch.save({key: row[None].clone() for key, row in enumerate(table)}, path)
            parity.check(name, prototype_files.read(path, len(table)), table.numpy())
            assert prototype_files.origin(path) == {}


@given(seed=st.integers(0, 50), classes=st.integers(1, 9), width=st.integers(1, 6))
def test_a_written_table_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, classes: int, width: int
) -> None:
    path = tmp_path_factory.mktemp("files") / "visual.pth"
    table = torch.randn(classes, width, generator=torch.Generator().manual_seed(seed))
    prototype_files.write(path, table, {"kind": "visual", "seed": seed})
    assert torch.equal(prototype_files.read(path), table)
    assert prototype_files.origin(path) == {"kind": "visual", "seed": seed}
    assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({0: torch.zeros(3), 2: torch.zeros(3)}, r"missing for example \[1\]"),
        ({0: torch.zeros(3), 1: torch.zeros(4)}, "different widths"),
        ({0: [[1.0, 2.0], [3.0]], 1: []}, "averaged by make_prototypes visual"),
        (torch.zeros(3), "expected dict"),
        ({0: torch.zeros(3)}, "holds 1 actions, the dataset has 5"),
    ],
)
def test_wrong_prototype_files(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "visual.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=words):
        prototype_files.read(path, 5)
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"visual\.pth: no file of prototypes"):
        prototype_files.read(path)


def test_a_foreign_pickle_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "visual.pth"
    torch.save({0: Path("x")}, path)
    for read in (prototype_files.read, prototype_files.read_exemplars):
        with pytest.raises(ValueError, match=r"visual\.pth"):
            read(path)


# --------------------------------------------------------------------------------------------------------------- visual


def test_the_first_samples_of_each_class() -> None:
    labels = np.array([2, 0, -1, 2, 2, 0, 5])
    assert make_prototypes.first_of_each(labels, 2) == [0, 1, 3, 5, 6]
    assert make_prototypes.first_of_each(labels, 1) == [0, 1, 6]
    assert make_prototypes.first_of_each(np.array([-1, -1]), 3) == []


def test_classes_without_exemplars_get_the_mean_of_their_relatives() -> None:
    """Six actions of two verbs and three nouns; 1 and 4 share a noun, 5 is related by noun alone, 2 by verb alone."""
    verbs, nouns = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 0])
    means = {0: torch.tensor([1.0, 0]), 1: torch.tensor([0, 1.0]), 3: torch.tensor([4.0, 4])}
    table = make_prototypes.fill(means, 6, {"verb": verbs, "noun": nouns})
    for action, row in means.items():
        assert torch.equal(table[action], row)
    torch.testing.assert_close(table[2], torch.tensor([0.5, 0.5]))  # verb 0 alone
    torch.testing.assert_close(table[4], (torch.tensor([4.0, 4]) + torch.tensor([0, 1.0])) / 2)  # verb 1 and noun 1
    torch.testing.assert_close(table[5], torch.tensor([2.5, 2.0]))  # noun 0 alone
    lonely = make_prototypes.fill({0: torch.ones(2), 1: torch.zeros(2)}, 3, {"verb": torch.zeros(0).long()})
    torch.testing.assert_close(lonely[2], torch.full((2,), 0.5))


def test_visual_prototypes_from_a_recognition_run(tmp_path: Path) -> None:
    """One command: the run's embeddings by class, their means, and the next run starts from them."""
    write_dataset(tmp_path / "data")
    recognition = settings(tmp_path / "data", tmp_path / "run", "data.tau_a=-1", "optim.epochs=1", "loss.distance=0")
    train.main(recognition)
    stored, path = make_prototypes.main(["visual", *recognition, "--split", "train", "--exemplars", "3"])
    exemplars = torch.load(stored, weights_only=True)
    assert stored.name == "exemplars_ek100_train.pth"
    assert list(exemplars) == list(range(len(ACTIONS)))
    assert {len(rows) for rows in exemplars.values()} <= {1, 2, 3}
    table = prototype_files.read(path, len(ACTIONS))
    assert table.shape == (len(ACTIONS), 64)
    for action, rows in exemplars.items():
        torch.testing.assert_close(table[action], torch.tensor(rows).mean(0))
    told = prototype_files.origin(path)
    assert told["without_exemplars"] == []
    assert (told["kind"], told["tau_a"]) == ("visual", -1.0)

    again = make_prototypes.main(["visual", *recognition, "--out", str(tmp_path), "--from", str(stored), str(stored)])
    torch.testing.assert_close(prototype_files.read(again[1]), table)
    cfg = config.load(Config, None, [*recognition, f"model.prototypes.visual={path}"])
    from projects.sgear import data, weights

    net = weights.build(cfg, data.load(cfg.data))
    assert torch.equal(net.vis_prototypes.detach(), table)


def test_the_commands_explain_themselves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        make_prototypes.main(["--help"])
    assert stopped.value.code == 0
    assert "without relatives, the mean of all" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        make_prototypes.main([])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit, match=r"make_prototypes: .*gone\.csv: no such file"):
        make_prototypes.main(["language", "--dataset", "egdea", "--label_file", str(tmp_path / "gone.csv")])
