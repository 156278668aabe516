"""The JSON interface: the same numbers as predicting, answers as described, limits, and nothing that stays."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import socket
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import jsonschema
import numpy as np
import pytest

import xraylab
from xraylab.evaluation.predictions import PredictionTable
from xraylab.serving.served_run import ServedRun
from xraylab.serving.server import serving
from xraylab.serving.uploads import Limits


def files_of(*paths: Path, named: str = "") -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"{named}{path.name}", path.read_bytes())) for path in paths]


@pytest.fixture(scope="module")
def exams(mrnet_root) -> list[Path]:
    """Axial volumes."""
    return sorted((mrnet_root / "valid" / "axial").glob("*.npy"))


def kept() -> list[Path]:
    """What servers of this process have in their folders."""
    return [path for top in Path(tempfile.gettempdir()).glob(f"xraylab-serve-{os.getpid()}-*") for path in top.iterdir()]


def require_described(client: httpx.Client, answer: object, name: str = "Answer") -> None:
    described = client.get("/openapi.json").json()
    jsonschema.validate(answer, {**described, "$ref": f"#/components/schemas/{name}"})


def test_a_study_has_the_probabilities_of_predicting_and_an_answer_as_described(client, exams, knee, knee_runs):
    module = xraylab.load(knee_runs["axial"])
    for path in exams[:4]:
        answer = client.post("/api/predict", files=files_of(path)).json()
        require_described(client, answer)
        assert answer["id"] == path.stem
        assert answer["synthetic"] is True
        wanted = module.predict(np.load(path))
        assert {k: of["uncalibrated"] for k, of in answer["findings"].items()} == pytest.approx(wanted, abs=1e-6)
        for name, of in answer["findings"].items():
            t = knee.decisions.temperature(name)
            assert of["calibrated"] == (t is not None)
            assert of["probability"] == pytest.approx(1 / (1 + np.exp(-of["logit"] / (t or 1))), abs=1e-6)
            assert of["call"] == (of["probability"] >= of["threshold"])
        (finding, about), *_ = answer["maps"].items()
        assert about["adds_up_to"] == "logit"
        shares = sum(image["shares"][finding] for image in answer["images"])
        assert shares + about["rest"] == pytest.approx(answer["findings"][finding]["logit"], abs=1e-4)
        assert [image["slice"] for image in answer["images"]] == list(range(1, len(np.load(path)) + 1))
        assert "picture" not in answer["images"][0]


def test_pictures_are_those_that_were_sent_and_maps_lie_over_them(client, exams):
    answer = client.post("/api/predict", files=files_of(exams[0]), data={"pictures": "true", "findings": "meniscus"}).json()
    require_described(client, answer)
    assert list(answer["maps"]) == ["meniscus"]
    largest = 0
    for image, wanted in zip(answer["images"], np.load(exams[0]), strict=True):
        shown, heat = (decoded(url) for url in (image["picture"], image["maps"]["meniscus"]))
        assert np.array_equal(shown, wanted)
        assert heat.shape == wanted.shape
        largest = max(largest, int(heat.max()))
    assert largest == 255


def decoded(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)


def test_views_of_any_size_are_one_study(bone_run, mura_root):
    views = max((sorted(folder.glob("*.png")) for folder in (mura_root / "valid").glob("*/*/*")), key=len)
    module = xraylab.load(bone_run)
    wanted = module.predict([cv2.imread(str(view), cv2.IMREAD_GRAYSCALE) for view in views])
    with serving(ServedRun(bone_run)) as url:
        answer = httpx.post(f"{url}/api/predict", files=files_of(*views), timeout=60).json()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as opened:
            for view in views:
                opened.write(view, f"study1/{view.name}")
        zipped = httpx.post(f"{url}/api/predict", files=[("files", ("s.zip", packed.getvalue()))], timeout=60).json()
    assert len(views) > 1
    assert answer["findings"]["abnormal"]["uncalibrated"] == pytest.approx(wanted["abnormal"], abs=1e-5)
    assert zipped["findings"] == answer["findings"]
    assert [image["name"] for image in zipped["images"]] == [f"s/study1/{view.name}" for view in views]


def test_ten_visitors_at_once_do_not_mix_and_nothing_is_kept(client, url, exams):
    alone = [client.post("/api/predict", files=files_of(path)).json() for path in exams[:10]]

    def visit(path: Path) -> dict:
        return httpx.post(f"{url}/api/predict", files=files_of(path), timeout=60).json()

    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(visit, exams[:10]))
    assert together == alone
    assert len({json.dumps(of["findings"]) for of in alone}) == 10
    assert kept() == []


def test_a_log_has_no_name_of_a_file_and_no_reason_that_holds_one(client, exams, caplog):
    with caplog.at_level(logging.INFO):
        client.post("/api/predict", files=files_of(exams[0], named="Doe_Jane_"))
        refused = client.post("/api/predict", files=[("files", ("Doe_Jane.png", b"broken"))])
    assert refused.status_code == 422
    assert "Doe_Jane.png" in refused.json()["error"]
    assert "POST /api/predict 200" in caplog.text
    assert "POST /api/predict 422" in caplog.text
    assert "Jane" not in caplog.text
    assert kept() == []


@pytest.mark.parametrize(
    ("more", "status", "reason"),
    [
        ({"files": [("files", ("a.png", b"no picture"))]}, 422, "unreadable"),
        ({"files": [("other", ("a.png", b"no picture"))]}, 400, "bad_request"),
        ({"data": {"findings": "acl"}}, 415, "bad_request"),
        ({"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "bad_request"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "bad_request"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=x; charset=utf-7"}}, 415, "bad_request"),
        ({"files": [("files", ("\u00b21.png", b"x"))]}, 422, "unreadable"),
        ({"files": [("files", (f"{9 * 10**4000}.png", b"x"))]}, 422, "unreadable"),
        ({"files": [("sample", (None, "99"))]}, 400, "no_such_sample"),
        ({"files": [("files", ("a.png", b"x"))], "headers": {"origin": "http://elsewhere"}}, 403, "origin"),
        ({"files": [("files", ("a.png", b"x"))], "headers": {"host": "elsewhere:80"}}, 403, "host"),
        ({"files": [("files", ("a.png", b"x"))], "headers": {"host": "localhost:x@elsewhere"}}, 403, "host"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_a_reason(client, more, status, reason):
    answer = client.post("/api/predict", **more)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    require_described(client, answer.json(), "Error")
    assert kept() == []


def test_a_finding_that_is_named_twice_counts_once(client, exams):
    once, twice = (
        client.post("/api/predict", files=files_of(exams[0]), data={"findings": of}).json() for of in ("acl", "acl,acl")
    )
    assert [image["shares"] for image in once["images"]] == [image["shares"] for image in twice["images"]]
    assert once["maps"] == twice["maps"]


def test_a_finding_that_is_not_the_models_is_refused(client, exams):
    answer = client.post("/api/predict", files=files_of(exams[0]), data={"findings": "fracture"})
    assert answer.status_code == 400
    assert "acl, meniscus" in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/nothing", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/frame.html", "/api/predict"]
)
def test_there_is_nothing_else_to_get(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 405)
    assert "error" in answer.json()


def test_every_answer_forbids_what_a_page_of_others_could_do_with_it(client):
    for path in ("/", "/docs", "/static/page.js", "/static/page.css", "/api/model"):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in answer.text.replace(str(client.base_url), "").replace("http://127.0.0.1:8000/api/predict", "")
        assert "https://" not in answer.text


def test_another_threshold_is_judged_as_the_studies_of_validation_say(client, knee_runs, knee):
    table = PredictionTable.read(knee_runs["axial"] / "predictions" / "valid.csv").frame
    t = knee.decisions.temperature("acl") or 1.0
    shown = 1 / (1 + np.exp(-table["logit_acl"] / t))
    for cut in (0.0, float(shown.median()), 1.0):
        answer = client.get("/api/threshold", params={"finding": "acl", "threshold": cut}).json()
        called, sick = shown >= cut, table["y_acl"] == 1
        wanted = {"tp": called & sick, "fp": called & ~sick, "fn": ~called & sick, "tn": ~called & ~sick}
        assert answer["confusion"] == {name: int(of.sum()) for name, of in wanted.items()}
        assert answer["sensitivity"]["value"] == pytest.approx((called & sick).sum() / sick.sum())
    assert client.get("/api/threshold", params={"finding": "acl", "threshold": "nan"}).status_code == 400
    assert client.get("/api/threshold", params={"finding": "no", "threshold": "0.5"}).status_code == 400


def test_limits_hold_whatever_a_request_says_of_itself(knee, exams):
    with serving(knee, Limits(megabytes=0.1, files=3, upload_seconds=1)) as url:
        big = [("files", ("a.npy", bytes(200_000)))]
        assert httpx.post(f"{url}/api/predict", files=big).status_code == 413
        body = httpx.Request("POST", url, files=big)
        head = {"content-type": body.headers["content-type"], "transfer-encoding": "chunked"}
        parts = (body.read()[k : k + 5000] for k in range(0, 200_000, 5000))
        unsaid = httpx.post(f"{url}/api/predict", content=parts, headers=head)
        assert (unsaid.status_code, unsaid.json()["reason"]) == (413, "too_large")
        many = httpx.post(f"{url}/api/predict", files=[("files", (f"{k}.png", b"x")) for k in range(4)])
        assert (many.status_code, many.json()["reason"]) == (413, "too_many")
        assert slowly(url) == b"HTTP/1.1 408"
        assert httpx.post(f"{url}/api/predict", files=[("files", ("a.png", b"x"))]).status_code == 422
    assert kept() == []


def slowly(url: str) -> bytes:
    """The beginning of the answer to a form that does not come to its end."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as opened:
        opened.sendall(
            f"POST /api/predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            "Content-Length: 5000\r\n\r\n--x\r\n".encode()
        )
        return opened.recv(12)


