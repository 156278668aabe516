"""``python -m xraylab.serve``: it begins, answers and ends, and mistakes are said before a model is loaded."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from conftest import REPOSITORY

from xraylab.serve import main
from xraylab.serving.server import listening, token_for


@pytest.mark.parametrize("end", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_run_is_served_until_it_is_stopped_and_nothing_is_left(end, tmp_path, knee_runs, mrnet_root):
    began = subprocess.Popen(
        [sys.executable, "-m", "xraylab.serve", f"run={knee_runs['axial']}", "port=0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip
    try:
        assert began.stdout is not None
        lines = []
        while not (found := re.search(r"open (http://127\.0\.0\.1:\d+) ", "".join(lines))):
            line = began.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        file = min((mrnet_root / "valid" / "axial").glob("*.npy"))
        answer = httpx.post(f"{found[1]}/api/predict", files=[("files", (file.name, file.read_bytes()))], timeout=60)
        assert 0 <= answer.json()["findings"]["acl"]["probability"] <= 1
        began.send_signal(end)
        rest, _ = began.communicate(timeout=30)
    finally:
        began.kill()
    assert began.returncode == 0, rest
    assert "SYNTHETIC SAMPLE" in "".join(lines)
    assert "Traceback" not in rest
    assert not list(tmp_path.glob("xraylab-serve-*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "run must be given"),
        (("run=none",), "none"),
        (("run=.", "limits.files=0"), "limits.files=0: it is a number above 0"),
        (("run=.", "limits.files=1.5"), "limits.files=1.5: it is a whole number"),
        (("run=.", "limits.file=1"), "file"),
        (("run=.", "token=''"), "token"),
        (("run=.", "bits=3"), "bits"),
        (("run=.", "method=cams"), "method=cams"),
        (("run=.", "port=x"), "port=x"),
        (("run=.", "port=70000"), "port=70000"),
    ],
)  # fmt: skip
def test_mistakes_are_said(here, words, said, tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    code, text = here(*words, entry=main)
    assert code == 2, text
    assert said in text
    assert "Traceback" not in text


def test_a_port_that_is_taken_is_said(here, tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, text = here("run=.", f"port={other.getsockname()[1]}", entry=main)
    assert code == 2
    assert "Name another" in text


def test_who_can_be_reached_from_outside_has_a_token_of_its_own():
    assert token_for("127.0.0.1", None) is None
    assert token_for("127.0.0.1", "mine") == "mine"
    drawn = {token_for("0.0.0.0", None) for _ in range(3)}
    assert len(drawn) == 3
    assert min(map(len, drawn)) >= 30
    with listening("127.0.0.1", 0) as opened:
        assert opened.getsockname()[1] > 0
