"""What ships: the wheel carries the YAML files and runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

from conftest import REPOSITORY

from xraylab import conf_dir


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