def test_who_comes_when_too_many_wait_is_told_so(knee, exams, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    answer = ServedRun.answer

    def waits(self: ServedRun, *arguments: object) -> object:
        begun.set()
        go_on.wait(20)
        return answer(self, *arguments)

    monkeypatch.setattr(ServedRun, "answer", waits)
    with serving(knee, Limits(waiting=1)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{url}/api/predict", files=files_of(exams[0]), timeout=60)
        begun.wait(20)
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "waiting": 1}
        second = httpx.post(f"{url}/api/predict", files=files_of(exams[1]), timeout=60)
        go_on.set()
        assert (second.status_code, second.headers["retry-after"]) == (503, "5")
        assert first.result().status_code == 200
        assert httpx.get(f"{url}/healthz").json()["waiting"] == 0


def test_a_fault_of_the_program_says_nothing_of_a_study_and_does_not_end_it(knee, exams, monkeypatch, caplog):
    words = "Jane Doe's knee"

    def fails(*_: object) -> None:
        raise ValueError(words)

    with serving(knee) as url:
        with monkeypatch.context() as patch:
            patch.setattr(ServedRun, "answer", fails)
            answer = httpx.post(f"{url}/api/predict", files=files_of(exams[0]), timeout=60)
        assert (answer.status_code, answer.json()["reason"]) == (500, "internal")
        assert "Jane" not in answer.text + caplog.text
        assert "ValueError" in caplog.text
        assert httpx.post(f"{url}/api/predict", files=files_of(exams[0]), timeout=60).status_code == 200
    assert kept() == []


def test_a_token_is_asked_for_everywhere_but_for_the_health(knee, exams):
    with serving(knee, token="s3cret") as url, httpx.Client(base_url=url) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/api/model", "/docs", "/openapi.json", "/card", "/static/page.js", "/api/samples"):
            assert client.get(path).status_code == 401, path
        assert client.post("/api/predict", files=files_of(exams[0])).status_code == 401
        assert client.get("/api/model", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/api/model", params={"token": "s3cret"}).status_code == 401  # which would stand in logs of proxies
        assert client.get("/api/model", headers={"authorization": "Bearer s3cret"}).status_code == 200
        page = client.get("/")
        assert page.status_code == 401
        assert "Token" in page.text
        wrong = client.get("/", params={"token": "wrong"})
        assert "That is not the token" in wrong.text
        opened = client.get("/", params={"token": "s3cret"})
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        assert "HttpOnly" in opened.headers["set-cookie"]
        assert client.get("/").status_code == 200
        assert client.get("/api/model").status_code == 200


def test_the_servers_folder_is_private_and_goes_with_it(knee):
    with serving(knee) as url:
        folder = max(Path(tempfile.gettempdir()).glob(f"xraylab-serve-{os.getpid()}-*"), key=lambda path: path.stat().st_ctime_ns)
        assert folder.stat().st_mode & 0o077 == 0
        dead = folder.with_name("xraylab-serve-999999999-left")
        dead.mkdir()
        (dead / "a.npy").write_bytes(b"x")
        assert httpx.get(f"{url}/healthz").status_code == 200
    assert not folder.exists()
    with serving(knee):
        assert not dead.exists()  # of a server that was killed
