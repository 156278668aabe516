"""Words of commands: what is printed can be typed, and what is typed wrongly says how."""

from __future__ import annotations

import html
import io
import json
import logging
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from xraylab.config.launch import escape_unprintable
from xraylab.errors import UserError
from xraylab.reporting.run_report import write_report
from xraylab.system.command_line import checked, command_line, shown, value_of, word
from xraylab.system.paths import cache_dir, conf_dir

NASTY = "josé (2), lr=0.1; it's #1 {a}"
TINY = ["backbone=cnn", "backbone.layers=2", "backbone.filters=2", "image.size=16", "max_epochs=1", "early_stopping=null",
        "bootstrap=0", "cases=0", "num_workers=0", "accelerator=cpu", "precision=32", "cache=off"]  # fmt: skip
LETTERS = [*"abZ09 ,=()[]{}:'\"\\\\\\$#~!&|;<>*?@%^`+-_./\té日🦴ß", "${", "}", "${x}", "null", "true", "1e5", "$("]
NAMES = [
    "null", "true", "False", "1e5", "1_000", "0012", "inf", "nan", "-1", "None", "", "~", "~/x", "a:b", "a\\", "a\\\\", "\\",
    "${x}", "\\${x}", "\\\\${x}\\", "${oc.env:HOME}", " a ", "a'b", 'a"b', "'a'", '"a"', "a,b", "[a]", "tag(a)", NASTY,
]  # fmt: skip


def test_every_name_comes_back_through_a_shell_hydra_and_omegaconf():
    rng = random.Random(0)
    names = NAMES + ["".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 10))) for _ in range(300)]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for some in range(0, len(names), 40):
            part = names[some : some + 40]
            typed = " ".join(shown(f"+key{k}", name) for k, name in enumerate(part))
            cfg = compose("report", shlex.split(typed))
            assert [cfg[f"key{k}"] for k in range(len(part))] == part
    values = {"a": None, "b": True, "c": [1, 2.5, "x,y"], "d": {"e": "f g", "h": False}}
    assert {key: checked_value(word(key, value)) for key, value in values.items()} == values
    GlobalHydra.instance().clear()


def checked_value(typed):
    return value_of(checked([typed])[0])


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\udcff", "???"])
def test_what_no_line_can_hold_is_refused(name):
    with pytest.raises(UserError, match="Rename it"):
        word("run", name)


