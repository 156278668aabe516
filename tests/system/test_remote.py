"""Data at URLs and runs copied to them: in memory, and on a local S3 server."""

from __future__ import annotations

import http.server
import importlib.util
import json
import shutil
import threading
from functools import partial
from pathlib import Path

import fsspec
import hydra
import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from xraylab.config.resume import resumed_config
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.datasets.medmnist import MedMNIST
from xraylab.data.datasets.mimic_tutorial import MimicTutorial
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.synthetic.pictures import write_table
from xraylab.errors import UserError
from xraylab.evaluate import job as evaluate
from xraylab.run import new_run_dir
from xraylab.system.paths import cache_dir, conf_dir
from xraylab.system.remote import RunUpload, fetch_run, is_url, mirror
from xraylab.train import train

SMALL = [
    *TINY, "backbone=cnn", "backbone.layers=2", "backbone.filters=4", "findings=[edema,pleural_effusion]", "image.size=32",
    "max_epochs=1", "batch_size=8", "cache=off", "bootstrap=5", "monitor=valid/loss",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Copies of no other test."""
    monkeypatch.setenv("XRAYLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def memory():
    """The file system of memory://, empty before and after."""
    files_at = fsspec.filesystem("memory")
    files_at.store.clear()
    files_at.pseudo_dirs[:] = [""]
    yield files_at
    files_at.store.clear()


@pytest.fixture
def copied(monkeypatch, memory):
    """The names of files as they are copied from memory."""
    names: list[str] = []
    get = type(memory).get_file

    def counted(self, rpath, lpath, **kwargs):
        names.append(rpath.rpartition("/")[2])
        return get(self, rpath, lpath, **kwargs)

    monkeypatch.setattr(type(memory), "get_file", counted)
    return names


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server on this machine."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'xraylab[s3]'")
    moto = pytest.importorskip("moto.server", reason="moto's server is not installed: pip install 'xraylab[dev]'")
    threaded = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    threaded.start()
    yield "http://{}:{}".format(*threaded.get_host_and_port())
    threaded.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """An empty bucket; credentials and address are in the environment, as people have them."""
    for name, value in (
        ("AWS_ENDPOINT_URL", server), ("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "none"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    name = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    files_at = fsspec.filesystem("s3", skip_instance_cache=True)
    files_at.mkdir(name)
    return files_at, f"s3://{name}"


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))  # of this machine alone
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def stored(memory, place: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{place}/"): memory.cat_file(name) for name in memory.find(place)}


def test_a_url_is_told_from_a_path():
    assert all(map(is_url, ("s3://b/x", "gs://b", "https://h/x", "memory://x")))
    assert not any(map(is_url, ("/data/x", "data", "C:/x", "a//b", None, Path("s3://b"))))


def test_a_folder_is_copied_once_and_then_only_what_changed(memory, copied):
    files = {"a.csv": b"1", "sub/b.npy": b"22", "sub/deep/c.png": b"333"}
    memory.pipe({f"/data/set/{name}": data for name, data in files.items()})
    found = mirror("memory://data/set/")
    assert found.name == "set"
    assert contents(found) == files
    assert sorted(copied) == ["a.csv", "b.npy", "c.png"]
    copied.clear()
    assert mirror("memory://data/set") == found
    assert not copied
    memory.pipe_file("/data/set/sub/b.npy", b"44")  # as long as before
    memory.rm_file("/data/set/sub/deep/c.png")
    (found / "a.csv").write_bytes(b"damaged")
    mirror("memory://data/set")
    assert contents(found) == {"a.csv": b"1", "sub/b.npy": b"44"}
    assert sorted(copied) == ["a.csv", "b.npy"]
    assert not (found / "sub" / "deep").exists()
    memory.pipe_file("/other/set/x", b"")
    assert mirror("memory://other/set") != found


def test_what_was_copied_before_a_failure_is_kept(memory, copied, monkeypatch):
    memory.pipe({f"/data/set/{n}": b"x" * n for n in range(1, 6)})
    working = type(memory).get_file

    def failing(self, rpath, lpath, **kwargs):
        if rpath.endswith("3"):
            Path(lpath).write_bytes(b"x")
            raise ConnectionError("the line is down")
        return working(self, rpath, lpath, **kwargs)

    monkeypatch.setattr(type(memory), "get_file", failing)
    monkeypatch.setattr("xraylab.system.remote.THREADS", 1)
    with pytest.raises(UserError) as failed:
        mirror("memory://data/set")
    assert str(failed.value).startswith("dataset.root=memory://data/set: it cannot be reached.")
    assert "(the line is down) What is copied so far is kept." in str(failed.value)
    monkeypatch.setattr(type(memory), "get_file", working)
    copied.clear()
    found = mirror("memory://data/set")
    assert sorted(copied) == ["3", "4", "5"]
    assert contents(found) == {str(n): b"x" * n for n in range(1, 6)}


def test_a_disk_that_is_too_small_is_said_before_anything_is_copied(memory, copied, monkeypatch):
    memory.pipe_file("/data/set/a", b"x" * 2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1_000_000))
    with pytest.raises(
        UserError, match=r"dataset\.root=memory://data/set: 2\.0 MB have to be copied to .*, and 1\.0 MB are free"
    ):
        mirror("memory://data/set")
    assert not copied


