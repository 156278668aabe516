"""What the processes of a run tell each other."""

from __future__ import annotations

from xraylab.training.distributed.collectives import is_lost


def test_what_torch_says_of_others_is_told_from_what_it_says_of_mistakes(monkeypatch):
    gone = [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Read error [10.0.0.2]:5017: No route to host",
        "NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited or there was a network error, NCCL version 2.27.5\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "[PG ID 0 PG GUID 0(default_pg) Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=16, …)",
    ]
    ours = [
        "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        "NCCL error in: NCCLUtils.hpp:121, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5",
        "ProcessGroupGloo::allreduce: invalid tensor type at index 0",
    ]
    monkeypatch.setattr("xraylab.training.distributed.collectives.world", lambda: 2)
    assert [is_lost(RuntimeError(text)) for text in (*gone, *ours)] == [True] * 3 + [False] * 3
