"""Backbones: width, weights that stop the run, freezing that changes exactly what it names."""

from __future__ import annotations

import pytest
import torch

from xraylab.errors import UserError
from xraylab.models import CNN, AlexNet, MaxFeature, StudyNet, Timm
from xraylab.models.backbones.timm import LogSumExp
from xraylab.models.backbones.weights import PROBE_SECONDS


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "densenet121", "vgg11"])
def test_features_are_as_wide_as_announced(name):
    backbone = Timm(name, pretrained=False, in_chans=1).eval()
    assert backbone(torch.randn(2, 1, 64, 64)).shape == (2, backbone.num_features)


def test_alexnet_averages_to_256_features():
    assert AlexNet(pretrained=False)(torch.randn(2, 3, 128, 128)).shape == (2, 256)
    with pytest.raises(UserError, match="too small for alexnet"):
        AlexNet(pretrained=False)(torch.randn(1, 3, 32, 32))


def test_small_stem_keeps_the_resolution():
    backbone = Timm("resnet18", pretrained=False, in_chans=1, stem="small")
    assert backbone.model.layer1(backbone.model.maxpool(backbone.model.conv1(torch.randn(1, 1, 28, 28)))).shape[-1] == 28
    with pytest.raises(UserError, match="without pretrained weights"):
        Timm("resnet18", pretrained=True, stem="small")
    with pytest.raises(UserError, match="ResNets"):
        Timm("vgg11", pretrained=False, stem="small")


def trained_names(backbone, steps=2):
    """Names of parameters, and of batch statistics, that training changes."""
    torch.manual_seed(0)
    net = StudyNet(backbone, MaxFeature(), 1).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        images = torch.randint(0, 255, (4, 1, 64, 64), dtype=torch.uint8)
        net(images, torch.tensor([0, 0, 1, 1]), 2).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}


# place -> the first module that is trained
PLACES = {
    "resnet18": {
        None: "conv1", "layer3": "layer3.0.conv1", "layer4.1": "layer4.1.conv1", "layer1.0.bn2": "layer1.0.bn2",
        3: "layer1.0.bn1",
        -2: "layer4.1.conv2", "head": None,
    },
    "densenet121": {
        "denseblock4.denselayer15": "features.denseblock4.denselayer15.norm1",
        "features.denseblock4": "features.denseblock4.denselayer1.norm1",
        -1: "features.norm5", "head": None,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in PLACES for place in PLACES[name]])
def test_freezing_changes_exactly_what_it_names(name, place):
    backbone = Timm(name, pretrained=False, in_chans=1, trainable_from=place)
    parameters = [n for n, _ in backbone.named_parameters()]
    first = PLACES[name][place]
    start = len(parameters) if first is None else parameters.index(f"model.{first}.weight")
    changed = {c.removeprefix("backbone.") for c in trained_names(backbone)}
    assert {p for p in parameters if p in changed} == set(parameters[start:])
    assert {"head.0.weight", "head.0.bias"} <= changed
    frozen_modules = {p.rsplit(".", 1)[0] for p in parameters[:start]}
    assert not [c for c in changed if "running" in c and c.rsplit(".", 1)[0] in frozen_modules]


def test_a_place_that_is_not_there_or_not_one_is_refused():
    with pytest.raises(UserError, match=r"there are 4: model.layer1.0.conv1, .* Give more of the path"):
        Timm("resnet18", pretrained=False, trainable_from="0.conv1")
    with pytest.raises(UserError, match="a layer's number, 0 to"):
        Timm("resnet18", pretrained=False, trainable_from=99)


def test_batch_statistics_of_frozen_stages_move_when_asked():
    backbone = Timm("resnet18", pretrained=False, in_chans=1, trainable_from="head", freeze_batch_stats=False)
    assert any("running_mean" in name for name in trained_names(backbone))


def test_an_unknown_stage_lists_the_stages():
    with pytest.raises(UserError, match=r"Did you mean conv5.*conv1, conv2"):
        AlexNet(pretrained=False, trainable_from="conv6")


