"""What README and docs show: commands compose, Python runs, and what the pages on contributing build works."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import re
import shlex
import tarfile
import tomllib

import cv2
import hydra
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY, compose_config, run_job
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

import xraylab
from xraylab.__main__ import COMMANDS
from xraylab.config.messages import choices
from xraylab.config.settings import check_config
from xraylab.evaluation import metrics
from xraylab.system.command_line import checked
from xraylab.system.paths import conf_dir

GENERATED = "configuration.md"  # by docs/conf.py
PAGES = [REPOSITORY / "README.md", *sorted(p for p in REPOSITORY.glob("docs/**/*.md") if p.name != GENERATED)]
QUICK = ["max_epochs=1", "early_stopping=null", "backbone=cnn", "backbone.layers=1", "backbone.filters=2", *TINY]


def blocks(page, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


COMMAND = re.compile(r"(?:python3?|torchrun [^`]*?) -m xraylab\.\w+[^`|]*|python (?:experiments|docs)/[^`|]*")


def words_of_shell(page) -> list[str]:
    """The commands of a page: in fences, indented, and in backticks; what stands for something is a word."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    text = re.sub(r"^```(?!sh$|text$|$)\S+\n.*?^```$", "", text, flags=re.M | re.S)  # other languages
    fenced = re.findall(r"^```(?:sh|text)?\n(.*?)^```$", text, re.M | re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    lines = "\n".join(fenced).splitlines() + re.findall(r"^ {4,}(\S.*)$", text, re.M)
    lines += [line.replace("\n", " ") for line in re.findall(r"`([^`]+)`", re.sub(r"^ {4,}.*$", "", text, flags=re.M))]
    found = [match.group().strip() for line in lines if (match := COMMAND.search(line))]
    return [re.sub(r"<[^>]*>|(?<==)…|(?<=\[)…", "x", line).replace(" …", "") for line in found]


def shown() -> list[tuple[str, str]]:
    """Page and command, of all that README and docs show."""
    found = [(str(page.relative_to(REPOSITORY)), line) for page in PAGES for line in words_of_shell(page)]
    for name in COMMANDS:  # what --help shows, without what stands beside a command
        usage = importlib.import_module(f"xraylab.{name}").USAGE
        lines = [re.split(r"  +", line.strip())[0] for line in usage.splitlines() if "-m xraylab." in line]
        found += [
            (f"{name} --help", line) for line in lines if re.match("(python|torchrun)", line) and not re.search("[<…]", line)
        ]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("page", "line"), shown())
def test_a_command_that_is_shown_composes(page, line):
    words = shlex.split(line, comments=True)
    if words[1].endswith(".py"):
        script = (REPOSITORY / words[1]).read_text(encoding="utf-8")
        assert all(word in script for word in words[2:] if word.startswith("--")), line
        return
    if "--config-dir" in words:  # its files are on the page, and a test below trains with them
        assert page in ("docs/contributing/add-a-dataset.md", "docs/contributing/add-a-loss.md")
        return
    command, *words = words[next(k for k, word in enumerate(words) if word.startswith("xraylab.")) :]
    name = command.removeprefix("xraylab.")
    typed = [w for w in checked(words, choices()) if not w.startswith("-")]
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
    assert len(shown()) > 120
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
            generated = target.endswith(f"reference/{GENERATED}")
            assert generated or (page.parent / target).exists(), (page, target)


