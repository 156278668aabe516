"""What ships: the wheel carries the YAML files and runs from anywhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile

from conftest import REPOSITORY

from xraylab.system.paths import conf_dir


def test_the_wheel_ships_conf_and_composes_outside_the_checkout(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(REPOSITORY)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    shipped = {
        p.relative_to(tmp_path / "installed" / "xraylab" / "conf") for p in (tmp_path / "installed").rglob("conf/**/*.yaml")
    }
    assert (tmp_path / "installed" / "hydra_plugins" / "xraylab_sweeper.py").is_file()
    assert shipped == {p.relative_to(conf_dir()) for p in conf_dir().rglob("*.yaml")}
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "xraylab.train", "--cfg", "job"],
        cwd=tmp_path / "empty", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "plane: axial" in done.stdout
    assert "xraylab = xraylab.__main__:main" in next((tmp_path / "installed").rglob("entry_points.txt")).read_text()


def test_every_text_file_is_read_and_written_as_utf8():
    bare = []
    for path in (REPOSITORY / "xraylab").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
            opened = isinstance(call.func, ast.Name) and call.func.id == "open"
            method = isinstance(call.func, ast.Attribute) and call.func.attr in ("open", "read_text", "write_text")
            of_others = method and ast.unparse(call.func) in ("os.open", "Image.open", "unzipped.open")
            modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
            binary = any(isinstance(mode, str) and re.fullmatch(r"[rwax+]*b[rwax+]*", mode) for mode in modes)
            if (opened or method) and not of_others and not binary and "encoding" not in {k.arg for k in call.keywords}:
                bare.append(f"{path.name}:{call.lineno}")
    assert not bare