def test_missing_pretrained_weights_stop_the_run(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("unreachable")))
    for make in (lambda: AlexNet(pretrained=True), lambda: Timm("resnet18", pretrained=True)):
        with pytest.raises(UserError, match=r"(?s)cannot be fetched \(unreachable\).*backbone.pretrained=<file"):
            make()
    assert PROBE_SECONDS <= 10


def test_weights_from_a_file(tmp_path):
    for make, model in ((lambda p: AlexNet(pretrained=p), None), (lambda p: Timm("resnet18", pretrained=p), "resnet18")):
        import timm
        import torchvision

        source = timm.create_model(model) if model else torchvision.models.alexnet()
        torch.save(source.state_dict(), tmp_path / "weights.pth")
        backbone = make(str(tmp_path / "weights.pth"))
        images = torch.randn(1, 3, 64, 64)
        ours = backbone.eval()(images)
        source.eval()
        theirs = (
            source.forward_features(images).mean((2, 3))
            if model
            else torch.nn.functional.adaptive_avg_pool2d(source.features(images), 1).flatten(1)
        )
        torch.testing.assert_close(ours, theirs)


def test_a_file_of_other_weights_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 half a file")
    for name in ("other.pth", "cut.pth"):
        for make in (lambda p: AlexNet(pretrained=p), lambda p: Timm("resnet18", pretrained=p)):
            with pytest.raises(UserError, match=name):
                make(str(tmp_path / name))
    with pytest.raises(UserError, match="there is no such file"):
        AlexNet(pretrained="nowhere.pth")


# name -> arguments that make it narrow, not shallow
NARROW = {
    "alexnet": None,
    "cnn": None,
    "resnet18": {"channels": (8, 16, 16, 32)},
    "resnet50": {"channels": (8, 8, 8, 16)},
    "densenet121": {"growth_rate": 4},
    "densenet169": {"growth_rate": 4},
    "densenet201": {"growth_rate": 4},
    "vgg16_bn": {"mlp_ratio": 1e-3},
    "vit_tiny_patch16_224": {"embed_dim": 24, "init_values": 1e-3},
    "convnext_atto": {"dims": (8, 8, 16, 16)},
}


def made(name, pretrained=False, **options):
    if name == "alexnet":
        return AlexNet(pretrained, **options)
    if name == "cnn":
        return CNN(16, layers=2, filters=4, pretrained=pretrained, **options)
    kwargs = {**NARROW[name], **options.pop("kwargs", {})}
    return Timm(name, pretrained, kwargs=kwargs, **options)


def published(name):
    """Weights as a publisher's file has them, with a classifier, and no value as any start makes it."""
    import timm

    if name in ("alexnet", "cnn"):
        whole = made(name).state_dict() | ({"classifier.1.weight": torch.zeros(5, 5)} if name == "alexnet" else {})
    else:
        whole = timm.create_model(name, **NARROW[name]).state_dict()
    rng = torch.Generator().manual_seed(1)
    return {k: torch.rand(v.shape, generator=rng) + 0.1 if v.is_floating_point() else v + 7 for k, v in whole.items()}


def without(state, *ends):
    return {k: v for k, v in state.items() if not k.endswith(ends)}


def damaged(state):
    """State dicts of files to which something was done, and what the refusal says."""
    ours = [k for k in state if not k.startswith(("fc.", "classifier.", "head.fc.", "head.weight", "head.bias"))]
    kernel = next(k for k in ours if state[k].ndim == 4)
    last = [k for k in ours if k.endswith("bias")][-1]
    yield {k: v for k, v in state.items() if k != last}, rf"missing +1: {last}"
    yield without(state, ".bias"), r"missing +\d+: "
    yield (
        state | {"layer9.0.weight": torch.ones(3), "layer9.0.bias": torch.ones(3)},
        r"surplus +2: layer9.0",
    )
    yield state | {kernel: state[kernel][:-1]}, rf"of another kind +1: {kernel} \("
    yield state | {last: state[last] * float("nan")}, rf"not numbers +1: {last}"
    yield state | {last: state[last].to(torch.int8)}, rf"of another kind +1: {last} \(\d+\) int8, not"
    for statistic in ("running_mean", "running_var"):
        if buffers := [k for k in ours if k.endswith(statistic)]:
            yield {k: v for k, v in state.items() if k != buffers[0]}, rf"missing +1: {buffers[0]}"
    if buffers:
        norms = {k.rpartition(".")[0] for k in buffers}
        yield without(state, "running_mean", "running_var"), rf"missing +{2 * len(norms)}: "
        yield {k: v for k, v in state.items() if k.rpartition(".")[0] not in norms}, rf"missing +{4 * len(norms)}: "
    if scales := [k for k in ours if k.endswith(".gamma")]:
        yield without(state, ".gamma"), rf"missing +{len(scales)}: "