@pytest.fixture(scope="module")
def pages():
    """``docs/conf.py``, which writes the reference of the configuration."""
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("docs_conf", REPOSITORY / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(node, prefix: str):
    """Every key of a YAML file that has a value, as it is typed."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        name = f"{prefix}{key}"
        if value and (isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))):
            yield from leaves(value, f"{name}.")
        elif not name.endswith("_partial_") and name.split(".")[0] not in ("defaults", "hydra"):
            yield name


def test_every_key_is_in_the_reference_with_its_default_and_meaning(pages):
    written = pages.configuration()
    assert not re.findall(r"^.*\| *\|$", written, re.M), "no meaning"
    names = set(re.findall(r"^\| `([^`]+)` \|", written, re.M))
    for path in sorted(conf_dir().rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        whole = path.parent == conf_dir() or "@package _global_" in text
        found = set(leaves(yaml.safe_load(text), "" if whole else f"{path.parent.name}."))
        assert not {key for key in found if not any(k in names for k in (key, key.rpartition(".")[0]))}, path
    assert "| `augmentation.transforms.1.p` | `0.5` | " in written
    assert written.count("From `conf/") == len(list(conf_dir().glob("*/*.yaml")))


def test_every_key_that_is_named_is_there(pages):
    known = {*choices(), *(name for path in conf_dir().rglob("*.yaml") for name, *_ in pages.rows(path))}
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        words = [word for code in re.findall(r"`([^`\n]+)`", prose) for word in code.split()]
        named = {m.group(1) for word in words if (m := re.match(r"['\"]?[+~]?([a-z_][\w.]*)=", word))}
        assert not {key for key in named - known if not key.startswith("hydra.")}, page


def test_every_file_target_and_extra_that_is_named_is_there():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page in (*PAGES, REPOSITORY / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        files = re.findall(r"`((?:conf|docs|experiments|tests|xraylab)/[^`\s]*)`", text)
        own = "xraylab/reporting/sections/duration.py"  # which the page makes
        assert not [f for f in files if not (REPOSITORY / f).exists() and f != own], page
        assert not [
            t for t in re.findall(r"\bmake (?:-B )?([a-z-]+)(?:`|  )", text) if not re.search(rf"^{t}:", makefile, re.M)
        ], page
        assert not [e for e in re.findall(r"\.\[([a-z0-9]+)\]", text) if e not in extras], page


def test_the_picture_of_the_rooms_is_the_contract():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [c["layers"] for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    drawn = re.findall(r"<text[^>]*>([^<]+)", (REPOSITORY / "docs" / "_static" / "rooms.svg").read_text(encoding="utf-8"))[:-1]
    assert len(drawn) == len(layers)
    for said, layer in zip(drawn, layers, strict=True):
        assert set(re.findall(r"\w+", said.split(":")[0])) <= set(re.findall(r"\w+", layer)), (said, layer)


@pytest.mark.parametrize("face", ["xraylab", *(f"xraylab.{n}" for n in ("callbacks", "data", "loggers", "losses", "models"))])
def test_the_api_has_a_place_in_the_reference(face):
    text = (REPOSITORY / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    public = importlib.import_module(face).__all__
    assert not [n for n in public if not re.search(rf"[. ]{n}$", text, re.M) and n != "__version__"]


def pictures(root, number: int = 60):
    """A tree of the dataset that the page on datasets reads."""
    (root / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for k in range(number):
        cv2.imwrite(str(root / "images" / f"{k:04d}.png"), rng.integers(0, 256, (32, 32), np.uint8))
        rows.append((f"images/{k:04d}.png", f"p{k}", "train" if k < 40 else "heldout", k % 2))
    pd.DataFrame(rows, columns=["file", "patient", "split", "fracture"]).to_csv(root / "list.csv", index=False)


def without_figures(monkeypatch) -> None:
    """Drawing takes longer than all else of a tiny run."""
    monkeypatch.setattr("xraylab.reporting.figures.export.svg", lambda *_: "")
    monkeypatch.setattr("xraylab.reporting.figures.export.save_figure", lambda *_: None)


def write_page(page, group, name, folder, monkeypatch) -> list[str]:
    """The module and the configuration of a page, as files a user has; returns the words that take them up.

    Args:
        page: below ``docs/contributing``.
        group: of ``conf``.
        name: of the YAML file; the module is called as its ``_target_`` says.
    """
    (code,), (config,) = (blocks(REPOSITORY / "docs" / "contributing" / page, kind) for kind in ("python", "yaml"))
    module = re.search(r"_target_: (\w+)\.", config).group(1)
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    (folder / "mine" / group).mkdir(parents=True)
    (folder / "mine" / group / f"{name}.yaml").write_text(config, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return ["--config-dir", str(folder / "mine"), f"{group}={name}"]


def test_the_dataset_of_the_page_trains(here, tmp_path, monkeypatch):
    words = write_page("add-a-dataset.md", "dataset", "toy", tmp_path, monkeypatch)
    pictures(tmp_path / "Toy-v1")
    without_figures(monkeypatch)
    code, said = here(*words, *QUICK, "hydra.run.dir=run")
    assert (code, "no sample of Toy-v1" in said, "SYNTHETIC SAMPLE" in said) == (2, True, False), said
    code, said = here(*words, f"dataset.root={tmp_path / 'Toy-v1'}", *QUICK, "hydra.run.dir=run")
    assert code == 0, said
    test = json.loads((tmp_path / "run" / "evaluation.json").read_text())["splits"]["test"]
    assert (test["n"], test["labels"]["fracture"]["positives"]["value"]) == (20, 10)


def test_the_loss_of_the_page_is_its_formula_and_trains(here, tmp_path, monkeypatch, mrnet_root):
    words = write_page("add-a-loss.md", "loss", "steep", tmp_path, monkeypatch)
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
    monkeypatch.setattr("xraylab.reporting.run_report.write_report", lambda _: None)
    words += ["dataset=mrnet", f"dataset.root={mrnet_root}", "loss.power=2", *QUICK, "hydra.run.dir=run"]
    status, said = here(*words)
    assert status == 0, said
    assert xraylab.load(tmp_path / "run").loss.power == 2  # rebuilt from its checkpoint


def test_the_metric_of_the_page_appears_everywhere(tmp_path, mrnet_root, train_here):
    """By its one registration: in evaluation, history, report, card, and the table of several runs."""
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
    without_figures(monkeypatch)
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