@pytest.fixture
def by_shell(tmp_path):
    """Type a printed command into a shell, in the current folder: the words that Python would get."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in ("python", "wandb"):
        (bin / name).write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        (bin / name).chmod(0o755)

    def run(command: str) -> list[str]:
        path = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"}
        return subprocess.run(["sh", "-c", command], env=path, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]

    return run


def printed(text):
    """The commands in a text, or in a page."""
    found = re.findall(r"(?:^\s*|<pre>|<code>|`+)(python -m xraylab\.[^\n]*?)(?=$|</pre>|</code>|`)", text, re.M)
    return list(dict.fromkeys(html.unescape(command) for command in found))


@pytest.fixture
def typed_in(here, by_shell, tmp_path, monkeypatch):
    """A folder with such a name, in which commands run: ``start(*words, entry)`` and, as printed, ``type_in(command)``."""
    from xraylab import describe, evaluate, report, train

    folder = tmp_path / NASTY
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("xraylab.reporting.figures.export.save_figure", lambda *_: None)  # drawing takes longer than all else
    monkeypatch.setattr("xraylab.reporting.figures.export.svg", lambda *_: "")
    entries = {"train": train.main, "evaluate": evaluate.main, "report": report.main, "describe": describe.main}

    def type_in(command: str, *more: str) -> str:
        flag, module, *words = by_shell(command)
        assert flag == "-m"
        code, said = here(*words, *more, entry=entries[module.removeprefix("xraylab.")])
        assert code == 0, (command, said)
        return said

    return here, type_in


def test_every_command_that_is_printed_runs_as_it_stands(typed_in, by_shell, tmp_path, monkeypatch):
    import xraylab
    from xraylab import describe, evaluate, report, sample

    start, type_in = typed_in
    here = Path.cwd()
    sizes = ["dataset.sample.train=24", "dataset.sample.test=8"]
    code, said = start("dataset=table", word("root", "samples (1)"), *sizes, entry=sample.main)
    assert code == 0, said
    data = ["dataset=table", word("dataset.root", "samples (1)")]
    (train_on_it,) = printed(said)
    type_in(train_on_it, *TINY, word("hydra.run.dir", "runs = 1"))
    run = here / "runs = 1"
    assert OmegaConf.load(run / "config.yaml").dataset.root == str(here / "samples (1)" / "table" / "table.csv")
    write_report(run)
    made_by = json.loads((run / "environment.json").read_text(encoding="utf-8"))["command"]
    assert data[1] in by_shell(made_by)
    for page in ("report.html", "MODEL_CARD.md"):
        assert made_by in printed((run / page).read_text(encoding="utf-8"))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("xraylab.training.session.fit", stop)
        code, said = start(*data, *TINY, "name=t")
    assert code == 75
    (begin_again,) = printed(said)
    (begun,) = (here / "outputs" / "t").iterdir()
    (begun / "config.yaml").unlink()  # as where it was stopped still earlier
    code, said = start(word("run", begun), entry=evaluate.main)
    assert (code, printed(said)) == (2, [begin_again])
    type_in(begin_again)
    best = [word("resume", begun / "checkpoints" / "best.ckpt")]
    (begun / "checkpoints" / "last.ckpt").unlink()
    code, said = start(word("resume", begun))
    assert (code, by_shell(printed(said)[0])[2:3]) == (2, best)
    (begun / "checkpoints" / "last.ckpt").write_bytes(b"")
    code, said = start(word("resume", begun))
    assert (code, by_shell(printed(said)[0])[2:3]) == (2, best)
    code, said = start(*data, *TINY, word("hydra.run.dir", begun))
    assert code == 2
    assert shown("resume", begun) in said

    (begun / "operating_points.json").write_text("{")
    with pytest.raises(UserError) as raised:
        xraylab.load(str(begun))
    type_in(printed(str(raised.value))[0], "bootstrap=5")
    evaluated = json.loads((begun / "evaluation.json").read_text(encoding="utf-8"))["evaluated"]["command"]
    assert word("run", begun) in by_shell(evaluated)

    code, said = start(word("runs", begun / "predictions" / "test.csv"), entry=report.main)
    assert code == 2
    assert word("table", begun / "predictions" / "test.csv") in by_shell(printed(said)[0])
    code, said = start(*data, "pictures=0", "sizes_of=1", entry=describe.main)
    assert code == 0
    page = next((here / "outputs").glob("describe_*/*/report.html")).read_text(encoding="utf-8")
    assert data[1] in by_shell(printed(page)[0])


def test_every_command_of_a_sweep_runs_as_it_stands(typed_in, by_shell, monkeypatch):
    from conftest import leave

    from xraylab import sweep_yaml
    from xraylab.sweeps.record import Journal

    begun = []

    def job(cfg):
        begun.append(str(cfg.dataset.root))
        leave(Path(HydraConfig.get().runtime.output_dir), 0.5)
        if len(begun) == 2:
            raise UserError("what fails once")

    monkeypatch.setattr("xraylab.sweeps.sweeper.resolved", lambda *_: None)  # there is no data
    monkeypatch.setattr("xraylab.training.experiment.Experiment.from_config", lambda *_, **__: None)
    monkeypatch.setattr("xraylab.train._job", job)
    start, type_in = typed_in
    folder = Path.cwd() / "s=1"
    words = ["dataset=mrnet", word("dataset.root", "samples (1)"), "seed=0,1", word("hydra.sweep.dir", folder)]
    code, said = start("-m", *words, "~hydra.callbacks.comparison")
    shutil.rmtree(folder / "1")
    journal = Journal.read(folder)
    journal.jobs[1].state, journal.jobs[1].reason = "failed", "what fails once"
    journal.write()
    best, go_on = printed(journal.closing())
    type_in(best)
    type_in(go_on)
    assert begun == ["samples (1)"] * 4
    assert [job.state for job in Journal.read(folder).jobs] == ["finished"] * 2
    code, said = start("-m", *words)
    assert code == 2
    assert shown("sweep.resume", folder) in said

    code, said = start(*words[:-1], word("output", "sweep (1).yaml"), entry=sweep_yaml.main)
    assert code == 0, said
    assert by_shell(said.splitlines()[-1]) == ["sweep", "sweep (1).yaml"]
    told = yaml.safe_load(Path("sweep (1).yaml").read_text(encoding="utf-8"))["command"][4:-1]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert compose("config", told).dataset.root == "samples (1)"
    GlobalHydra.instance().clear()


def test_a_command_keeps_folders_of_ones_own_yaml_and_the_launcher(by_shell):
    line = command_line("train", ["--config-dir=/my conf", word("resume", NASTY)], "torchrun --nproc-per-node=2")
    words = shlex.split(line)
    assert words[:5] == ["torchrun", "--nproc-per-node=2", "-m", "xraylab.train", "--config-dir=/my conf"]
    assert checked(words[4:]) == words[4:]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("dataset.root=/home/josé (2)", "'dataset.root=\"/home/josé (2)\"'"),
        ("resume=a/lr=0.1", "'resume=\"a/lr=0.1\"'"),
        ("runs=[a=1,b]", "'runs=[\"a=1\",b]'"),
        ("dataset.root=/a,b", "'dataset.root=\"/a,b\"'"),
        ("folder", "neither key=value nor a flag"),
        ("cache=None", "written null here"),
        ("seed=0,None", "written null here"),
        ("task=[acl,None]", "written null here"),
        ("hydra.run.dir=None", "written null here"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: the paths given"),
        ("callbacks=None", "Did you mean none"),
        ("cache=none", "it is auto, off or a folder"),
        ("early_stopping=no", "or is null: early_stopping=null"),
        ("experiment=mura_paper early_stopping.patience=3", "'early_stopping={monitor:valid/loss,patience:3,min_delta:0.0}'"),
        ("scheduler=null", "scheduler=null: it is one of cosine, none, onecycle, plateau"),
        ("seed=null", "seed=null: it should be a valid integer"),
        ("name=true", "name=true: it should be a valid string"),
        ("unit=yes", "unit=yes: it should be 'study' or 'image'"),
    ],
)
def test_what_is_typed_wrongly_says_how(here, typed, said):
    words = typed.split(" ") if typed.startswith("experiment") else [typed]
    code, out = here(*words)
    assert code == 2
    assert said in out
    assert not list(Path().iterdir()), "no run directory is left"
    for command in re.findall(r"^  ('.*')$", out, re.M):  # what is advised can be typed
        (again,) = shlex.split(command)
        assert checked([again]) == [again]


def test_none_of_a_yaml_of_ones_own_is_refused_too(here, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text("# @package _global_\nreaders: None\n")
    code, out = here(f"--config-dir={tmp_path / 'mine'}", "experiment=x")
    assert code == 2
    assert "readers=None: None is Python's" in out
    assert not (tmp_path / "outputs").exists()


def test_a_tilde_is_the_home_folder_wherever_a_path_is_taken(here, tmp_path, monkeypatch):
    home = tmp_path / NASTY
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert [checked_value(w) for w in ("a=~/x", "a='~/x (2)'", "a=[~/x,y,'~/z z']", "a=~")] == [
        f"{home}/x", f"{home}/x (2)", [f"{home}/x", "y", f"{home}/z z"], str(home),
    ]  # fmt: skip
    code, out = here("dataset.root=~/MRNet-v1.0")
    assert code == 2
    assert f"found at {home}/MRNet-v1.0" in out
    from xraylab.run import run_of

    with pytest.raises(UserError, match=re.escape(f"{home}/runs/x is not a run")):
        run_of("~/runs/x")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text("# @package _global_\nresume: ~/runs/x\n")
    code, out = here(f"--config-dir={tmp_path / 'mine'}", "experiment=x")
    assert code == 2
    assert f"{home}/runs/x" in out


@pytest.mark.parametrize("name", ["a\nb", "a${x}b"])
def test_a_folder_that_no_record_can_name_is_refused(here, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    code, out = here("dataset=mrnet")
    assert code == 2
    assert "Rename the folder" in out
    assert not list(Path().iterdir())


def test_a_terminal_without_all_characters_loses_no_line_and_the_log_is_utf8(here, tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    file = logging.FileHandler(tmp_path / "log.txt", encoding="latin-1")
    screen = logging.StreamHandler(terminal)
    log = logging.getLogger()
    try:
        for handler in (file, screen):
            log.addHandler(handler)
        escape_unprintable()
        for line in ("first", "josé … ß", "last"):
            log.warning(line)
        terminal.flush()
    finally:
        for handler in (file, screen):
            log.removeHandler(handler)
    file.close()
    assert terminal.buffer.getvalue().decode("ascii").splitlines() == ["first", r"jos\xe9 \u2026 \xdf", "last"]
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines() == ["first", "josé … ß", "last"]


def test_output_in_ascii_degrades(command):
    done = command("train", "resume=nö…", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert r"resume=n\xf6\u2026: Hydra cannot read it as it is" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_without_a_home_is_told_where_to_name_the_cache(monkeypatch):
    def nobody(_):
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "XRAYLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="XRAYLAB_CACHE=<folder>"):
        cache_dir()
