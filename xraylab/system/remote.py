"""Data and runs at URLs (``s3://``, ``gs://``, ``https://`` and whatever else fsspec reads): copied to this machine, and from it.

Credentials are those that fsspec's packages find themselves, in the environment or in their own files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from tqdm import tqdm

from xraylab.errors import Stopped, UserError, listed
from xraylab.system.command_line import shown
from xraylab.system.files import locked, replaced
from xraylab.system.paths import cache_dir
from xraylab.system.progress import Progress, data_size

log = logging.getLogger(__name__)

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> what to install
STAMPS = ("ETag", "etag", "md5Hash", "Content-MD5", "mtime", "LastModified", "Last-Modified", "updated", "created")
MARKS = ("history.csv", "evaluation.json")  # tell how far a run is, so they are copied last
THREADS = 16
for _name in ("botocore", "aiobotocore"):  # they say at every turn where they found credentials
    logging.getLogger(_name).setLevel(logging.WARNING)


class _File(NamedTuple):
    """A file at a URL."""

    path: str  # as its file system knows it
    size: int | None
    stamp: str  # changes when the file does; empty: there is none


def is_url(text: object) -> bool:
    """Whether a text names a place as ``protocol://...``."""
    return isinstance(text, str) and re.match(r"[A-Za-z][\w+.-]*://", text) is not None


def mirror(url: str) -> Path:
    """Copy what lies at a URL to the user's cache, the next time only what changed; returns where it is.

    A CSV is copied with the folder that it lies in, for its images start there.

    Args:
        url: of a folder or a file; the copy has the name of its last part.

    Raises:
        UserError: it cannot be read, there is nothing, or the disk is too small.
        Stopped: interrupted; what is copied is kept.
    """
    url = url.rstrip("/")
    top, inside = (url.rpartition("/")[::2]) if url.lower().endswith(".csv") else (url, "")
    key = f"dataset.root={url}"
    files_at, place = _filesystem(top, key)
    if isinstance(files_at, LocalFileSystem):
        return Path(place) / inside
    name, digest = unquote(top.rpartition("/")[2]) or "data", hashlib.sha256(top.encode()).hexdigest()[:12]
    folder = cache_dir() / "remote" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', top)[:80]}-{digest}"
    target = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", f"copies {url}"):
        index = _Index(folder / "index.jsonl")
        try:
            files = _listing(files_at, place, key)
        except UserError as error:
            there = f"\nWhat was copied before lies in {target}; {shown('dataset.root', target)} reads it."
            kept = there if target.exists() else ""
            raise UserError(f"{error}{kept}") from error
        paths = {name: target / name if name else target for name in files}
        missing = {name: file for name, file in files.items() if not index.holds(name, file, paths[name])}
        _drop({path for path in target.rglob("*") if path.is_file()} - set(paths.values()), target)
        total, needed = (sum(f.size or 0 for f in part.values()) for part in (files, missing))
        log.info("%s: %s files, %s; %s to copy, %s, to %s",
                 url, f"{len(files):,}", data_size(total), f"{len(missing):,}", data_size(needed), target)  # fmt: skip
        _require_space(needed, folder, key)
        for name in _fetched(files_at, missing, paths, key):
            index.add(name, files[name], paths[name])
    return target / inside


def fetch_run(url: str) -> Path:
    """Copy the run at a URL to ``outputs/<name>/<date_time>`` unless what is there is as far; returns where it is.

    Raises:
        UserError: it cannot be read, or is no run.
        Stopped: interrupted.
    """
    url = url.rstrip("/")
    files_at, place = _filesystem(url, url)
    if isinstance(files_at, LocalFileSystem):
        return Path(place)
    files = _listing(files_at, place, url)
    if "config.yaml" not in files:
        raise UserError(f"{url} is not a run directory: it has no config.yaml.")
    directory = Path("outputs", *url.split("://", 1)[1].split("/")[-2:])
    if (directory / "config.yaml").is_file():
        with _in_words(url):
            there = {name: files_at.cat_file(files[name].path) for name in MARKS if name in files}
        here = {name: (directory / name).read_bytes() for name in MARKS if (directory / name).is_file()}
        if _progress(here) >= _progress(there):
            log.info("%s is as far as %s, or farther, and is used", directory, url)
            return directory
    log.info("copying %s to %s, %s", url, directory, data_size(sum(file.size or 0 for file in files.values())))
    _require_space(sum(file.size or 0 for file in files.values()), Path.cwd(), url)
    paths = {name: directory / name for name in files}
    for part in (set(files) - set(MARKS), set(files) & set(MARKS)):
        list(_fetched(files_at, {name: files[name] for name in sorted(part)}, paths, url))
    return directory


