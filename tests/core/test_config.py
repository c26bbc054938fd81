"""Configuration: merging, checking, the wording of problems, the command line."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from core import config
from core.config import ConfigError, Section


class Optim(Section):
    lr: float = Field(0.1, gt=0, description="learning rate")
    name: Literal["sgd", "adam"] = "sgd"
    """Which optimizer."""
    betas: tuple[float, float] = (0.9, 0.999)
    milestones: tuple[int, ...] = ()


class Adapter(Section):
    rank: int = 4


class Cnn(Section):
    kind: Literal["cnn"] = "cnn"
    width: int = 64


class Vit(Section):
    kind: Literal["vit"] = "vit"
    heads: int = 8

    @model_validator(mode="after")
    def _even(self) -> "Vit":
        if self.heads % 2:
            raise ValueError(f"heads should be even, got {self.heads}")
        return self


class Config(Section):
    """A small experiment."""

    optim: Optim = Optim(lr=0.5)
    model: Annotated[Cnn | Vit, Field(discriminator="kind")] = Cnn()
    adapter: Adapter | None = None
    out: Path = Path("runs/x")
    tag: str = ""
    amp: bool = False
    scale: float | None = None
    weights: dict[str, float] = Field({"verb": 1.0})
    share: float = Field(0.5, ge=0, le=1)


def problems(*overrides: str, path: Path | None = None, cls: type[Section] = Config) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(cls, path, overrides)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return list(caught.value.problems)


# --- order and merging


def test_each_source_covers_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.2, name: adam}\ntag: base\nshare: 0.1\n")
    (tmp_path / "run.yaml").write_text("base: base.yaml\noptim:\n  lr: 0.3\ntag: file\n")
    (tmp_path / "long.txt").write_text("# a comment\n\noptim.milestones=[3, 4]  # inside too\ntag=lines\n")
    loaded = config.load(Config, tmp_path / "run.yaml", [f"@{tmp_path}/long.txt", "optim.lr=1e-4"])
    assert loaded.optim == Optim(lr=1e-4, name="adam", milestones=(3, 4))
    assert (loaded.tag, loaded.share, loaded.out) == ("lines", 0.1, Path("runs/x"))
    assert config.load(Config, tmp_path / "run.yaml", ["tag=first", f"@{tmp_path}/long.txt"]).tag == "lines"


def test_a_section_given_in_part_keeps_its_owners_default() -> None:
    assert config.load(Config, None, ["optim.name=adam"]).optim == Optim(lr=0.5, name="adam")


def test_an_optional_section_starts_from_its_own_defaults() -> None:
    assert config.load(Config, None, ["adapter.rank=8"]).adapter == Adapter(rank=8)
    assert config.load(Config, None, ["adapter={}"]).adapter == Adapter()
    assert config.load(Config, None, ["adapter.rank=8", "adapter=null"]).adapter is None


def test_a_dict_is_extended_by_key_and_replaced_as_a_whole() -> None:
    assert config.load(Config, None, ["weights.noun=2"]).weights == {"verb": 1.0, "noun": 2.0}
    assert config.load(Config, None, ["weights={noun: 2}"]).weights == {"noun": 2.0}


def test_a_union_of_sections_is_chosen_by_its_discriminator() -> None:
    assert config.load(Config, None, ["model={kind: vit, heads: 2}"]).model == Vit(heads=2)
    assert config.load(Config, None, ["model.width=8"]).model == Cnn(width=8)
    assert problems("model={kind: vit, heads: 3}") == [
        "model: heads should be even, got 3 (model={kind: vit, heads: 3})"
    ]
    assert problems("model={kind: vit, headz: 2}")[0].startswith("model.headz: unknown key")


# --- values


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr='1e-4'", "optim.lr", 1e-4),
        ("optim.lr=.5", "optim.lr", 0.5),
        ("scale=.inf", "scale", float("inf")),
        ("scale=null", "scale", None),
        ("scale=", "scale", None),
        ("amp=on", "amp", True),
        ("amp=false", "amp", False),
        ("out=2024", "out", Path("2024")),
        ("tag=2024", "tag", "2024"),
        ("tag=1.10", "tag", "1.10"),
        ("tag=007", "tag", "007"),
        ("tag=1:30", "tag", "1:30"),
        ("tag=2024-01-01", "tag", "2024-01-01"),
        ("tag=true", "tag", "true"),
        ("tag=", "tag", ""),
        ("tag=*.mp4", "tag", "*.mp4"),
        ("tag=a: b", "tag", "a: b"),
        ("tag=a=b", "tag", "a=b"),
        ("optim.betas=[0.8, 9e-1]", "optim.betas", (0.8, 0.9)),
        (" share = 1 ".strip(), "share", 1.0),
    ],
)
def test_an_override_becomes_the_value_that_it_looks_like(override: str, key: str, value: Any) -> None:
    found = config.flatten(config.load(Config, None, [override]))[key]
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_sections_are_frozen_and_checked_in_python_too() -> None:
    with pytest.raises(ValidationError):
        Config().tag = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Optim(lr="abc")
    with pytest.raises(ValidationError):
        Optim(rate=1)
    assert Optim(milestones=[1, 2]).milestones == (1, 2)


def test_defaults_are_checked() -> None:
    class Wrong(Section):
        share: float = Field(2.0, le=1)

    assert problems(cls=Wrong) == ["share: should be less than or equal to 1, got 2.0 (default)"]


# --- problems


def test_all_problems_come_in_one_message() -> None:
    written = ["optim.lrr=1", "optim.lr=abc", "lr=3", "amp=perhaps", "share=2", "optim.betas=[1]", "optim.name=sdg"]
    written += ["scale=true", "zzz=1", "optim.milestones=[1, x]"]
    found = {problem.split(":")[0]: problem for problem in problems(*written)}
    assert found == {
        "optim.lr": "optim.lr: should be a valid number, unable to parse string as a number, got 'abc' (optim.lr=abc)",
        "optim.name": "optim.name: should be 'sgd' or 'adam', got 'sdg' (optim.name=sdg)",
        "optim.betas": "optim.betas: too few values, got [1] (optim.betas=[1])",
        "optim.milestones[1]": "optim.milestones[1]: should be a valid integer, unable to parse string as an integer, "
        "got 'x' (optim.milestones=[1, x])",
        "optim.lrr": "optim.lrr: unknown key; did you mean optim.lr? (optim.lrr=1)",
        "amp": "amp: should be a valid boolean, unable to interpret input, got 'perhaps' (amp=perhaps)",
        "scale": "scale: should be a number, got True (scale=true)",
        "share": "share: should be less than or equal to 1, got 2 (share=2)",
        "lr": "lr: unknown key; did you mean optim.lr? (lr=3)",
        "zzz": "zzz: unknown key; valid here: optim, model, adapter, out, tag, amp, scale, weights, share (zzz=1)",
    }


def test_a_problem_in_a_file_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# comment\ntag: x\noptim:\n  lr: fast\n  nmae: sgd\n")
    assert problems(path=file) == [
        f"optim.lr: should be a valid number, unable to parse string as a number, got 'fast' ({file}:4)",
        f"optim.nmae: unknown key; did you mean optim.name? ({file}:5)",
    ]


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("optim:\n  lr: 1\n  name: sgd\n  lr: 2\ntag: a\ntag: b\n")
    assert problems(path=file) == [
        f"optim.lr: given twice ({file}:2 and line 4)",
        f"tag: given twice ({file}:5 and line 6)",
    ]
    assert problems("weights={a: 1, a: 2}") == ["a: given twice (weights={a: 1, a: 2})"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "a.yaml:1: not valid YAML"),
        ("- 1\n", "should hold `key: value` lines, got [1]"),
        (
            "tag: !!python/object/apply:os.system [ls]\n",
            "not valid YAML: the tag tag:yaml.org,2002:python/object/apply:os.system is not",
        ),
        ("weights: &a {verb: *a}\n", "an alias contains itself"),
        ("base: 3\n", "base: should be the path of one YAML file, got 3"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    (problem,) = problems(path=file)
    assert message in problem
    assert str(file) in problem


def test_a_base_has_no_base(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: c.yaml\n")
    assert problems(path=tmp_path / "a.yaml") == [
        f"base: a base file has no base of its own; say in one file what differs ({tmp_path / 'b.yaml'}:1)"
    ]


def test_a_missing_file_names_the_configs_beside_it(tmp_path: Path) -> None:
    (tmp_path / "ucf50_x3d_s.yaml").touch()
    (tmp_path / "demo.yaml").touch()
    assert problems(path=tmp_path / "ucf50_x3d_z.yaml") == [
        f"{tmp_path}/ucf50_x3d_z.yaml: no such file; did you mean ucf50_x3d_s.yaml? "
        f"{tmp_path} holds demo.yaml, ucf50_x3d_s.yaml"
    ]
    assert problems(path=tmp_path) == [
        f"{tmp_path}: a folder, not a file; {tmp_path} holds demo.yaml, ucf50_x3d_s.yaml"
    ]
    nowhere = tmp_path / "nowhere"
    assert problems(path=nowhere / "a.yaml") == [f"{nowhere}/a.yaml: no such file; there is no folder {nowhere} either"]
    (problem,) = problems(f"@{tmp_path}/x.txt")
    assert problem == f"{tmp_path}/x.txt: no such file; {tmp_path} holds no *.txt"


def test_a_line_that_is_no_override_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("tag=x\n--lr 3\n")
    assert problems(f"@{file}") == [f"--lr 3: an override is written key=value, without dashes or spaces (@{file}:2)"]


def test_required_keys_and_a_scalar_for_a_section() -> None:
    class Needs(Section):
        data: Path
        optim: Optim = Optim()

    assert problems("optim=3", cls=Needs) == [
        "data: is required and has no default; write data=...",
        "optim: should be a section (key: value), got 3 (optim=3)",
    ]
    assert config.load(Needs, None, ["data=x"]).data == Path("x")


# --- dump, flatten, describe

FLOATS = st.floats(allow_nan=False)
CONFIGS = st.builds(
    Config,
    optim=st.builds(
        Optim,
        lr=st.floats(min_value=0, exclude_min=True),
        name=st.sampled_from(["sgd", "adam"]),
        betas=st.tuples(FLOATS, FLOATS),
        milestones=st.lists(st.integers()).map(tuple),
    ),
    model=st.one_of(st.builds(Cnn, width=st.integers()), st.builds(Vit, heads=st.integers().map(lambda n: 2 * n))),
    adapter=st.none() | st.builds(Adapter, rank=st.integers()),
    out=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(Path),
    tag=st.text()
    | st.sampled_from(["1e-4", "null", "yes", "0x1F", "1_000", "~", "007", "1:30", " a", "a #b", "é\u2028\n"]),
    amp=st.booleans(),
    scale=st.none() | FLOATS,
    weights=st.dictionaries(st.text(), FLOATS),
    share=st.floats(0, 1),
)


@given(CONFIGS)
@settings(deadline=None)
def test_what_is_dumped_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, cfg: Config) -> None:
    file = tmp_path_factory.getbasetemp() / "round.yaml"
    file.write_text(config.dump(cfg), encoding="utf-8")
    assert config.load(Config, file) == cfg


@given(st.floats(min_value=1e-300, max_value=1e300), st.lists(st.integers(), max_size=4))
@settings(deadline=None)
def test_an_override_written_by_python_is_read_back(lr: float, milestones: list[int]) -> None:
    loaded = config.load(Config, None, [f"optim.lr={lr!r}", f"optim.milestones={milestones}"])
    assert (loaded.optim.lr, loaded.optim.milestones) == (lr, tuple(milestones))


def test_flatten_gives_every_value_by_its_dotted_key() -> None:
    flat = config.flatten(Config(adapter=Adapter()))
    assert list(flat)[:4] == ["optim.lr", "optim.name", "optim.betas", "optim.milestones"]
    assert flat["adapter.rank"] == 4
    assert flat["out"] == Path("runs/x")
    assert config.flatten(Config())["adapter"] is None


def test_describe_aligns_its_columns_and_wraps_descriptions() -> None:
    class Small(Section):
        lr: float = Field(0.1, gt=0, description="learning rate " * 8)
        a_very_long_key_that_would_widen_the_whole_table: int = 3
        data: Path

    assert config.describe(Small, width=70) == (
        "key   type       default     description\n"
        "lr    float > 0  0.1         learning rate learning rate learning rate\n"
        "                             learning rate learning rate learning rate\n"
        "                             learning rate learning rate\n"
        "a_very_long_key_that_would_widen_the_whole_table\n"
        "      int        3\n"
        "data  path       (required)\n"
    )
    rows = {line.split()[0]: line for line in config.describe(Config).splitlines()}
    assert "0.5" in rows["optim.lr"]  # the owner's default, not the section's
    assert "sgd | adam" in rows["optim.name"]
    assert rows["optim.name"].endswith("Which optimizer.")


# --- the command line


def test_parse_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        config.parse(Config, ["tag=x", "--print"])
    assert ended.value.code == 0
    assert "tag: x\n" in capsys.readouterr().out


def test_parse_reports_problems_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        config.parse(Config, ["tagg=x", "optim.lr=-1"])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: 2 problems in the configuration\n")
    assert "did you mean tag? (tagg=x)" in text
    with pytest.raises(SystemExit):
        config.parse(Config, ["a.yaml", "b.yaml", "--lr=3"])
    text = capsys.readouterr().err
    assert "b.yaml: one YAML file is enough (a.yaml came first)" in text
    assert "--lr=3: no such option" in text


def test_a_run_folder_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    (folder / "config.yaml").write_text("tag: again\n")
    assert config.parse(Config, [f"{folder}/config.yaml", "share=0.25"]) == Config(tag="again", share=0.25)


def test_help_shows_the_usage_of_the_program_and_config_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import sys\nfrom core.config import Section, parse\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "class C(Section):\n    'What it does.'\n    lr: float = 0.1\n    'Learning rate.'\n"
        "parse(C)\n"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "program", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True)
    usage, _, about, _, *table = done.stdout.splitlines()
    assert usage == "usage: python -m program [CONFIG.yaml] [@OVERRIDES.txt ...] [KEY=VALUE ...] [--print | --help]"
    assert about == "What it does."
    assert [line.split() for line in table] == [
        ["key", "type", "default", "description"],
        ["lr", "float", "0.1", "Learning", "rate."],
    ]
