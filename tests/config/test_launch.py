"""The command line: help, mistakes in words, exit codes."""

from __future__ import annotations

import errno
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from xraylab.config.help import help_text
from xraylab.config.launch import _users_mistake
from xraylab.system.paths import conf_dir
from xraylab.train import USAGE


def test_help_names_every_group_choice_and_key():
    text = help_text("config", USAGE)
    for path in conf_dir().glob("*/*.yaml"):
        assert re.search(rf"^      {path.stem} +\w", text, re.M), f"{path.stem} is not explained"
    for key in re.findall(r"^(\w+):", (conf_dir() / "config.yaml").read_text(), re.M):
        if key not in ("defaults", "hydra"):
            assert re.search(rf"^  {key}[=.]", text, re.M), key
    assert "plane=axial" in text


@pytest.mark.parametrize("flag", ["--help", "--cfg=job"])
def test_answers_without_importing_torch(flag, tmp_path):
    arguments = ["--cfg", "job"] if flag.startswith("--cfg") else [flag]
    code = (
        f"import sys; sys.argv = ['train', *{arguments}]\n"
        "from xraylab.train import main\n"
        "main()\n"
        "heavy = {'torch', 'pandas', 'sklearn', 'cv2', 'pytorch_lightning', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "plane" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["plan=axial"], "Did you mean plane"),
        (["backbone=resnet19"], "Did you mean resnet18"),
        (["backbonn=resnet18"], "Did you mean backbone"),
        (["dataset=medmnist", "plane=axial"], "plane is a key of dataset=mrnet; the dataset here is medmnist"),
        (["optimizer.lrr=1"], "Did you mean optimizer.lr"),
        (["dataset=medmnist", "backbone.kwargs.drop_rate=0.1"], "write +backbone.kwargs.drop_rate"),
        (["max_epochs=abc"], "max_epochs=abc: it should be a valid integer"),
        (["max_epochs=0"], "greater than or equal to 1"),
        (["precision=half"], "'auto', '32', 'bf16' or '16'"),
        (["fold=7/5"], "1 <= k <= n"),
        (["+foo=1"], "there is no key foo"),
        (["plane=["], "no viable alternative"),
        (["resume=nowhere"], "error: nowhere is not a run directory"),
        (["fold=0"], "for example fold=1/5"),
        (["checkpoint_every=10"], "it is '<n> steps' or '<n> minutes'"),
        (["cache=true"], "it is auto, off or a folder"),
        (["num_workers=-3"], "it should be 'auto' or greater than"),
        (["hydra.run.dir=/proc/nowhere/run"], "cannot create the run directory"),
    ],
)
def test_mistakes_are_said_before_torch_is_imported(command, tmp_path, typed, said):
    done = command("train", *typed)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "empty").iterdir()), "a run that never began leaves nothing"


@pytest.mark.slow
def test_a_missing_root_prints_the_expected_tree_beside_the_found_one(command, tmp_path):
    (tmp_path / "wrong" / "train").mkdir(parents=True)
    done = command("train", f"dataset.root={tmp_path / 'wrong'}")
    assert done.returncode == 2
    assert "train-acl.csv" in done.stderr
    assert "wrong/" in done.stderr
    assert "stanfordmlgroup" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_console_command_knows_its_commands():
    done = subprocess.run([sys.executable, "-m", "xraylab", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean train?" in done.stderr
    done = subprocess.run([sys.executable, "-m", "xraylab", "train", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "MRNet" in done.stdout


def test_evaluate_wants_a_run(command, tmp_path):
    done = command("evaluate", "hydra.run.dir=here")
    assert done.returncode == 2
    assert "run must be given" in done.stderr
    assert not (tmp_path / "empty" / "here").exists()
    done = command("evaluate", "run=nowhere")
    assert done.returncode == 2
    assert "nowhere is not a run directory" in done.stderr


@pytest.mark.slow
def test_a_folder_of_ones_own_adds_choices_and_keys(command, tmp_path):
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "ours.yaml").write_text(
        "# @package _global_\ndefaults: [mrnet]\nsite: north\nname: ours\ndataset: {root: /nowhere}\n"
    )
    done = command("train", "--config-dir", str(tmp_path / "mine"), "dataset=ours", "site=south")
    assert done.returncode == 2
    assert "dataset.root=/nowhere: MRNet-v1.0 is not there" in done.stderr


def test_the_console_command_has_every_command():
    from xraylab.__main__ import COMMANDS

    package = REPOSITORY / "xraylab"
    entries = {path.stem for path in package.glob("*.py") if "\nUSAGE = " in path.read_text()}
    assert set(COMMANDS) == entries


@pytest.mark.parametrize(("name", "mine"), [("run1", False), ("run10", True), ("run10/below", False), ("", True)])
def test_a_folder_that_cannot_be_made_is_a_mistake_where_the_run_directory_lies_in_it(name, mine, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "hydra.run.dir=/a/run10"])
    said = _users_mistake(PermissionError(errno.EACCES, "Permission denied", f"/a/{name}"), "config")
    assert (said is not None) is mine
