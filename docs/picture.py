"""The picture in the README: the top of a report on the synthetic sample, in Chromium. ``python docs/picture.py``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH, HEIGHT = 1280, 960


def main() -> None:
    """Train, and photograph the report."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("a browser is needed: chromium or google-chrome")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "mrnet" / "demo"
        words = ["dataset=mrnet", "plane=axial", "dataset.root=sample", f"hydra.run.dir={run}"]
        subprocess.run([sys.executable, "-m", "xraylab.train", *words], check=True)
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/browser"]
        picture = Path(__file__).parent / "report.png"
        size = f"--window-size={WIDTH},{HEIGHT}"
        subprocess.run([browser, *options, size, f"--screenshot={picture}", (run / "report.html").as_uri()], check=True)
        print(f"wrote {picture}")


if __name__ == "__main__":
    main()
