"""TFRecords of encoded images and coded labels, without TensorFlow: shards indexed in one pass, then read by place.

A shard is a sequence of records, each its length (uint64), a checksum of that, the data, and a checksum of that (uint32, masked
CRC-32C). The data is a ``tf.train.Example``: features by name, here an encoded image and int64 labels.

Of the package tfrecord only that message is used: its reader checks no checksum and does not tell where a record lies. Of the
other readers, tfd-utils needs an old protobuf and a key in every record, and tfr-reader a compiler.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import logging
import re
import shutil
import struct
import zlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from crc32c import crc32c
from google.protobuf.message import DecodeError

from xraylab.data.findings import finding
from xraylab.data.images.source import ImageSource, decode, header_shape
from xraylab.errors import UserError, refusing
from xraylab.system.files import beside
from xraylab.system.paths import cache_dir
from xraylab.system.progress import Pace

log = logging.getLogger(__name__)

SHARD = re.compile(r"(.+)\.tfrecords?(-\d+-of-\d+)?(\.gz)?", re.I)
CUT = "records that are cut short, with which their shard ends"
LENGTH = "records whose length is damaged, so that the rest of their shard cannot be read"
DAMAGED = "records whose checksum is wrong"


@dataclass
class Records:
    """Index of a shard. Names and codes are of records in which nothing is wrong."""

    names: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # references of a TFRecordSource
    codes: list[list[int]] = field(default_factory=list)  # of all findings, 0 where a record has none
    parsed: int = 0  # with those in whose features something is wrong
    features: set[str] = field(default_factory=set)
    lacking: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # feature -> records
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # kind -> records


class TFRecordSource(ImageSource):
    """Source of one encoded image in a record of a shard a reference: ``<shard>:<number of the record>@<its first byte>``.

    Nothing is held open, so that forked and spawned processes read alike.

    Args:
        root: shards are relative to it.
        image: the feature that is the encoded image.
        bits: see :class:`xraylab.data.images.source.FileSource`.
        plain: where compressed shards lie unpacked; places are counted there.
    """

    root: Path

    def __init__(self, root: Path, image: str, bits: int | None = None, plain: dict[str, Path] | None = None) -> None:
        self.root, self.image, self.bits, self.plain = root, image, bits, dict(plain or {})

    def path(self, image: str) -> Path:
        """The shard, as it was published."""
        return self.root / image.rpartition(":")[0]

    def costly(self, resized: bool) -> bool:
        return True

    def read(self, images: Sequence[str]) -> list[np.ndarray]:
        """A list of uint8 (H,W)."""
        return [decode(np.frombuffer(self._bytes(i), np.uint8), self._named(i), bits=self.bits) for i in images]

    def shape(self, image: str) -> tuple[int, int, int]:
        return header_shape(io.BytesIO(self._bytes(image)), self._named(image))

    def _named(self, image: str) -> str:
        return f"{self.root / image.rpartition('@')[0]}"

    def _bytes(self, image: str) -> bytes:
        shard, _, place = image.rpartition(":")
        path = self.plain.get(shard, self.root / shard)
        with refusing(f"{self._named(image)}: cannot be read: {path}", OSError), open(path, "rb") as file:
            file.seek(int(place.rpartition("@")[2]))
            data, fault = _record(file)
        features = _features(data) if data is not None and not fault else None
        found: Sequence[bytes] = ()
        if features is not None and self.image in features:
            found = features[self.image].bytes_list.value
        if len(found) != 1:
            raise UserError(f"{self._named(image)}: there is no whole record any more: the shard was changed. Start again.")
        return found[0]


def index_shards(
    root: Path, shards: dict[str, str], image: str, labels: Sequence[str], plain: dict[str, Path], known: Sequence[str]
) -> list[Records]:
    """Go once through every shard, without decoding images, checking all checksums.

    Args:
        root: shards are relative to it.
        shards: names that their records get, by shard.
        image: the feature that is the encoded image.
        labels: findings, each a feature of one int64 from 0 to 3, in any spelling.
        plain: where compressed shards lie unpacked.
        known: all findings, asked for or not, of which codes are taken.

    Raises:
        UserError: a shard cannot be read.
    """
    paths = {shard: plain.get(shard, root / shard) for shard in shards}
    sizes = [path.stat().st_size for path in paths.values()]
    pace, found = Pace(sum(sizes)), list[Records]()
    with ThreadPoolExecutor(4) as pool:  # which overlaps reading, not parsing
        for records in pool.map(lambda shard: _index(paths[shard], shard, shards[shard], image, labels, known), shards):
            found.append(records)
            done = sum(sizes[: len(found)])
            if len(found) < len(shards) and (due := pace.due(done)):
                log.info("indexing shards: %.1f of %.1f GB, %.0f s to go", done / 1e9, pace.total / 1e9, due[1])
    return found


def _index(path: Path, shard: str, called: str, image: str, labels: Sequence[str], known: Sequence[str]) -> Records:
    records = Records()
    with refusing(f"{path}: cannot be read", OSError), open(path, "rb") as file:
        for number in itertools.count():
            name, place = f"{called}:{number}", file.tell()
            data, fault = _record(file)
            if fault:
                records.faults[fault].append(name)
            if data is None:
                break
            codes = None if fault else _codes(data, name, image, labels, known, records)
            if codes is not None:
                records.names.append(name)
                records.images.append(f"{shard}:{number}@{place}")
                records.codes.append(codes)
    if not (records.names or records.parsed or records.faults):
        records.faults["shards without a record"].append(shard)
    return records


def _codes(data: bytes, name: str, image: str, labels: Sequence[str], known: Sequence[str], records: Records) -> list[int] | None:
    """A record's codes of all findings; None where something is wrong with it, which is then noted."""
    features = _features(data)
    if features is None:
        records.faults["records that are no tf.train.Example"].append(name)
        return None
    records.parsed += 1
    by_finding = {_finding(key): feature for key, feature in features.items()}
    records.features.update(features)
    given = {label: by_finding[label].int64_list.value for label in known if label in by_finding}
    codes = {label: values[0] for label, values in given.items() if len(values) == 1 and 0 <= values[0] <= 3}
    found: Sequence[bytes] = by_finding[image].bytes_list.value if image in by_finding else ()
    lacking = [image] * (len(found) != 1) + [label for label in labels if label not in given]
    faults: list[tuple[str, str]] = []  # kind, and the record's name in it
    for label in [label for label in labels if label in given and label not in codes]:
        shown = given[label][0] if len(given[label]) == 1 else "not one whole number"
        faults.append(("labels other than 0, 1, 2 and 3", f"{name} ({label}: {shown})"))
    if len(by_finding) < len(features):
        faults.append(("records with two features of one finding", name))
    if len(found) == 1 and not found[0]:
        faults.append((f"records with empty {image}", name))
    for missing in lacking:
        records.lacking[missing].append(name)
    for kind, called in faults:
        records.faults[kind].append(called)
    return None if faults or lacking else [codes.get(label, 0) for label in known]


