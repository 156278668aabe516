"""Processes that torchrun, srun or a sweep's launcher started: which this one is, and its GPUs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from xraylab.errors import UserError
from xraylab.system.processes import SINGLE_PROCESS, Processes, first_host, launched, planned, shared_gpus


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1",
            "MASTER_ADDR": "a", "MASTER_PORT": "29500"}  # fmt: skip


SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_JOB_ID": "1234567", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}  # fmt: skip


def test_torchrun_and_srun_say_which_process_this_is():
    assert launched({}) == launched({"SLURM_STEP_NUM_TASKS": "1"}) == SINGLE_PROCESS
    assert launched(TORCHRUN) == Processes(4, 3, 2, 1, "torchrun", "a", 29500)
    assert launched(SRUN) == Processes(4, 3, 2, 1, "srun", "node07", 24567)
    assert planned({"num_nodes": "auto", "timeout": 5}, environment=SRUN).timeout == 5
    with pytest.raises(UserError, match="every machine needs as many"):
        launched({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3,1"})
    assert [first_host(n) for n in ("a", "a,b[1-2]", "gpu[007-009,12],x", "n[3]-ib")] == ["a", "a", "gpu007", "n3-ib"]


@pytest.mark.parametrize(
    ("accelerator", "environment", "sweep", "said"),
    [
        ({"devices": 2}, TORCHRUN, False, r"started 4 processes on 2 machines, but accelerator.num_nodes=1"),
        ({"devices": 3, "num_nodes": 2}, TORCHRUN, False, r"2 on each, but accelerator.devices=3"),
        ({"num_nodes": "auto"}, TORCHRUN, True, "a sweep under torchrun: each of the 4 processes would run all of it"),
        ({"num_nodes": "auto"}, {}, False, "accelerator=multinode: this process was started alone"),
        ({"devices": 2}, {**TORCHRUN, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0"}, False, "started one process"),
        ({"num_nodes": 2}, {}, False, "accelerator.num_nodes=2: this process was started alone"),
        (
            {"num_nodes": "auto"},
            {**TORCHRUN, "WORLD_SIZE": "2", "RANK": "1"},
            False,
            r"accelerator=multinode: torchrun started 2 processes on one machine\. .*or each trains on its own",
        ),
        ({"devices": 0}, {}, False, r"accelerator.devices=0: it is a number from 1 on"),
        ({"devices": "two"}, {}, False, "auto or all"),
        ({"strategy": "fsdp"}, {}, False, "Leave it out"),
        ({"timeout": 0}, {}, False, "above 0"),
    ],
)
def test_what_was_started_and_what_is_asked_for_must_agree(accelerator, environment, sweep, said):
    with pytest.raises(UserError, match=said):
        planned(accelerator, sweep, environment)


def test_a_command_of_one_process_is_refused_under_torchrun(command):
    one = {**TORCHRUN, "WORLD_SIZE": "2", "RANK": "0"}
    done = command("evaluate", "run=none", **one)
    assert (done.returncode, "this is one: start it without torchrun" in done.stderr) == (2, True)
    done = command("train", "-m", "seed=0,1", **one)
    assert (done.returncode, "error: a sweep under torchrun: each of the 2 processes would run" in done.stderr) == (2, True)


def test_jobs_side_by_side_share_gpus():
    assert shared_gpus(4, 1, 1) == "1 job at a time on 4 GPUs: each on its own"
    assert shared_gpus(4, 2, 2) == "2 jobs at a time on 4 GPUs: each on 2 of its own"
    assert shared_gpus(2, 1, 5) == "5 jobs at a time on 2 GPUs: up to 3 share a GPU (hydra.launcher.n_jobs=2: each has its own)"
    with pytest.raises(UserError, match=r"3 jobs at a time take 6 GPUs, and torch sees 4. Run fewer .*n_jobs=2"):
        shared_gpus(4, 2, 3)
    with pytest.raises(UserError, match=r"1 jobs at a time take 2 GPUs, and torch sees 1."):
        shared_gpus(1, 2, 1)


def test_each_process_keeps_to_gpus_of_its_own(tmp_path):
    """The lowest place that is free, so that a process that ends makes room; several GPUs each; more processes than GPUs."""
    code = ("import os, sys\nfrom pathlib import Path\nfrom xraylab.system.processes import own_gpus\n"
            "for _ in range(2): own_gpus(Path(sys.argv[1]), int(sys.argv[2]))\n"
            "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\ninput()")  # fmt: skip
    began = []

    def begin(folder, devices, visible):
        folder.mkdir(exist_ok=True)
        words = [sys.executable, "-c", code, folder, str(devices)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        began.append(subprocess.Popen(words, env=environment(CUDA_VISIBLE_DEVICES=visible), **pipes))
        return began[-1].stdout.readline().strip()

    assert [begin(tmp_path / "a", 1, "3,GPU-x") for _ in range(3)] == ["3", "GPU-x", "3"]
    began[1].communicate("\n")
    assert begin(tmp_path / "a", 1, "3,GPU-x") == "GPU-x"
    assert [begin(tmp_path / "b", 2, "0,1,2,3,4") for _ in range(2)] == ["0,1", "2,3"]
    assert begin(tmp_path / "c", 1, "7") == "7"
    assert begin(tmp_path / "c", 1, "") == ""
    for process in began:
        process.communicate("\n" if process.poll() is None else None)
