"""The dataset through kagglehub: found, linked, left alone, and the way out when it cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from projects.ucf50_x3d import download, splits

Pretend = Callable[[Callable[[str], str]], list[str]]


@pytest.fixture
def kagglehub(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Puts a module in kagglehub's place; gives the handles that were asked of it."""

    def pretend(answer: Callable[[str], str]) -> list[str]:
        asked: list[str] = []

        def dataset_download(handle: str) -> str:
            asked.append(handle)
            return answer(handle)

        module = ModuleType("kagglehub")
        module.dataset_download = dataset_download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "kagglehub", module)
        return asked

    return pretend


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """What kagglehub keeps: a versioned folder with the classes below UCF50."""
    clip = tmp_path / "cache" / "versions" / "1" / "UCF50" / "Biking" / "v_Biking_g01_c01.avi"
    clip.parent.mkdir(parents=True)
    clip.touch()
    return tmp_path / "cache" / "versions" / "1"


def test_the_dataset_is_linked_where_the_configurations_look(
    cache: Path, tmp_path: Path, kagglehub: Pretend, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = kagglehub(lambda handle: str(cache))
    place = tmp_path / "data" / "ucf50" / "UCF50"
    download.main(["--link", str(place)])
    assert asked == ["vineethakkinapalli/ucf50-action-recognition-dataset"]
    assert capsys.readouterr().out == f"dataset: {place}\n"
    assert place.is_symlink()
    assert place.resolve() == (cache / "UCF50").resolve()
    assert [row.video_name for row in splits.scan(place)] == ["v_Biking_g01_c01.avi"]
    download.main(["--link", str(place)])
    assert len(asked) == 1, "what is there is not asked for again"


def test_by_default_it_goes_where_the_default_configuration_looks(
    cache: Path, tmp_path: Path, kagglehub: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from projects.ucf50_x3d.config import Config

    kagglehub(lambda handle: str(cache))
    monkeypatch.chdir(tmp_path)
    download.main([])
    assert Config().data.root.resolve() == (cache / "UCF50").resolve()


def test_a_relative_answer_is_linked_from_anywhere(
    cache: Path, tmp_path: Path, kagglehub: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    kagglehub(lambda handle: str(cache.relative_to(tmp_path)))
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "deep" / "er" / "UCF50"
    assert download.link(place) == place
    assert (place / "Biking").is_dir()


def test_an_existing_folder_is_left_alone(tmp_path: Path, kagglehub: Pretend) -> None:
    asked = kagglehub(lambda handle: pytest.fail("nothing is to be downloaded"))
    place = tmp_path / "UCF50"
    (place / "Biking").mkdir(parents=True)
    assert download.link(place) == place
    assert not place.is_symlink()
    assert [path.name for path in place.iterdir()] == ["Biking"]
    assert asked == []


def test_a_link_to_a_cache_that_is_gone_is_made_again(cache: Path, tmp_path: Path, kagglehub: Pretend) -> None:
    kagglehub(lambda handle: str(cache))
    place = tmp_path / "UCF50"
    place.symlink_to(tmp_path / "gone", target_is_directory=True)
    assert download.link(place) == place
    assert (place / "Biking").is_dir()


def test_where_links_are_forbidden_the_folder_itself_is_the_answer(
    cache: Path, tmp_path: Path, kagglehub: Pretend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kagglehub(lambda handle: str(cache))

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    download.main(["--link", str(tmp_path / "UCF50")])
    assert capsys.readouterr().out == f"dataset: {cache / 'UCF50'}\n"


def ended(place: Path) -> str:
    """The message with which the program ended; nothing was left behind."""
    with pytest.raises(SystemExit) as caught:
        download.main(["--link", str(place)])
    assert isinstance(caught.value.code, str), "a text makes the exit code 1"
    assert not place.exists()
    assert not place.is_symlink()
    assert f"https://www.kaggle.com/datasets/{download.HANDLE}" in caught.value.code
    assert "data.root=.../UCF50" in caught.value.code
    return caught.value.code


def test_without_kagglehub_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # importing it fails
    assert ended(tmp_path / "UCF50").startswith("error: kagglehub is not installed (pip install kagglehub).\n")


def test_without_a_network_the_way_out_is_named(tmp_path: Path, kagglehub: Pretend) -> None:
    def fail(handle: str) -> str:
        raise ConnectionError("Name or service not known")

    kagglehub(fail)
    text = ended(tmp_path / "UCF50")
    assert f"{download.HANDLE} cannot be downloaded (ConnectionError: Name or service not known)" in text


def test_an_archive_of_another_form_is_named(tmp_path: Path, kagglehub: Pretend) -> None:
    (tmp_path / "cache").mkdir()
    kagglehub(lambda handle: str(tmp_path / "cache"))
    assert f"came without the folder UCF50 (expected {tmp_path / 'cache' / 'UCF50'})" in ended(tmp_path / "link")