def test_readers_find_their_data_at_a_url(memory, mrnet_root, pneumonia_file, tmp_path):
    """A published folder, its parent, one file, and a table with its pictures: nothing in a reader knows of it."""
    memory.put(str(mrnet_root), "/data/MRNet-v1.0", recursive=True)
    memory.put_file(str(pneumonia_file), "/data/one/pneumoniamnist.npz")
    table = write_table(tmp_path / "table", train=8, test=8)
    memory.put(str(table), "/data/own", recursive=True)

    def read(reader):
        path = reader.find()
        assert cache_dir() in path.parents
        return reader.read(path)

    expected = MRNet(str(mrnet_root)).read(mrnet_root)
    for url in ("memory://data/MRNet-v1.0", "memory://data"):
        found = read(MRNet(url))
        pd.testing.assert_frame_equal(found.frame, expected.frame)
        images = found.frame["images"][3]
        assert np.array_equal(found.source.read(images), expected.source.read(images))
    assert len(read(MedMNIST("memory://data/one/pneumoniamnist.npz", "pneumoniamnist")).frame) == 300
    own = read(CsvTable("memory://data/own/table.csv"))
    assert own.source.read(own.frame["images"][0])
    with pytest.raises(UserError, match=r"(?s)dataset\.root=memory://data/own: MRNet-v1\.0 is not there.*table\.csv"):
        MRNet("memory://data/own").find()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("foo://bucket/x", "Protocol not known: foo. Known are s3, gs, https"),
        ("memory://data/nothing", "there is no such bucket, folder or file"),
        pytest.param(
            "gs://bucket/x", r"gs:// needs a package that is not installed: pip install 'xraylab\[gcs\]'",
            marks=pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed"),
        ),
    ],
)  # fmt: skip
def test_a_wrong_url_is_refused_in_words(memory, url, said):
    with pytest.raises(UserError, match=f"dataset.root={url}: {said}"):
        MRNet(url).find()
    with pytest.raises(UserError, match=f"{url}.*{said}"):
        fetch_run(url)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("Forbidden"), r"no access\. Credentials are taken from the environment.*\(Forbidden\)"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate"), "no access"),
        (TimeoutError("timed out"), r"it cannot be reached.*try again when the network is back\. \(timed out\)"),
    ],
)
def test_faults_of_the_other_side_are_told_apart(memory, monkeypatch, error, said):
    memory.pipe_file("/data/set/a", b"x")
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=said) as refused:
        mirror("memory://data/set")
    assert "copied before" not in str(refused.value)


def test_without_the_network_the_copy_of_before_is_named(memory, monkeypatch):
    memory.pipe_file("/data/set/a", b"x")
    found = mirror("memory://data/set")
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("down")))
    with pytest.raises(UserError, match=f"copied before lies in {found}; dataset.root={found} reads it"):
        mirror("memory://data/set")


