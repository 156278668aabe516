"""Every shipped backbone with every shipped pool, as ONNX and by onnxruntime: the probabilities of predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_config

from xraylab.config.instantiate import build
from xraylab.errors import UserError
from xraylab.exporting.formats import opened, traced, write
from xraylab.exporting.parity import MOST
from xraylab.exporting.runs import Leaf, program_of
from xraylab.losses import WeightedBCE
from xraylab.models import CNN, MaxFeature, StudyNet
from xraylab.system.paths import conf_dir
from xraylab.training.study_module import StudyModule

POOLS = sorted(path.stem for path in (conf_dir() / "pool").glob("*.yaml"))
DENSE = ["+backbone.kwargs.growth_rate=8", "+backbone.kwargs.block_config=[2,2,2,2]"]
RESNET = ["+backbone.kwargs.layers=[1,1,1,1]", "+backbone.kwargs.channels=[16,16,32,32]"]
#: a backbone of conf, to what makes it small; transformers of a fixed size beside those that ship
SMALL = {
    "alexnet": [], "cnn": ["backbone.layers=3", "backbone.filters=4"], "densenet121": DENSE, "densenet169": DENSE,
    "densenet201": DENSE, "resnet18": RESNET, "resnet18_small": RESNET, "resnet50": RESNET, "vgg16": [],
    "timm": ["backbone.name=mobilenetv3_small_050"],
}  # fmt: skip
SIZES = [(1, 64, 64), (4, 97, 50), (3, 223, 128), (2, 40, 64)]  # pictures, height, width


def model(backbone: str, pool: str, *words: str) -> StudyModule:
    cfg = compose_config(f"backbone={backbone}", f"pool={pool}", "backbone.pretrained=false", "image.size=64", *words)
    torch.manual_seed(0)
    net = StudyNet(build(cfg.backbone, "backbone"), build(cfg.pool, "pool"), 3)
    return StudyModule(net, WeightedBCE(), ["a", "b", "c"], {"size": 64, "rescale": True}, images={"views": True}).eval()


def largest(module: StudyModule, kind: str, path: Path, sizes=SIZES, example=(2, 70, 90)) -> float:
    """The largest difference of a probability between the file and predict."""
    graph = traced(program_of(Leaf(Path("run"), module, ("",)), [""], {}), [example])
    write(kind, graph, path, ["images"], {"labels": list(module.labels)})
    ask, rng, found = opened(kind, path, ["images"]), np.random.default_rng(0), 0.0
    for shape in sizes:
        images = rng.integers(0, 256, shape, np.uint8)
        wanted = module.predict(list(images))
        found = max(found, float(np.abs(ask({"images": images}) - list(wanted.values())).max()))
    return found


def test_all_that_ship_are_here():
    assert set(SMALL) == {path.stem for path in (conf_dir() / "backbone").glob("*.yaml")}


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("backbone", SMALL)
def test_a_file_gives_the_probabilities_of_predict(backbone, pool, tmp_path, record_property):
    found = largest(model(backbone, pool, *SMALL[backbone]), "onnx", tmp_path / "x.onnx")
    record_property("largest", found)
    assert found <= MOST / 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("densenet121", []), ("resnet50", []),
        ("timm", ["backbone.name=vit_tiny_patch16_224", "+backbone.kwargs.img_size=64", "+backbone.kwargs.depth=2"]),
        ("timm", ["backbone.name=swin_tiny_patch4_window7_224", "+backbone.kwargs.img_size=64"]),
        ("timm", ["backbone.name=convnext_atto", "backbone.spatial=lse"]),
    ],
    ids=["densenet121", "resnet50", "vit", "swin", "convnext"],
)  # fmt: skip
def test_whole_networks_and_transformers_are_written_too(backbone, words, tmp_path, record_property):
    found = largest(model(backbone, "max_feature", *words), "onnx", tmp_path / "x.onnx")
    record_property("largest", found)
    assert found <= MOST / 10


def test_torch_export_gives_the_same_and_says_what_onnx_says(tmp_path):
    assert largest(model("cnn", "attention", *SMALL["cnn"]), "torch_export", tmp_path / "x.pt2") <= MOST / 10
    said = {"labels": ""}
    torch.export.load(tmp_path / "x.pt2", extra_files=said)
    assert json.loads(said["labels"]) == ["a", "b", "c"]


def test_what_has_no_graph_is_refused_with_the_reason(tmp_path):
    class Host(CNN):
        """Looks at values on the host."""

        def forward(self, images):
            return super().forward(images) * (1 if float(images.mean()) > 0 else 2)

    module = StudyModule(StudyNet(Host(32, layers=1, filters=2), MaxFeature(), 1), WeightedBCE(), ["a"], {"size": 32}).eval()
    with pytest.raises(UserError, match=r"cannot be exported: torch\.export says: .*data-dependent"):
        largest(module, "onnx", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