def _record(file: BinaryIO) -> tuple[bytes | None, str]:
    """The data of the record at which a shard stands, and what is wrong with it, or an empty text.

    None: there is no more, or what is wrong hides all that follows.
    """
    head = file.read(12)
    if not head:
        return None, ""
    if len(head) < 12:
        return None, CUT
    length, checksum = struct.unpack("<QI", head)
    if _masked_crc(head[:8]) != checksum:
        return None, LENGTH
    data, tail = file.read(length), file.read(4)
    if len(tail) < 4:
        return None, CUT
    return data, "" if _masked_crc(data) == struct.unpack("<I", tail)[0] else DAMAGED


def framed(data: bytes) -> bytes:
    """A record of this data, as it lies in a shard."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked_crc(length)) + data + struct.pack("<I", _masked_crc(data))


def _masked_crc(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _features(data: bytes) -> Any:
    """The features of a record by name; None: it is not of that kind."""
    from tfrecord.example_pb2 import Example  # brings torch, so not before it is needed

    try:
        return Example.FromString(data).features.feature
    except DecodeError:
        return None


_finding = cache(finding)


def unpacked(path: Path) -> Path | None:
    """A compressed shard as unpacked to the user's cache, for its records are read in any order; None: it is damaged.

    Raises:
        UserError: it cannot be read, or the cache not be written.
    """
    found = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{found.st_size}\0{found.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_dir() / "unpacked" / f"{path.name[:-3]}_{key}"
    if target.is_file():
        return target
    log.info("unpacking %s to %s", path, target)
    try:
        with beside(target) as partial, gzip.open(path, "rb") as packed, open(partial, "wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be unpacked to {target}: {error.strerror}. Make room, or name another cache by $XRAYLAB_CACHE."
        ) from error
    return target
