"""Training that ends when validation no longer gets better."""

from __future__ import annotations

from pytorch_lightning.callbacks import EarlyStopping

from xraylab.config.settings import EarlyStop, mode_of


def early_stopping(rule: EarlyStop) -> EarlyStopping:
    """Lightning's callback that ends training before ``max_epochs``, by our rule."""
    return EarlyStopping(rule.monitor, rule.min_delta, rule.patience, mode=mode_of(rule.monitor), check_on_train_epoch_end=False)
