"""Maps of real chest X-rays against radiologists' boxes, each picture explained by a model that never saw its patient.

    python experiments/explaining/chest_folds.py <ChestX-ray14> <weights.pt> [side]

The model is tf_efficientnet_lite0 with the weights given (a state dict), frozen, and a linear head on its features, fitted by
logistic regression in five folds of patients. What is printed is of pneumonia: the AUROC out of fold, and each method's measures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from xraylab.data.boxes import NIH_FILE, NIH_SIDE, Box, read_boxes
from xraylab.explanation.maps import explain
from xraylab.explanation.measures import Measured, located
from xraylab.losses import WeightedBCE
from xraylab.models import MaxProbability, StudyNet, Timm
from xraylab.training.study_module import StudyModule

FINDING = "pneumonia"
FOLDS = 5
STRENGTH = 3e-3  # C of the logistic regression, the best AUROC out of fold of .0003 and .003
METHODS = ("layers", "stem", "hirescam", "gradcam")


def images_of(root: Path, names: list[str], side: int) -> np.ndarray:
    """uint8 (N,side,side)."""
    read = (cv2.imread(str(root / "images" / name), cv2.IMREAD_GRAYSCALE) for name in names)
    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in read])


def features_of(module: StudyModule, images: np.ndarray) -> np.ndarray:
    """float (N,D)."""
    with torch.no_grad():
        return torch.cat([module.net.features(part) for part in torch.from_numpy(images)[:, None].split(8)]).numpy()


def heads(features: np.ndarray, truth: np.ndarray, patients: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Of each fold its rows, and the weight and bias of a head fitted on the others."""
    for train, held in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features, truth, patients):
        scaler = StandardScaler().fit(features[train])
        fitted = LogisticRegression(C=STRENGTH, max_iter=1000).fit(scaler.transform(features[train]), truth[train])
        weight = fitted.coef_[0] / scaler.scale_
        yield held, weight, float(fitted.intercept_[0] - weight @ scaler.mean_)


def main(root: Path, weights: str, side: int = 384) -> None:
    """Fit, explain, and print."""
    entries = pd.read_csv(root / "Data_Entry_2017_v2020.csv", dtype=str)
    names, patients = entries["Image Index"].tolist(), entries["Patient ID"].to_numpy()
    truth = entries["Finding Labels"].str.contains("Pneumonia").to_numpy()
    table = read_boxes(root / NIH_FILE).query("finding == @FINDING")
    net = StudyNet(Timm("tf_efficientnet_lite0", pretrained=weights), MaxProbability(), 1)
    module = StudyModule(net, WeightedBCE(), labels=[FINDING]).eval()
    images = images_of(root, names, side)
    features, scores = features_of(module, images), np.zeros(len(names))
    measured = {method: Measured() for method in METHODS}
    for held, weight, bias in heads(features, truth, patients):
        scores[held] = features[held] @ weight + bias
        with torch.no_grad():
            net.head[-1].weight[:] = torch.from_numpy(weight[None]).float()
            net.head[-1].bias[:] = bias
        for row in held:
            boxes = [
                Box(x / NIH_SIDE, y / NIH_SIDE, (x + w) / NIH_SIDE, (y + h) / NIH_SIDE)
                for x, y, w, h in table.loc[table["image"] == names[row], ["x", "y", "width", "height"]].to_numpy()
            ]
            for method in METHODS if boxes else ():
                heat = explain(module, images[row : row + 1], method=method)[0].pixels(0, side, side)
                measured[method].add(located({(names[row], None): heat}, {(names[row], None): boxes}), patients[row])
    print(f"AUROC out of fold {roc_auc_score(truth, scores):.3f}, n {len(names)}, {side} pixels")
    for method, of in measured.items():
        for name, e in of.estimates().items():
            print(f"{method:9} {name:16} {e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})  n {e.n}, patients {e.patients}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