def require_loaded(name, file, state):
    for key, value in made(name, str(file)).state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, state[key.removeprefix("model.")].to(value.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("name", NARROW)
def test_a_file_is_a_models_whole_weights_or_refused(name, tmp_path):
    state = published(name)
    heads = ("fc.", "classifier.", "head.fc.", "head.weight", "head.bias")
    torch.save({k: v for k, v in state.items() if not k.startswith(heads)}, tmp_path / "headless.pth")
    require_loaded(name, tmp_path / "headless.pth", state)
    light = name in ("cnn", "resnet18", "vit_tiny_patch16_224", "convnext_atto")
    for content, words in list(damaged(state))[:: 1 if light else 6]:
        torch.save(content, tmp_path / "damaged.pth")
        with pytest.raises(UserError, match=rf"(?s)damaged.pth.*{words}.*the file begins +{next(iter(content))}"):
            made(name, str(tmp_path / "damaged.pth"))


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_every_kind_of_file_is_read_whole(name, tmp_path):
    from safetensors.torch import save_file

    state = published(name)
    save_file(state, tmp_path / "whole.safetensors")
    require_loaded(name, tmp_path / "whole.safetensors", state)
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    for content, wanted in {
        "plain": (state, state),
        "without counts": (without(state, "num_batches_tracked"), state),
        "of several GPUs": ({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, state),
        "averaged": ({"state_dict": {}, "state_dict_ema": state}, state),
        "beside other things": ({"epoch": 3, "teacher": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1}]}}, state),
        "of several GPUs, beside": ({"model_state_dict": {f"module.{k}": v for k, v in state.items()}}, state),
        "profiled": (state | {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)}, state),
        "of 2 classes": (state | {k: v[:2] for k, v in state.items() if k.startswith("fc.")}, state),
        "half": (half, half),
    }.values():
        torch.save(content, tmp_path / "whole.pth")
        require_loaded(name, tmp_path / "whole.pth", wanted)


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_what_is_no_trained_network_or_two_of_them_is_refused(name, tmp_path):
    state = published(name)
    variance = [k for k in state if k.endswith("running_var")][-1:]
    for content, words in (
        ({k: torch.zeros_like(v) for k, v in state.items()}, "no trained network: every kernel in it is of one value"),
        ({k: v if v.ndim < 2 else torch.full_like(v, 0.1) for k, v in state.items()}, "no trained network: every kernel"),
        (state | {k: state[k] - 1 for k in variance}, rf"below zero +1: {''.join(variance)}"),
        ({"student": state, "teacher": state}, r"missing +\d+: .*the file begins +student, teacher"),
    )[: 4 if variance else 2]:
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(UserError, match=rf"(?s)file.pth.*{words}"):
            made(name, str(tmp_path / "file.pth"))


def test_weights_of_another_depth_are_refused_either_way(tmp_path):
    import timm

    for name, other, kwargs in (
        ("resnet18", "resnet34", NARROW["resnet18"]), ("densenet121", "densenet169", NARROW["densenet121"]),
    ):  # fmt: skip
        for mine, theirs in ((name, other), (other, name))[: 2 if name == "resnet18" else 1]:
            torch.save(timm.create_model(theirs, **kwargs).state_dict(), tmp_path / "other.pth")
            with pytest.raises(UserError, match=rf"weights of another model than {mine}, .*or not all"):
                Timm(mine, str(tmp_path / "other.pth"), kwargs=kwargs)
    torch.save(timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=3).state_dict(), tmp_path / "other.pth")
    for depth, words in ((2, r"surplus +12: blocks\.2\."), (4, r"missing +12: blocks\.3\.")):
        with pytest.raises(UserError, match=words):
            Timm("vit_tiny_patch16_224", str(tmp_path / "other.pth"), kwargs={"embed_dim": 24, "depth": depth})


