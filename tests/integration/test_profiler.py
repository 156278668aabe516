"""Profilers of a run."""

from __future__ import annotations

import json
import signal

import pytest
from test_survive import SMALL

from xraylab.errors import Stopped, UserError
from xraylab.training.callbacks.interrupt import StopOnInterrupt


@pytest.mark.parametrize("kind", ["simple", "pytorch", "xla"])
def test_a_profiler_writes_where_the_time_goes(kind, train_here, tmp_path, mrnet_root, monkeypatch, caplog):
    caplog.set_level("INFO")
    options = [*SMALL, f"dataset.root={mrnet_root}", f"profiler={kind}"]
    if kind == "xla":
        with pytest.raises(UserError, match="it needs torch_xla"):
            train_here(tmp_path / "run", *options)
        return
    run, wanted = tmp_path / "run", {"optimizer_step", "[_TrainingEpochLoop].train_dataloader_next"}
    if kind == "simple":  # of a run that is stopped
        after = StopOnInterrupt.on_train_batch_end

        def signalled(self, trainer, *args):
            if trainer.global_step == 11:
                signal.raise_signal(signal.SIGTERM)
            after(self, trainer, *args)

        monkeypatch.setattr(StopOnInterrupt, "on_train_batch_end", signalled)
        with pytest.raises(Stopped):
            train_here(run, *options)
    else:
        train_here(run, *options)
        trace = json.loads((run / "profile" / "fit-pytorch.trace.json").read_text())["traceEvents"]
        assert [e.get("name") for e in trace].count("Optimizer.step#Adam.step") == 5
        wanted |= {"5 training steps, after 2", "Optimizer.step#Adam.step"}
    written = (run / "profile" / f"fit-{kind}.txt").read_text()
    assert all(words in written for words in wanted)
    assert f"where the time went: {run / 'profile'}" in caplog.text