class RunUpload:
    """Upload of a run directory to ``<url>/<name>/<date_time>``, its last two parts, as it grows.

    Args:
        url: of the folder for all runs.
        directory: of the run.
        fresh: a new run, which no other may have been copied to the same place before.

    Raises:
        UserError: the place cannot be written, or holds a run.
    """

    def __init__(self, url: str, directory: Path, fresh: bool) -> None:
        self.directory = directory.resolve()
        self.url = "/".join([url.rstrip("/"), *self.directory.parts[-2:]])
        key = f"upload={url}"
        self.files_at, self.place = _filesystem(self.url, key)
        self.sent: dict[str, tuple[int, int]] = {}
        if url.startswith(("http://", "https://")):
            raise UserError(f"{key}: web servers are read only. Name a bucket, as in upload=s3://bucket/runs.")
        with _in_words(key):
            if fresh and self.files_at.exists(f"{self.place}/config.yaml"):
                raise UserError(f"{key}: {self.url} holds a run already. Name another place, or another hydra.run.dir.")
            with tempfile.NamedTemporaryFile() as probe:
                self.files_at.put_file(probe.name, f"{self.place}/.writable")
            self.files_at.rm_file(f"{self.place}/.writable")

    def sync(self) -> bool:
        """Copy what changed; whether nothing is left. What fails is said, and is tried again the next time."""
        there = self._files()
        try:
            for name in sorted(there, key=lambda name: name in MARKS):
                if self.sent.get(name) != there[name]:
                    self.files_at.put_file(str(self.directory / name), f"{self.place}/{name}")
                    self.sent[name] = there[name]
            for name in set(self.sent) - set(there):
                self.files_at.rm_file(f"{self.place}/{name}")
                del self.sent[name]
        except Exception as error:  # of many kinds, and none of them is worth a run
            log.warning("upload to %s failed, and is tried again later: %s", self.url, _reason(error))
            return False
        return True

    def finish(self) -> None:
        """The last copy, if the run has begun; says what could not be copied."""
        if not any((self.directory / place / "config.yaml").is_file() for place in ("", "first")):
            return
        if self.sync():
            log.info("copied to %s", self.url)
            return
        left = sorted(name for name, stamp in self._files().items() if self.sent.get(name) != stamp)
        log.warning("%d files are not in %s: %s. They are in %s.", len(left), self.url, listed(left), self.directory)

    def _files(self) -> dict[str, tuple[int, int]]:
        """Bytes and time of change of every file but hidden ones, which are half-written or of no use elsewhere."""
        found = {}
        for folder, folders, names in os.walk(self.directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if not name.startswith(".") and not name.endswith(".partial"):
                    with suppress(FileNotFoundError):  # gone meanwhile
                        stat = path.stat()
                        found[path.relative_to(self.directory).as_posix()] = (stat.st_size, stat.st_mtime_ns)
        return found


class _Index:
    """Record of which files of a copy are whole: one line of JSON each, the last of a name counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, list[Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with suppress(ValueError):  # one whose writing was cut short
                name, *entry = json.loads(line)
                self.lines[name] = entry

    def holds(self, name: str, file: _File, path: Path) -> bool:
        """Whether the copy at ``path`` is of this file as it is now."""
        try:
            return self.lines.get(name) == [file.size, file.stamp, path.stat().st_size]
        except OSError:
            return False

    def add(self, name: str, file: _File, path: Path) -> None:
        """Note that the copy is whole."""
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write("\n" + json.dumps([name, file.size, file.stamp, path.stat().st_size]))


class _Copying(Callback):
    """What fsspec tells of the bytes that it copied."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def relative_update(self, inc: int = 1) -> None:
        self.progress.add(inc)


def _say(done: int, total: int, rate: float, left: float) -> None:
    words = map(data_size, (done, total, rate))
    log.info("copying: %s of %s, %s a second, %s to go", *words, tqdm.format_interval(left))


def _fetched(files_at: Any, files: Mapping[str, _File], paths: Mapping[str, Path], key: str) -> Iterator[str]:
    """Copy files, several at a time, each to a temporary name first; yields the names of those that are whole."""
    total = sum(file.size or 0 for file in files.values())
    progress = Progress(total, _say, desc="copying", unit="B", unit_scale=True)

    def fetch(name: str) -> str:
        file = files[name]
        with replaced(paths[name]) as partial:
            files_at.get_file(file.path, str(partial), callback=_Copying(progress))
            if file.size is not None and (found := partial.stat().st_size) != file.size:
                raise UserError(f"{key}: {name or file.path} has {found} bytes, not {file.size}: it changed. Start again.")
        return name

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(fetch, name) for name in files]
        try:
            with _in_words(key, "What is copied so far is kept."):
                for future in as_completed(futures):
                    yield future.result()
        except KeyboardInterrupt:
            raise Stopped("stopped; what is copied so far is kept, and the same command goes on from there.") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            progress.bar.close()


