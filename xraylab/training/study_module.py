"""The LightningModule: one training step for every dataset, and a checkpoint that rebuilds itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from xraylab.data.batching import Batch, of_images
from xraylab.data.datamodule import StudyDataModule, batches_done
from xraylab.data.images.source import Images
from xraylab.data.preprocessing import EACH_AXIS, SHORTER_SIDE, pack, prepare, require_uint8
from xraylab.data.study_table import HELD_BACK
from xraylab.errors import UserError, listed
from xraylab.evaluation.calibration import scaled
from xraylab.evaluation.evaluator import quick_metrics
from xraylab.evaluation.operating_points import CHOSEN, read_chosen, temperatures_of
from xraylab.evaluation.predictions import Scoring, scored_labels
from xraylab.evaluation.probabilities import require_finite, sigmoid
from xraylab.evaluation.result import Chosen
from xraylab.models.distribution import TrainingDistribution
from xraylab.models.losses.adaptive_weight import derivatives
from xraylab.models.losses.base import Loss, spec
from xraylab.models.losses.uncertain_labels import Uncertainty
from xraylab.models.study_net import StudyNet
from xraylab.system.classes import located
from xraylab.training import self_test
from xraylab.training.checkpoints import FORMAT, checkpoint_of, read_checkpoint
from xraylab.training.distributed.collectives import from_first, gather, rank, summed, world


class StudyModule(pl.LightningModule):
    """A classifier of studies, as a LightningModule: the network, its loss, and what rebuilds both from a checkpoint.

    Args:
        net: uint8 images to logits.
        loss: logits and raw labels to a number; says how logits become probabilities.
        labels: names of the L labels.
        preprocessing: ``size``, ``rescale`` and ``resize`` of :func:`xraylab.data.preprocessing.prepare`.
        optimizer: parameters to an optimizer; needed for training by a Trainer.
        scheduler: optimizer to a scheduler, or None.
        interval: ``epoch`` or ``step``, when the scheduler is stepped.
        scheduler_monitor: the metric of a scheduler that wants one.
        seed: of dropout.
        data: what is said of the data in results.
        groups: names of the groups that the loss's balance was counted by.
        unit: ``image`` scores ``valid/loss`` on single images, as such a model is trained; every metric is by study.
        split_digest: of the studies and their splits, for checkpoints.
        blank, uncertain: what such labels count as in validation, see :func:`xraylab.evaluation.predictions.scored_labels`.
        images: what images were like, beside ``preprocessing``: ``channels``, ``bits`` of 16-bit files, and ``views``, as in
            :class:`xraylab.data.study_table.StudyTable`; ``volumes``: False where slices of a volume were files of their own;
            ``rule``: how volumes were chosen and made grey, see :class:`xraylab.data.images.volumes.VolumeRule`.

    >>> from xraylab.losses import WeightedBCE
    >>> from xraylab.models import CNN, MaxFeature
    >>> net = StudyNet(CNN(image_size=32, layers=2, filters=4), MaxFeature(), num_outputs=1)
    >>> model = StudyModule(net, WeightedBCE(), labels=["acl"])
    >>> model.predict(np.zeros((5, 32, 32), np.uint8)).keys()  # of an exam of five slices
    dict_keys(['acl'])
    """

    def __init__(
        self, net: StudyNet, loss: Loss, labels: Sequence[str], preprocessing: Mapping[str, Any] | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None, interval: str = "epoch",
        scheduler_monitor: str = "valid/loss", seed: int = 0, data: str = "", groups: Sequence[str] = (), unit: str = "study",
        split_digest: str = "", blank: str = "ignore", uncertain: str = "ignore",
        images: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.loss, self.labels = net, loss, tuple(labels)
        self.groups, self.unit, self.split_digest = tuple(groups), unit, split_digest
        self.scoring = Scoring(blank, uncertain)
        if not hasattr(loss, "balance_weights"):
            loss.build(len(self.labels), len(self.groups))
        self.preprocessing = {"size": None, "rescale": False, "resize": EACH_AXIS, **(preprocessing or {})}
        self.images = {"channels": 1, "bits": None, "views": False, **(images or {})}
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.interval, self.scheduler_monitor, self.seed, self.data = interval, scheduler_monitor, seed, data
        self.operating: Chosen = {}  # operating_points.json of its run, where load finds it
        self.expected: Tensor | None = None  # of its self-test, where its checkpoint has one
        self.distribution: TrainingDistribution | None = None  # of the images it was trained on, where its checkpoint has it
        self._scheduler: Any = None
        self._scheduler_state: dict[str, Any] | None = None
        self._seen: list[tuple[Tensor, ...]] = []
        self.epoch_loss = torch.zeros(2, dtype=torch.float64)  # sum and n of the epoch so far

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, outputs)."""
        if not isinstance(batch, Batch):
            kind = type(batch).__name__
            raise UserError(f"model(...) takes a Batch of a StudyDataModule, not a {kind}: model.predict(images).")
        studies = len(batch.labels)
        return self.net(batch.images, batch.study, max(studies, 1), batch.real)[:studies]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch: its share of the loss of the whole optimiser step."""
        try:
            logits = self(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"a batch of one image of {'x'.join(map(str, batch.images.shape[-2:]))} pixels cannot be batch-normalised: train "
                "anew with a batch_size that leaves no image alone, or a larger image.size."
            ) from None
        loss = self.loss(logits, batch.labels, batch.scored, batch.group, batch.rows)
        if self._trainer is None:
            return loss
        with torch.no_grad():
            scored = self.loss.scored(batch.labels).sum()
            self.epoch_loss += torch.stack([loss.detach() * batch.scored, scored])
        # Lightning divides by the number of accumulated batches, and averages over processes, but batch.scored counts all
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def setup(self, stage: str) -> None:
        """Refuse a Trainer under which a step would not be what its batches say."""
        if stage != "fit":
            return
        if n := self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise UserError(
                f"Trainer(overfit_batches={n}) puts a sampler of Lightning's in the place of the one that draws whole batches. "
                f"The same: Trainer(limit_train_batches={n}) and trainer.fit(model, data.loader('train', plain=True))."
            )
        data, every = self.trainer.datamodule, self.trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if isinstance(data, StudyDataModule) and data.accumulate != every:
            raise UserError(
                f"Trainer(accumulate_grad_batches={every}), but StudyDataModule(accumulate={data.accumulate}), by which the loss "
                f"is divided: give both the same number."
            )

    def on_fit_end(self) -> None:
        self._scheduler_state = None  # of a checkpoint that this fit went on from, and the next does not

    def on_train_epoch_start(self) -> None:
        self.epoch_loss = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # dropout depends on the seed, the batch's number and the process alone, so a resumed run repeats it
        seed = (self.seed * 1_000_003 + batches_done(self.trainer) + (self.global_rank << 40)) % 2**63
        torch.manual_seed(seed)
        if self.device.type == "xla":  # which torch's seed does not reach
            import torch_xla

            torch_xla.manual_seed(seed)

    def on_validation_epoch_start(self) -> None:
        from_first(self.buffers())  # batch statistics, which every process has of its own share

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep logits, labels and the loss on the device until the epoch's end."""
        truth = scored_labels(batch.labels, self.scoring)
        if self.unit == "image":
            logits, scored = self.net.both(batch.images, batch.study, len(batch.labels), batch.real)
            labels, group = of_images(truth, batch.study), of_images(batch.group, batch.study)
        else:
            logits, labels, group = self(batch), truth, batch.group
            scored = logits
        certain = self.loss.scored(labels) if self.loss.exclusive else (labels == 0) | (labels == 1)
        loss = torch.stack([self.loss.certain(scored, labels, group).double(), certain.sum().double()])
        self._seen.append((logits, truth, loss[None]))

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> tuple[Tensor, Tensor, Tensor, int | None, Tensor, Tensor]:
        """Rows of the table (B,), probabilities (B,L), those of each view as a study of its own (I,L), of slices (0,L), how many
        of these views are not blank, None: all; and the network's outputs that both are of."""
        if self.images["views"]:
            by_study, by_image = self.net.both(batch.images, batch.study, len(batch.labels), batch.real)
        else:
            by_study = self(batch)
            by_image = by_study[:0]
        found = self.loss.probabilities(by_study), self.loss.probabilities(by_image)
        return batch.rows, *found, batch.real if self.images["views"] else None, by_study, by_image

    def log_odds(self, outputs: Tensor) -> np.ndarray:
        """float64 (N,L), the logits of the labels, of the network's outputs (N, outputs); computed on the CPU."""
        return self.loss.log_odds(outputs.detach().cpu().double()).numpy()

    def on_validation_epoch_end(self) -> None:
        """Log ``valid/loss`` (scored labels, the balance of train, no policy) and the metrics of the design."""
        self._finish("valid")

    def on_test_epoch_end(self) -> None:
        """The same for ``test/``."""
        self._finish("test")

    def _finish(self, split: str) -> None:
        seen, self._seen = self._seen, []
        if world() > 1:  # in the order of processes, which is that of the table
            seen = [part for of in gather([[t.cpu() for t in part] for part in seen]) for part in of]  # type: ignore[misc]
        outputs, labels, losses = (torch.cat(parts).to(self.device) for parts in zip(*seen, strict=True))
        total, certain = losses.sum(0)
        logits = self.log_odds(outputs)
        require_finite(logits, split)
        loss = total / certain if certain else float("nan")
        values = {"loss": loss, **quick_metrics(self.labels, logits, labels.cpu().numpy(), threshold=0.0)}
        found = {f"{split}/{name}": float(value) for name, value in values.items()}
        if self.trainer.state.fn == TrainerFn.FITTING:
            found["step"] = float(self.trainer.global_step)  # of a logger's axis, where Lightning (2.6) would give the one before
        self.log_dict(found, batch_size=1)

    # The scheduler is stepped here and not by Lightning, which steps it after the epoch's checkpoint is written, so that
    # a resumed run would miss that step (seen with pytorch-lightning 2.6).

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over all parameters: one that is frozen has no gradient and stays, until it is unfrozen."""
        if self.make_optimizer is None:
            raise UserError(
                "this StudyModule was made without an optimizer: pass optimizer=functools.partial(torch.optim.Adam, lr=...)."
            )
        own = list(self.loss.parameters())
        others = [p for p in self.parameters() if all(p is not q for q in own)]
        groups = [{"params": others}, {"params": own, "lr": self.loss.lr, "weight_decay": 0.0}]
        optimizer = self.make_optimizer(groups if own else others)
        self._scheduler = self.make_scheduler(optimizer) if self.make_scheduler else None
        if self._scheduler is not None and self._scheduler_state is not None:
            self._scheduler.load_state_dict(self._scheduler_state)
        return optimizer

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self._scheduler is not None and self.interval == "step":
            self._scheduler.step()

    def on_train_epoch_end(self) -> None:
        whole = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if whole and isinstance(self.loss, Uncertainty) and self.loss.adapts:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            of_parts = (self._head_logits(data.loader(part)) for part in (HELD_BACK, "uncertain"))
            self.loss.adapt(derivatives(self.loss, self.net.behind_features(), *of_parts))
        if self._scheduler is None or self.interval != "epoch" or not whole:
            return
        if isinstance(self._scheduler, ReduceLROnPlateau):
            metric = self.trainer.callback_metrics.get(self.scheduler_monitor)
            if metric is None:
                known = ", ".join(sorted(map(str, self.trainer.callback_metrics)))
                raise UserError(f"scheduler.monitor={self.scheduler_monitor}: there is no such metric. There are: {known}.")
            self._scheduler.step(metric)
        else:
            self._scheduler.step()

    @torch.no_grad()
    def _head_logits(self, loader: Iterable[Batch]) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        """What gives logits and raw labels of what is trained on, batch by batch, of features that are computed here, once."""
        kept = []
        was_training = self.net.training
        self.net.eval()
        for batch in loader:
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            features, study, labels = self.net.features(batch.images), batch.study, batch.labels
            if self.unit == "image":
                features, study = features[: batch.real], study[: batch.real]
                study, labels = torch.arange(len(features), device=self.device), labels[study]
            kept.append((features, study, labels))
        self.net.train(was_training)

        def logits() -> Iterator[tuple[Tensor, Tensor]]:
            self.net.eval()
            yield from ((self.net.pooled(features, study, len(labels)), labels) for features, study, labels in kept)
            self.net.train(was_training)

        return logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model and its preprocessing."""
        checkpoint["xraylab"] = {
            "format": FORMAT,
            "labels": list(self.labels),
            "groups": list(self.groups),
            "preprocessing": dict(self.preprocessing),
            "images": dict(self.images),
            "net": dict(self.net.hparams),
            "backbone": spec(self.net.backbone),
            "pool": spec(self.net.pool),
            "loss": spec(self.loss),
            "data": self.data,
            "scored": {"unit": self.unit, **asdict(self.scoring)},
            "splits": self.split_digest,
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "epoch_loss": summed(self.epoch_loss).cpu(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the scheduler's state; configure_optimizers may run before or after."""
        saved = checkpoint.get("xraylab", {})
        self._scheduler_state = saved.get("scheduler")
        if self._scheduler is not None and self._scheduler_state is not None:
            self._scheduler.load_state_dict(self._scheduler_state)
        if "epoch_loss" in saved:
            self.epoch_loss = saved["epoch_loss"].to(self.device) * (rank() == 0)  # of all processes together

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the model, not its place in a training, whose scheduler is tied to an optimizer."""
        return {**super().__getstate__(), "_scheduler": None, "_seen": []}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **kwargs: Any
    ) -> StudyModule:
        """As :func:`xraylab.load`: a checkpoint says itself how its model is made.

        Raises:
            UserError: as there; or arguments are given, which it would not heed.
        """
        if given := [k for k, v in kwargs.items() if v is not None and k not in ("strict", "weights_only")]:
            raise UserError(f"load_from_checkpoint: {listed(given)} given; xraylab.load(path) rebuilds the model as it was.")
        return load_module(checkpoint_path, str(map_location or "cpu"))

    @torch.no_grad()
    def predict(self, images: Images | Mapping[str, np.ndarray], calibrate: bool = False) -> dict[str, float]:
        """Probabilities of one study by label.

        Args:
            images: uint8 (N,H,W) or (N,H,W,3), or a list of views (H,W) or (H,W,3), as stored; prepared here as in training.
                One grey image may be (H,W). A model of several parts takes each by name: ``{"axial": volume, ...}``.
            calibrate: apply each label's temperature, see :attr:`operating`. Thresholds are of probabilities without.

        Raises:
            UserError: another shape or dtype; values scaled to 0-1 would give a plausible and wrong answer. Or other parts than
                the model's, or a temperature is not known.
        """
        temperatures = temperatures_of(self.operating, self.labels) if calibrate else {}
        found = zip(self.labels, self.logits(images), strict=True)
        return {name: float(scaled(z, temperatures[name]) if calibrate else sigmoid(z)) for name, z in found}

    @torch.no_grad()
    def logits(self, images: Images | Mapping[str, np.ndarray]) -> np.ndarray:
        """float64 (L,), the logits of one study's labels, natural log-odds before calibration; see :meth:`predict`."""
        given = images if isinstance(images, Mapping) else {"": images}
        parts = self.net.parts or ("",)
        if set(given) != set(parts):
            named = ", ".join(f'"{part}": volume' for part in self.net.parts)
            was = f"{{{listed(given)}}}" if isinstance(images, Mapping) else "images without names"
            raise UserError(f"predict: {was} given; this model wants {f'{{{named}}}' if named else 'the images of a study'}.")
        bags = [prepare(require_uint8(given[part]), **self.preprocessing) for part in parts]
        study = torch.repeat_interleave(torch.arange(len(bags)), torch.tensor([len(bag) for bag in bags]))
        modes = [(module, module.training) for module in self.net.modules()]
        try:  # also of a model that is being trained, which then goes on as it was
            outputs = self.net.eval()(pack(bags).to(self.device), study.to(self.device), 1)
        finally:
            for module, training in modes:
                module.training = training
        return self.log_odds(outputs)[0]

    def self_test(self) -> float:
        """The largest difference of logits from those that the checkpoint carries, see :mod:`xraylab.training.self_test`.

        Raises:
            UserError: it is more than rounding; or the checkpoint carries none, as those of before.
        """
        return self_test.check(self, self.expected)

    def unlike(self, bags: Sequence[np.ndarray]) -> tuple[float, float] | None:
        """How far a study is from those of training, and from where on it is unlike them; None: not known.

        Args:
            bags: the study as :func:`xraylab.data.preprocessing.prepare` gives it, an array a part.
        """
        if (found := self.distribution) is None:
            return None
        return found.of_images(self.net, pack(bags).to(self.device)), found.threshold


def load_module(path: str | Path, device: str = "cpu") -> StudyModule:
    """See :func:`xraylab.load`."""
    file = checkpoint_of(path)
    checkpoint = read_checkpoint(file, device)
    saved = checkpoint["xraylab"]
    backbone = _rebuild(saved["backbone"], pretrained=False)
    net = StudyNet(backbone, _rebuild(saved["pool"]), **saved["net"])
    module = StudyModule(
        net, _rebuild(saved["loss"]), saved["labels"],
        preprocessing={"resize": SHORTER_SIDE, **saved["preprocessing"]},  # the way of those that do not say it
        data=saved["data"], groups=saved["groups"], split_digest=saved.get("splits", ""), images=saved.get("images"),
        **saved.get("scored", {}),  # which earlier ones do not have
    )  # fmt: skip
    module.load_state_dict(checkpoint["state_dict"])
    if found := saved.get("distribution"):
        module.distribution = TrainingDistribution(**found)
    module.expected = saved.get("self_test")
    module.operating = read_chosen(file.parent.parent / CHOSEN, checkpoint["global_step"])
    return module.to(device).eval()


def _rebuild(saved: Mapping[str, Any], **changes: Any) -> Any:
    kind = located(saved["class"])
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"the checkpoint names {saved['class']}, which is not a network component.")
    return kind(**{**saved["arguments"], **changes})
