"""Who imports whom, and what `core` promises by name."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.files import ROOT

LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_logo=True, cache_dir=None))"

# Design: the public face. Metrics of other tasks come with the projects that report them.
PUBLIC = {
    "config": "ConfigError Section describe dump flatten load parse",
    "findings": "Finding machine tell",
    "run": "Run RunConfig start",
    "dist": "World barrier broadcast gather gather_rows init main_first mean shutdown unwrap world wrap full_state",
    "slurm": "SlurmConfig submit",
    "data": "Dataset Loader LoaderConfig pad stack to_device",
    "video": "VideoError VideoInfo probe read read_span write",
    "clips": "before center_start random_start strided tile uniform",
    "transforms": (
        "CenterCrop ColorJitter Compose Erase Flip Mixup Normalize RandAugment RandomResizedCrop ShortSide ThreeCrops"
    ),
    "optim": "OptimConfig build groups lr_factor schedule",
    "step": "TrainStep",
    "checkpoint": "Checkpoints LoadReport Store fetch load_weights read_pickle",
    "log": "Log Meter Throughput",
    "summary": "describe",
    "nn": "Attention DropPath Mlp Rope SwiGLU attend resize_positions",
    "metrics": (
        "Collector aued class_mean_recall confusion detection_ap detection_map edit_distance edit_distance_at "
        "frechet_distance multilabel_ap prefix_distances psnr recall_at segment_iou top_k"
    ),
    "report": "Page",
    "demo": "features image_pair sentence video",
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_exist(module: str) -> None:
    loaded = importlib.import_module(f"core.{module}")
    assert [name for name in PUBLIC[module].split() if not hasattr(loaded, name)] == []


def test_configuration_does_not_import_torch() -> None:
    program = "import core, core.config, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_the_import_contracts_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("core/clips.py", "import projects.ucf50_x3d.config", "core never imports a project"),
        ("projects/ucf50_x3d/losses.py", "import projects.other", "projects never import each other"),
        ("core/clips.py", "import core.dist", "the layers of core"),
        ("core/clips.py", "import core.config", "the layers of core"),
        ("core/log.py", "import transformers", "core is free of what single projects need"),
        ("projects/ucf50_x3d/data.py", "import av", "only core.video imports av"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tmp_path: Path, file: str, line: str, contract: str) -> None:
    for name in ("core", "projects"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "projects" / "other").mkdir()
    (tmp_path / "projects" / "other" / "__init__.py").touch()
    path = tmp_path / file
    if not path.is_file():  # a module that became a package
        path = path.with_suffix("") / "__init__.py"
    with path.open("a") as source:
        source.write(f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout


@pytest.mark.parametrize("line", ["import torch.distributed", "from torch.distributed import barrier"])
def test_only_dist_may_talk_to_torch_distributed(line: str) -> None:
    def codes(file: str) -> str:
        command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", f"--stdin-filename={file}", "-"]
        program = f'"""A module."""\n\n{line}\n'
        return subprocess.run(command, cwd=ROOT, input=program, capture_output=True, text=True, check=False).stdout

    assert "TID251" in codes("core/step.py")
    assert "TID251" in codes("projects/ucf50_x3d/train.py")
    assert "TID251" not in codes("core/dist.py")