def test_a_mistake_in_a_url_ends_the_command_with_2(command):
    done = command("check", "dataset=mimic_tutorial", "dataset.root=foo://bucket/x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: dataset.root=foo://bucket/x: Protocol not known: foo")


def test_a_web_server_that_lists_its_folders_is_read(mrnet_root):
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'fsspec[http]'")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(mrnet_root.parent))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        found = mirror(f"http://127.0.0.1:{web.server_port}/{mrnet_root.name}")
        web.shutdown()
    assert contents(found) == contents(mrnet_root)


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_is_copied_after_every_epoch_and_resumed_from_there(
    memory, tutorial_root, train_here, tmp_path, monkeypatch, caplog
):  # fmt: skip
    epochs = []
    sync = RunUpload.sync

    def watched(self):
        whole = sync(self)
        there = stored(memory, "/runs/chest/one")
        epochs.append((there.get("history.csv", b"").count(b"\n") - 1, there.get("checkpoints/last.ckpt")))
        assert there["checkpoints/last.ckpt"] == (self.directory / "checkpoints" / "last.ckpt").read_bytes()
        return whole

    monkeypatch.setattr(RunUpload, "sync", watched)
    memory.put(str(tutorial_root), "/data/tutorial", recursive=True)
    url = "memory://runs/chest/one"
    overrides = ["dataset=mimic_tutorial", "dataset.root=memory://data/tutorial", "upload=memory://runs", *SMALL]
    directory = train_here(tmp_path / "chest" / "one", *overrides, "max_epochs=2")
    assert [n for n, _ in epochs] == [1, 2, 2]
    assert epochs[0][1] != epochs[1][1] == epochs[2][1]
    assert stored(memory, "/runs/chest/one") == contents(directory)
    config = OmegaConf.load(directory / "config.yaml")
    assert config.dataset.root == "memory://data/tutorial", "where the data is, and not where its copy is"
    with pytest.raises(UserError, match=rf"upload=memory://runs: {url} holds a run already"):
        train_here(tmp_path / "elsewhere" / "chest" / "one", *overrides)

    monkeypatch.chdir(tmp_path)
    resumed = resumed_config(url, [f"resume={url}", "max_epochs=3"])
    assert resumed.resume == "outputs/chest/one/checkpoints/last.ckpt"
    assert contents(tmp_path / "outputs/chest/one") == contents(directory)
    train(resumed, Path("outputs/chest/one"), ["max_epochs=3"])
    assert len(pd.read_csv("outputs/chest/one/history.csv")) == 3
    assert stored(memory, "/runs/chest/one") == contents(Path("outputs/chest/one"))
    here = contents(Path("outputs/chest/one"))
    memory.pipe_file("/runs/chest/one/config.yaml", b"changed")
    assert fetch_run(url) == Path("outputs/chest/one")
    assert contents(Path("outputs/chest/one")) == here, "what is as far is left alone"
    memory.pipe_file("/runs/chest/one/history.csv", here["history.csv"] + b"3\n")
    fetch_run(url)
    assert (tmp_path / "outputs/chest/one/config.yaml").read_bytes() == b"changed", "what is behind is copied anew"