def test_what_is_adapted_to_the_images_counts_as_there(tmp_path):
    """The first layer for grey images, and a ViT's positions for another size."""
    for name, options in (
        ("resnet18", {"in_chans": 1}), ("convnext_atto", {"in_chans": 1}), ("vit_tiny_patch16_224", {"kwargs": {"img_size": 96}}),
    ):  # fmt: skip
        state = published(name)
        torch.save(state, tmp_path / "whole.pth")
        found = {k.removeprefix("model."): v for k, v in made(name, str(tmp_path / "whole.pth"), **options).state_dict().items()}
        adapted = [k for k, v in found.items() if v.shape != state[k].shape]
        assert len(adapted) == 1
        assert all(torch.equal(v, state[k]) for k, v in found.items() if k not in adapted)
        assert found[adapted[0]].min() > 0.05
    torch.save(published("resnet18") | {"conv1.weight": torch.rand(64, 1, 7, 7)}, tmp_path / "grey.pth")
    made("resnet18", str(tmp_path / "grey.pth"), in_chans=1)
    with pytest.raises(UserError, match=r"conv1 weight shape \(64, 1, 7, 7\)(?s:.*)Set backbone.in_chans"):
        made("resnet18", str(tmp_path / "grey.pth"))


def test_names_that_only_begin_otherwise_are_shown(tmp_path):
    inner = {f"net.{k}": v for k, v in published("resnet18").items()}
    torch.save({"state_dict": inner}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"nearest +conv1.weight: net.conv1.weight\n +the file begins +net.conv1.weight, net.bn1"):
        made("resnet18", str(tmp_path / "other.pth"))
    torch.save({"epoch": 1, "weights": inner}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"the file begins +net.conv1.weight, net.bn1"):  # it is found in there
        made("cnn", str(tmp_path / "other.pth"))
    assert torch.nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"


def test_one_channel_answers_as_the_replicated_grey_image(tmp_path):
    import torchvision

    torch.save(torchvision.models.alexnet().state_dict(), tmp_path / "weights.pth")
    one, three = (AlexNet(pretrained=str(tmp_path / "weights.pth"), in_chans=c).eval() for c in (1, 3))
    grey = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)


def test_pooling_over_pixels_is_the_average_the_largest_or_between():
    maps = torch.randn(2, 7, 3, 5, dtype=torch.double)
    lse = [LogSumExp(r)(maps) for r in (1e-4, 1.0, 1e3)]
    torch.testing.assert_close(lse[1], torch.log(maps.exp().mean((2, 3))), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse[0], maps.mean((2, 3)), rtol=0, atol=1e-2)
    torch.testing.assert_close(lse[2], maps.amax((2, 3)), rtol=0, atol=1e-2)
    images = torch.randn(2, 1, 64, 64)
    found = {}
    for spatial in (None, "avg", "max", "lse"):
        torch.manual_seed(0)
        backbone = Timm("densenet121", pretrained=False, in_chans=1, spatial=spatial).eval()
        assert backbone.num_features == 1024
        with torch.no_grad():
            found[spatial] = backbone(images)
        assert found[spatial].shape == (2, 1024)
    torch.testing.assert_close(found[None], found["avg"])  # DenseNet's own
    assert (found["max"] >= found["lse"] - 1e-5).all()
    assert (found["lse"] >= found["avg"] - 1e-5).all()
    assert (found["max"] > found["avg"] + 1e-3).any()
    with pytest.raises(UserError, match=r"backbone\.spatial=mean: it is avg, max, lse"):
        Timm("resnet18", pretrained=False, spatial="mean")
    with pytest.raises(UserError, match="which is no map"):
        Timm("vit_tiny_patch16_224", pretrained=False, spatial="max")(torch.zeros(1, 3, 224, 224))
