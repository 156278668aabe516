"""Detection of damage inside an image, which decoders get over: they make up what they cannot read, and few hear them say so.

libjpeg and libpng speak on C's ``stderr``, which names no file and is one for all threads. :func:`with_stderr` listens to it.
What is inside a TIFF is decoded without a word; :func:`damage` has its strips decoded by who is stricter.
"""

from __future__ import annotations

import ctypes
import io
import os
import platform
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

T = TypeVar("T")
#: of libjpeg's warnings those by which the picture's data is damaged; bytes too many before a segment of metadata are not
DAMAGED = re.compile(
    r"Corrupt JPEG data(?!: \d+ extraneous bytes before marker 0x(?:e.|fe))|Premature end|Inconsistent progression"
)
LZW, JPEG, DEFLATE = 5, 7, (8, 32946)  # compressions of TIFF
COMPRESSION, JPEG_TABLES, STRIPS, TILES = 259, 347, (273, 279), (324, 325)  # its tags; of the last two, offsets and bytes


def with_stderr(decode: Callable[[], T]) -> tuple[T, str]:
    """What a call returns, and what C libraries said on ``stderr`` meanwhile; nothing is heard where C's library is not glibc.

    Calls of several threads run side by side. Where something is heard, the call is made again while the others wait, so that
    the words are surely its own.
    """
    if not _ear.opened():
        return decode(), ""
    with _ear.listening(alone=False) as words:
        result = decode()
        said = words()
    if said:
        with _ear.listening(alone=True) as words:
            result, said = decode(), words()
    return result, said.strip()


def damage(data: bytes, words: str) -> str | None:
    """Why a picture that was decoded is not what was encoded, as far as its decoder or its checksums tell; None if they do not.

    Args:
        data: the encoded file.
        words: that :func:`with_stderr` heard while it was decoded.
    """
    if found := next((line for line in words.splitlines() if DAMAGED.search(line)), None):
        return f"damaged inside ({found.strip().replace(': ', ', ')})"
    if data[:4] in (b"II*\0", b"MM\0*") and (why := _tiff_damage(data)):
        return f"damaged inside ({why.replace(': ', ', ')})"
    return None


def _tiff_damage(data: bytes) -> str | None:
    try:
        opened = Image.open(io.BytesIO(data), formats=["TIFF"])
        tags: dict[int, object] = dict(opened.tag_v2)  # type: ignore[attr-defined]
        compression = tags.get(COMPRESSION)
        places = next(
            ([tags[offset], tags[size]] for offset, size in (STRIPS, TILES) if offset in tags and size in tags), [(), ()]
        )
        offsets, sizes = ((n,) if isinstance(n, int) else tuple(n) for n in places)  # type: ignore[arg-type]
    except Exception:  # of a kind or with metadata that PIL does not know, which is no damage
        return None
    if compression == LZW:
        try:
            opened.load()
        except (OSError, ValueError) as error:
            return str(error)
    tables = tags.get(JPEG_TABLES)
    for number, (start, size) in enumerate(zip(offsets, sizes, strict=False)) if compression in (JPEG, *DEFLATE) else ():
        strip = data[start : start + size]
        if compression == JPEG:
            whole = np.frombuffer(tables[:-2] + strip[2:] if isinstance(tables, bytes) else strip, np.uint8)
            words = with_stderr(lambda whole=whole: cv2.imdecode(whole, cv2.IMREAD_GRAYSCALE))[1]  # type: ignore[misc]
            if DAMAGED.search(words):
                return f"its strip {number}: {words}"
            continue
        try:
            if not _inflates(strip):
                return f"its strip {number} ends too early"
        except zlib.error as error:
            return f"its strip {number}: {error}"
    return None


def _inflates(data: bytes) -> bool:
    """Whether a stream of zlib has an end, whose checksum is that of the data. Raises zlib.error: it has not, or is none."""
    stream = zlib.decompressobj()
    while data and not stream.eof:
        stream.decompress(data, 1 << 20)
        data = stream.unconsumed_tail
    return stream.eof


class _Ear:
    """C's ``stderr``, which is a file in memory while something is decoded."""

    def __init__(self) -> None:
        self._turn, self._decoding, self._claims = threading.Condition(), 0, 0
        self._fd: int | None = None
        self._stderr: ctypes.c_void_p | None = None
        self._ours: int | None = None
        self._theirs: int | None = None

    def opened(self) -> bool:
        """Whether it can be listened to."""
        if self._fd is None:
            with self._turn:
                if self._fd is None:
                    self._fd = self._open() if platform.libc_ver()[0] == "glibc" else -1
        return self._fd >= 0

    def _open(self) -> int:
        libc = ctypes.CDLL(None)
        libc.fdopen.restype, libc.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
        libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
        try:
            fd = os.memfd_create("stderr")
            self._stderr = ctypes.c_void_p.in_dll(libc, "stderr")
            self._ours = libc.fdopen(fd, b"a")
        except (OSError, ValueError):
            return -1
        libc.setvbuf(self._ours, None, 2, 0)  # _IONBF: each message at once
        return fd if self._ours else -1

    @contextmanager
    def listening(self, alone: bool) -> Iterator[Callable[[], str]]:
        """Listen, alone or beside others; gives a function that tells what was said since."""
        assert self._fd is not None
        assert self._stderr is not None
        with self._turn:
            self._claims += alone
            self._turn.wait_for(lambda: not (self._decoding if alone else self._claims))
            if not self._decoding:
                self._theirs, self._stderr.value = self._stderr.value, self._ours
            self._decoding += 1
        fd, start = self._fd, os.fstat(self._fd).st_size
        try:
            yield lambda: os.pread(fd, os.fstat(fd).st_size - start, start).decode("utf-8", "replace")
        finally:
            with self._turn:
                self._decoding -= 1
                self._claims -= alone
                if not self._decoding:
                    self._stderr.value = self._theirs
                    os.ftruncate(self._fd, 0)
                self._turn.notify_all()

    def after_fork(self) -> None:
        """A forked process has an ear of its own."""
        if self._decoding and self._stderr is not None:
            self._stderr.value = self._theirs
        self.__init__()  # type: ignore[misc]


_ear = _Ear()
os.register_at_fork(after_in_child=_ear.after_fork)