def _filesystem(url: str, key: str) -> tuple[Any, str]:
    """The file system of a URL, and its place there.

    Raises:
        UserError: there is no such protocol, or its package is not installed.
    """
    protocol = url.split("://", 1)[0].lower() if is_url(url) else "file"
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        # not one of an earlier call: the environment, the credentials and the listing are those of now
        files_at, place = url_to_fs(url, skip_instance_cache=True, **options)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        how = f"pip install 'xraylab[{extra}]'" if extra else str(error)
        raise UserError(f"{key}: {protocol}:// needs a package that is not installed: {how}") from error
    except ValueError as error:
        raise UserError(f"{key}: {_reason(error)}. Known are s3, gs, https, and all others of fsspec.") from error
    return files_at, place.rstrip("/")


def _listing(files_at: Any, place: str, key: str) -> dict[str, _File]:
    """Every file under a place, by its path from there; a place that is a file by the empty text.

    Raises:
        UserError: it cannot be listed, or there is nothing.
    """
    web = place.startswith(("http://", "https://"))
    with _in_words(key):
        found = files_at.find(place, detail=True)
        if not found:
            info = files_at.info(place)
            found = {place: info} if info["type"] == "file" else {}
        found = {path: info for path, info in found.items() if not (web and re.search("[?#]", path))}  # links that sort a page
        unsized = [path for path, info in found.items() if info.get("size") is None and not path.endswith("/")]
        with ThreadPoolExecutor(THREADS) as pool:
            found |= dict(zip(unsized, pool.map(files_at.info, unsized), strict=True))
        files = {}
        for path, info in found.items():
            name = path.removeprefix(place).lstrip("/")
            if path.endswith("/"):  # stands for a folder
                continue
            stamp = next((str(info[s]) for s in STAMPS if info.get(s)), "")
            name = unquote(name) if web else name
            if ".." in name.split("/"):
                raise UserError(f"{key}: {path} leads out of it.")
            files[name] = _File(path, info.get("size"), stamp)
    if not files:
        raise UserError(f"{key}: there is nothing there, no file and no folder. Look for a mistake in the URL.")
    return files


@contextmanager
def _in_words(key: str, more: str = "") -> Iterator[None]:
    """A file system's errors for the user. They come from many libraries, so they are told by names and texts."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = _reason(error)
        words = " ".join([*(kind.__name__ for kind in type(error).__mro__), text])
        if isinstance(error, PermissionError) or re.search("(?i)credential|forbidden|access ?denied|unauthori[sz]ed", words):
            what = "no access. Credentials are taken from the environment, as the package for this protocol finds them"
        elif isinstance(error, OSError) and error.errno == 28:
            what = "the disk is full. Make room, or name another cache by $XRAYLAB_CACHE"
        elif isinstance(error, FileNotFoundError):
            what = "there is no such bucket, folder or file"
        elif isinstance(error, NotImplementedError):
            what = "that cannot be done there"
        else:
            what = "it cannot be reached. Look for a mistake in the URL, or try again when the network is back"
        raise UserError(f"{key}: {what}. ({text}){f' {more}' if more else ''}") from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _progress(marks: Mapping[str, bytes]) -> tuple[int, bool]:
    """How far a run is: lines of its history, and whether it was evaluated."""
    return marks.get("history.csv", b"").count(b"\n"), "evaluation.json" in marks


def _drop(files: set[Path], top: Path) -> None:
    """Delete files that are no longer at the URL, and folders that they leave empty."""
    for path in files:
        path.unlink()
        for folder in path.parents:
            if folder == top or next(folder.iterdir(), None) is not None:
                break
            folder.rmdir()


def _require_space(needed: int, folder: Path, key: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{key}: {data_size(needed)} have to be copied to {folder}, and {data_size(free)} are free there. "
            "Make room, or name another cache by $XRAYLAB_CACHE."
        )


def local(root: str) -> Path:
    """The path that ``root`` names; what lies at a URL is copied to the cache, see :func:`mirror`."""
    return mirror(root) if is_url(root) else Path(root).expanduser()
