"""Decoders in a process of their own: what ends one costs a file, and none outlives its parent."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from xraylab.data.images import decoder_process as module
from xraylab.data.images.decoder_process import apart
from xraylab.data.images.dicom import dicom_shape, read_dicom
from xraylab.errors import UserError

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "experiments" / "fuzz" / "images.py"


@pytest.fixture(scope="module")
def fuzz():
    """The script that writes and damages files."""
    pytest.importorskip("gdcm")
    spec = importlib.util.spec_from_file_location("fuzz_images", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def gone(pid: int) -> bool:
    """Whether a process is at its end within ten seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_hundreds_of_damaged_files_are_read_or_named():
    pytest.importorskip("gdcm")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--files", "15", "--seed", "12"], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    files, read, named, *_ = map(int, done.stdout.splitlines()[-1].split()[1:])
    assert files == read + named == 300
    assert min(read, named) > 50


def test_what_ends_a_decoder_costs_one_call(monkeypatch):
    first = apart("file", 0, os.getpid)
    assert apart("file", 0, os.getpid) == first != os.getpid(), "one child serves many calls"
    with pytest.raises(UserError, match=r"^sick\.dcm: damaged: its decoder ended on it \(SIGABRT\)"):
        apart("sick.dcm", 0, os.abort)
    assert apart("file", 0, os.getpid) != first
    monkeypatch.setattr(module, "SECONDS", 0.3)
    with pytest.raises(UserError, match=r"^slow\.dcm: damaged: its decoder was not done after 0 s"):
        apart("slow.dcm", 0, time.sleep, 60)
    with pytest.raises(MemoryError):
        apart("large.dcm", 0, np.ones, 2**40)
    with pytest.raises(ValueError, match="TypeError"):
        apart("file", 0, int, None)
    with pytest.raises(UserError, match="killed, as if memory was too small") as killed:
        apart("file", 0, os.kill, apart("file", 0, os.getpid), signal.SIGKILL)
    assert isinstance(killed.value.__cause__, OSError), "of the system, so that a cache tries again"


def test_threads_and_forks_have_children_of_their_own():
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: apart("file", 0, time.sleep, 0.5), range(3)))
    before = apart("file", 0, os.getpid)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=lambda: answers.put(apart("file", 0, os.getpid)), daemon=True)
    process.start()
    of_fork = answers.get()
    process.join()
    assert of_fork != before
    assert gone(of_fork), "it ends with the fork"
    assert apart("file", 0, os.getpid) == before, "which leaves its parent's alone"


def test_no_child_outlives_a_parent_that_is_killed_nor_imports_torch():
    code = (
        "import os, sys, time; from xraylab.data.images.decoder_process import apart; "
        "from xraylab.data.images.dicom_pixels import decode_frame\n"
        "try: apart('file', 0, decode_frame, '1.2.840.10008.1.2.4.70', b'', {}, True)\n"
        "except ValueError: pass\n"
        "print(apart('file', 0, os.getpid), apart('file', 0, eval, '\"torch\" in __import__(\"sys\").modules'), flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    child, torch = parent.stdout.readline().split()
    parent.kill()
    parent.communicate()
    assert torch == "False"
    assert gone(int(child))


@pytest.mark.parametrize(
    ("kind", "keyword", "value", "said"),
    [
        ("jpeg_ls_dcm", "Rows", 49, "48x64 with 1 samples of 8 bits, where its header says 49x64"),
        ("jpeg_lossless_dcm", "Columns", 32, "48x64 with 1 samples of 8 bits, where its header says 48x32"),
        ("jpeg_2000_dcm", "Rows", 47, "48x64 with 1 samples of 8 bits, where its header says 47x64"),
        ("jpeg_dcm", "NumberOfFrames", 2, "holds 1 frames, where its header says 2"),
        ("rle_dcm", "Rows", 24, "its compressed pixels are 3072, where its header says 1536"),
        ("explicit_dcm", "Columns", 63, "3072 bytes, where its header says 3024"),
        ("explicit_dcm", "Rows", 49, "cut short: 3072 bytes of 3136"),
        ("explicit_dcm", "SamplesPerPixel", 3, "3 samples a pixel, where MONOCHROME2 has 1"),
        ("jpeg_ls_dcm", "Rows", 60000, "60000x60000|60000x64"),
        (
            "jpeg_ls_dcm",
            "BitsStored",
            7,
            r"pyjpegls does|its values reach .*, where its header says 7 bits",
        ),
        ("jpeg_ls_dcm", "BitsStored", 4, "its values reach .*, where its header says 4 bits"),
        ("jpeg_ls_dcm", "NumberOfFrames", 2**31 - 1, "2147483647 frames"),
    ],
)
def test_a_header_that_contradicts_its_pixels_is_named_with_both(fuzz, tmp_path, kind, keyword, value, said):
    import io

    import pydicom

    made = pydicom.dcmread(io.BytesIO(fuzz.sound(kind)[0]))
    setattr(made, keyword, value)
    made.save_as(tmp_path / "odd.dcm")
    with pytest.raises(UserError, match=said) as refused:
        read_dicom(tmp_path / "odd.dcm")
    assert str(refused.value).startswith(f"{tmp_path / 'odd.dcm'}: ")
    if keyword == "NumberOfFrames" and value > 2:
        with pytest.raises(UserError, match=said):
            dicom_shape(tmp_path / "odd.dcm")


def test_more_frames_than_are_said_are_named(fuzz, tmp_path):
    import io

    import pydicom

    for kind, number in (("jpeg_dcm", 1), ("jpeg_ls_dcm", 2), ("explicit_dcm", 3)):
        made = pydicom.dcmread(io.BytesIO(fuzz.sound(kind)[number]))
        del made.NumberOfFrames
        made.save_as(tmp_path / f"{kind}.dcm")
        with pytest.raises(UserError, match=r"holds 2 frames, where its header says 1|6144 bytes, where its header says 3072"):
            read_dicom(tmp_path / f"{kind}.dcm")


def test_zeros_behind_uncompressed_pixels_are_padding(fuzz, tmp_path):
    import io

    import pydicom

    made = pydicom.dcmread(io.BytesIO(fuzz.sound("explicit_dcm")[0]))
    made.PixelData += bytes(128)
    made.save_as(tmp_path / "padded.dcm")
    assert np.array_equal(read_dicom(tmp_path / "padded.dcm")[0], fuzz.pictures()[0])


def test_jpeg_of_12_bits_and_jpeg_2000_of_high_throughput_are_read(fuzz, tmp_path):
    ramp = np.add.outer(np.arange(16) * 5, np.arange(16) * 10)
    for kind, exact in (("jpeg_12_dcm", False), ("htj2k_dcm", True)):
        (tmp_path / "ramp.dcm").write_bytes(fuzz.sound(kind)[0])
        read = read_dicom(tmp_path / "ramp.dcm")[0].astype(int)
        assert np.abs(read - (ramp if exact else ramp / 225 * 255)).max() <= (0 if exact else 1), kind