def test_an_upload_that_fails_never_stops_training(memory, tutorial_root, train_here, tmp_path, monkeypatch, caplog):
    put, calls = type(memory).put_file, []

    def failing(self, lpath, rpath, **kwargs):
        calls.append(rpath)
        if failing.broken and not rpath.endswith(".writable"):
            raise ConnectionError("the line is down")
        return put(self, lpath, rpath, **kwargs)

    failing.broken = True
    monkeypatch.setattr(type(memory), "put_file", failing)
    directory = train_here(
        tmp_path / "chest" / "two",
        "dataset=mimic_tutorial",
        f"dataset.root={tutorial_root}",
        "upload=memory://runs",
        *SMALL,
        report=True,
    )
    assert json.loads((directory / "environment.json").read_text())["finished"]
    warnings = [r.getMessage() for r in caplog.records if "memory://runs" in r.getMessage() and r.levelname == "WARNING"]
    assert warnings[:-1] == ["upload to memory://runs/chest/two failed, and is tried again later: the line is down"] * 2
    assert f"{len(contents(directory))} files are not in memory://runs/chest/two: MODEL_CARD.md, checkpoints" in warnings[-1]
    assert f"They are in {directory}." in warnings[-1]
    failing.broken = False
    upload = RunUpload("memory://runs", directory, fresh=True)
    assert upload.sync()
    (directory / "checkpoints" / "best.ckpt").unlink()
    calls.clear()
    assert upload.sync()
    assert not calls
    assert stored(memory, "/runs/chest/two") == contents(directory), "what is gone here goes there"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("foo://bucket", "Protocol not known: foo"),
        ("https://example.org/runs", "web servers are read only"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_data_is_read(train_here, tmp_path, monkeypatch, url, said):
    monkeypatch.setattr("xraylab.data.datasets.mrnet.MRNet.read", lambda *_: pytest.fail("data was read"))
    with pytest.raises(UserError, match=f"upload={url}: {said}"):
        train_here(tmp_path / "run", f"upload={url}")
    assert not list((tmp_path / "run").iterdir())


# ---- an S3 server ---------------------------------------------------------------------------------------------------


def test_shards_and_tables_are_read_from_s3(bucket, tutorial_root, tmp_path):
    files_at, url = bucket
    files_at.put(str(tutorial_root), f"{url}/mimic-cxr-tutorial", recursive=True)
    expected = MimicTutorial(str(tutorial_root)).read(tutorial_root)
    for root in (f"{url}/mimic-cxr-tutorial", url):
        reader = MimicTutorial(root)
        found = reader.read(reader.find())
        pd.testing.assert_frame_equal(found.frame, expected.frame)
        assert found.synthetic
    images = found.frame["images"][5]
    assert np.array_equal(found.source.read(images)[0], expected.source.read(images)[0])
    table = write_table(tmp_path / "table", train=8, test=8)
    files_at.put(str(table), f"{url}/own", recursive=True)
    reader = CsvTable(f"{url}/own/table.csv")
    assert len(reader.read(reader.find()).frame) == 16
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x: there is no such bucket, folder or file"):
        MimicTutorial("s3://no-such-bucket/x").find()


@pytest.mark.slow
def test_a_run_goes_to_s3_and_is_resumed_and_evaluated_from_there(
    bucket, tutorial_root, train_here, command, tmp_path, monkeypatch
):  # fmt: skip
    files_at, url = bucket
    files_at.put(str(tutorial_root), f"{url}/tutorial", recursive=True)
    with pytest.raises(UserError, match=r"upload=s3://no-such-bucket: there is no such bucket"):
        train_here(tmp_path / "refused", "upload=s3://no-such-bucket")
    overrides = ["dataset=mimic_tutorial", f"dataset.root={url}/tutorial", f"upload={url}/runs", *SMALL]
    directory = train_here(tmp_path / "chest" / "one", *overrides)
    place = f"{url}/runs/chest/one"
    names = {name.partition("/runs/chest/one/")[2] for name in files_at.find(place)}
    assert names == set(contents(directory)) >= {"history.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert files_at.cat_file(f"{place}/checkpoints/last.ckpt") == (directory / "checkpoints" / "last.ckpt").read_bytes()

    done = command("train", f"resume={url}/runs/chest/two")  # as typed: the address survives the command line
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {url}/runs/chest/two: there is no such bucket, folder or file.")
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "second")
    here = Path(new_run_dir("anything", place)).absolute()
    assert here == tmp_path / "second" / "outputs" / "chest" / "one"
    train(resumed_config(place, [f"resume={place}", "max_epochs=2"]), here, ["max_epochs=2"])
    assert len(pd.read_csv(here / "history.csv")) == 2
    assert pd.read_csv(here / "history.csv").iloc[0].equals(pd.read_csv(directory / "history.csv").iloc[0])
    files_at.invalidate_cache()
    assert files_at.cat_file(f"{place}/history.csv") == (here / "history.csv").read_bytes()

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("evaluate", [f"run={place}"])
    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    evaluate(cfg)
    evaluation = json.loads(Path("outputs/chest/one/evaluation.json").read_text())
    assert evaluation["splits"] == json.loads((here / "evaluation.json").read_text())["splits"]
