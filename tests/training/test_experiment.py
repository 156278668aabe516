"""What cannot be trained is refused before it is begun, and only that."""

from __future__ import annotations

import pytest
from conftest import assemble, compose_config

from xraylab.errors import UserError
from xraylab.training import experiment as door
from xraylab.training.data_checks import check_batches

VIT = ["backbone=timm", "backbone.name=vit_tiny_patch16_224", "+backbone.kwargs.depth=1", "+backbone.kwargs.embed_dim=24"]
QUICK = ["backbone.pretrained=false", "num_workers=0", "precision=32", "bootstrap=0", "accelerator=cpu", "cache=off"]


def refuse(*args, **kwargs):
    raise AssertionError("it came to this")


def test_a_network_for_another_size_is_refused_before_data_is_read(monkeypatch, mrnet_root):
    options = [*VIT, *QUICK, f"dataset.root={mrnet_root}", "image.size=64"]
    with monkeypatch.context() as patch:
        patch.setattr(door, "split_table", refuse)
        with pytest.raises(UserError, match=r"64x64 pixels: .* Set image.size=224 or \+\+backbone.kwargs.img_size=64,"):
            assemble(compose_config(*options), options)
    options += ["++backbone.kwargs.img_size=64"]
    assemble(compose_config(*options), options)


def test_where_images_keep_their_size_it_is_refused_before_they_are_packed(monkeypatch, mrnet_root):
    options = [*VIT, *QUICK, f"dataset.root={mrnet_root}", "image.size=null"]
    monkeypatch.setattr(door, "with_cache", refuse)
    with pytest.raises(UserError, match=r"256x256 pixels: .*height \(256\).* Set image.size=224 or"):
        assemble(compose_config(*options), options)


def resnet(pneumonia_file, batch_size, *more):
    options = [*QUICK, "dataset=medmnist", f"dataset.root={pneumonia_file}", "backbone=resnet18", "image.size=null",
               "backbone.in_chans=1", "+backbone.kwargs.channels=[8,8,16,16]", f"batch_size={batch_size}", *more]  # fmt: skip
    return assemble(compose_config(*options), options)


def smallest_step(job):
    """The training step of the last batch; and how many images it has."""
    batch = list(job.data.train_dataloader())[-1]
    job.module.training_step(batch, 0)
    return len(batch.images)


def test_a_batch_of_one_image_is_refused_where_it_would_stop_and_the_remedy_trains(pneumonia_file):
    job = resnet(pneumonia_file, 53)
    with pytest.raises(UserError, match="cannot be batch-normalised"):
        smallest_step(job)
    with pytest.raises(
        UserError, match=r"batch_size=53: with 160 studies .* 28x28 .*layer4.* Set batch_size=52 or image.size=56\."
    ):
        check_batches(job, fresh=True)
    with pytest.raises(UserError, match=r"a run that goes on .* begin anew. Set batch_size=52"):
        check_batches(job, fresh=False)
    for batch_size, more, images in ((52, (), 4), (53, ("image.size=56",), 1), (53, ("backbone.trainable_from=head",), 1)):
        job = resnet(pneumonia_file, batch_size, *more)
        check_batches(job, fresh=True)
        assert smallest_step(job) == images


def test_what_is_thawed_later_counts(pneumonia_file):
    frozen = ["backbone.trainable_from=head", "callbacks=unfreeze", "max_epochs=4"]
    with pytest.raises(UserError, match=r"layer4.1.bn2 sees one value .* Set batch_size=52"):
        check_batches(resnet(pneumonia_file, 53, *frozen, "callbacks.unfreeze.at={3: layer4}"), fresh=True)
