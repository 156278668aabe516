"""What README and docs show: commands compose, Python runs, and what the pages on contributing build works."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shlex
import tarfile

import cv2
import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, TINY, compose_config, run_job
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from xraylab.__main__ import COMMANDS
from xraylab.config.messages import choices
from xraylab.config.settings import check_config
from xraylab.evaluation import metrics
from xraylab.system.command_line import checked
from xraylab.system.paths import conf_dir

PAGES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/**/*.md"))]
QUICK = ["max_epochs=1", "early_stopping=null", "backbone=cnn", "backbone.layers=1", "backbone.filters=2", *TINY]


def blocks(page, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def shown() -> list[tuple[str, str]]:
    """Page and command, of all that README and docs show."""
    found = []
    for page in PAGES:
        for block in (*blocks(page, "sh"), *blocks(page, "")):
            lines = [line for line in block.splitlines() if re.match(r"(python|torchrun .*) ?-m xraylab\.", line)]
            found += [(str(page.relative_to(REPOSITORY)), line) for line in lines]
    for name in COMMANDS:  # what --help shows, without what stands beside a command
        usage = importlib.import_module(f"xraylab.{name}").USAGE
        lines = [re.split(r"  +", line.strip())[0] for line in usage.splitlines() if "-m xraylab." in line]
        found += [
            (f"{name} --help", line) for line in lines if re.match("(python|torchrun)", line) and not re.search("[<…]", line)
        ]
    return found


@pytest.mark.parametrize(("page", "line"), shown())
def test_a_command_that_is_shown_composes(page, line):
    words = shlex.split(line, comments=True)
    command, *words = words[next(k for k, word in enumerate(words) if word.startswith("xraylab.")) :]
    name = command.removeprefix("xraylab.")
    typed = [w for w in checked(words, choices()) if not w.startswith("-") and not w.startswith(("hydra/", "hydra."))]
    single = []
    for override in OverridesParser.create().parse_overrides(typed):
        if override.is_sweep_override() and ("-m" in words or name == "sweep_yaml"):  # any of its values
            value = next(iter(override.sweep_string_iterator())) if override.is_discrete_sweep() else "1e-4"
            single.append(f"{override.key_or_group}={value}")
        else:
            single.append(override.input_line)
    if name in ("train", "sweep_yaml"):
        own = ("output=",) if name == "sweep_yaml" else ()  # which is not the training's
        check_config(compose_config(*(word for word in single if not word.startswith(own))))
        return
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra.compose(name, single)


def test_there_are_commands_and_they_are_found():
    assert len(shown()) > 40
    assert sum(page == "README.md" for page, _ in shown()) == 5
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= 500


@pytest.mark.parametrize("page", ["README.md", "docs/reference/python.md"])
def test_the_python_that_is_shown_runs(page, tmp_path):
    with tarfile.open(REPOSITORY / "tests" / "fixtures" / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (code,) = blocks(REPOSITORY / page, "python")
    code = code.replace("outputs/mrnet/2026-01-31_12-00-00", str(tmp_path / "runs" / "study")).replace('"acl"', '"nodule"')
    exec(compile(code, page, "exec"), {"slices": np.zeros((3, 64, 64), np.uint8)})


def test_links_between_pages_lead_somewhere():
    for page in (*PAGES, REPOSITORY / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
            generated = target.endswith("reference/configuration.md")
            assert generated or (page.parent / target).exists(), (page, target)


def pictures(root, number: int = 60):
    """A tree of the dataset that the page on datasets reads."""
    (root / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for k in range(number):
        cv2.imwrite(str(root / "images" / f"{k:04d}.png"), rng.integers(0, 256, (32, 32), np.uint8))
        rows.append((f"images/{k:04d}.png", f"p{k}", "train" if k < 40 else "heldout", k % 2))
    pd.DataFrame(rows, columns=["file", "patient", "split", "fracture"]).to_csv(root / "list.csv", index=False)


def test_the_dataset_of_the_page_trains(here, tmp_path, monkeypatch):
    page = REPOSITORY / "docs" / "contributing" / "add-a-dataset.md"
    (code,), (config,) = blocks(page, "python"), blocks(page, "yaml")
    (tmp_path / "toy.py").write_text(code, encoding="utf-8")
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "toy.yaml").write_text(config, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    pictures(tmp_path / "Toy-v1")
    monkeypatch.setattr("xraylab.reporting.figures.export.svg", lambda *_: "")
    monkeypatch.setattr("xraylab.reporting.figures.export.save_figure", lambda *_: None)
    words = ["--config-dir", str(tmp_path / "mine"), "dataset=toy", f"dataset.root={tmp_path / 'Toy-v1'}", *QUICK]
    code, said = here(*words, "hydra.run.dir=run")
    assert code == 0, said
    test = json.loads((tmp_path / "run" / "evaluation.json").read_text())["splits"]["test"]
    assert (test["n"], test["labels"]["fracture"]["positives"]["value"]) == (20, 10)


def test_the_loss_of_the_page_is_its_formula_and_is_rebuilt(tmp_path, monkeypatch):
    page = REPOSITORY / "docs" / "contributing" / "add-a-loss.md"
    (code,), _ = blocks(page, "python"), blocks(page, "yaml")
    (tmp_path / "toy_loss.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    from toy_loss import Steep

    from xraylab.models.losses.base import spec

    loss = Steep(power=2.0, balance="none")
    loss.build(1)
    logits = torch.tensor([[0.3], [-1.0], [2.0]], dtype=torch.double, requires_grad=True)
    labels = torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.double)
    p = torch.sigmoid(logits[:2, 0])
    wrong = torch.stack([1 - p[0], p[1]])
    torch.testing.assert_close(loss.total(logits, labels).double(), -(wrong**2 * torch.log(1 - wrong)).sum())
    assert torch.autograd.gradcheck(lambda z: loss.total(z, labels), logits)
    assert spec(loss)["arguments"]["power"] == 2.0


def test_the_metric_of_the_page_appears_everywhere(tmp_path, monkeypatch, mrnet_root, train_here):
    """By its one registration: in evaluation, history, report, card, and the table of several runs."""
    monkeypatch.setattr(metrics, "METRICS", metrics.METRICS)
    (code,) = blocks(REPOSITORY / "docs" / "contributing" / "add-a-metric.md", "python")
    try:
        exec(compile(code, "add-a-metric.md", "exec"), {})
        words = ["dataset=mrnet", f"dataset.root={mrnet_root}", *QUICK]
        runs = [train_here(tmp_path / "runs" / str(k), *words, f"seed={k}", report=True) for k in (0, 1)]
        run_job("report", f"runs=[{runs[0]},{runs[1]}]", f"output={tmp_path / 'both'}")
    finally:
        del metrics.METRICS["balanced_accuracy"]
    label = json.loads((runs[0] / "evaluation.json").read_text())["splits"]["test"]["labels"]["acl"]
    mean = (label["sensitivity"]["value"] + label["specificity"]["value"]) / 2
    assert label["balanced_accuracy"]["value"] == pytest.approx(mean)
    assert label["balanced_accuracy"]["reason"] == "no interval: no method has been chosen for it"
    assert "valid/acl/balanced_accuracy" in pd.read_csv(runs[0] / "history.csv")
    for page in ("report.html", "MODEL_CARD.md"):
        assert "balanced accuracy" in (runs[0] / page).read_text(), page
    table = pd.read_csv(tmp_path / "both" / "comparison.csv")
    assert (table["metric"] == "balanced_accuracy").sum() >= 2


def test_the_section_of_the_page_is_in_the_report_by_one_file(tmp_path, monkeypatch):
    from xraylab.reporting import sections
    from xraylab.reporting.run_report import write_report

    (code,) = blocks(REPOSITORY / "docs" / "contributing" / "add-a-report-section.md", "python")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "duration.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path / "more")])
    monkeypatch.setattr("xraylab.reporting.figures.export.svg", lambda *_: "")
    monkeypatch.setattr("xraylab.reporting.figures.export.save_figure", lambda *_: None)
    with tarfile.open(REPOSITORY / "tests" / "fixtures" / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    page = write_report(tmp_path / "runs" / "study").read_text()
    assert '<a href="#duration">Duration</a>' in page
    assert re.search('<h2 id="duration">Duration</h2><p>[0-9]+ minutes', page)
    assert page.index('id="training"') < page.index('id="duration"') < page.index('id="configuration-and-environment"')


@pytest.mark.parametrize("module", sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in (REPOSITORY / "xraylab").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")
))  # fmt: skip
def test_examples_of_docstrings_run(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.failed == 0
    assert found.attempted or module in ("xraylab", "xraylab.run"), "which need a finished run"
