"""Published numbers and names of datasets, which both their readers and their drawings have to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published number of a dataset, for ``python -m xraylab.check`` to compare a download with.

    Attributes:
        unit: ``studies``, ``patients``, ``images``, or ``images a study``: the least and the most.
        number: it; (least, most) of images a study.
        split: of the study table as read; None: of all.
        group: None: of all.
        label: only of studies in which this label has this value.
        note: where the number comes from, if it is not certain; it is then shown, and judged by nothing.
    """

    unit: str
    number: int | tuple[int, int]
    split: str | None = None
    group: str | None = None
    label: tuple[str, int] | None = None
    note: str = ""


MRNET_PLANES = ("axial", "coronal", "sagittal")
MRNET: dict[str, dict[str, Any]] = {  # exams, least and most slices by plane, positives by task
    "train": {
        "exams": 1130,
        "slices": {"axial": (19, 61), "coronal": (17, 58), "sagittal": (17, 51)},
        "positives": {"abnormal": 913, "acl": 208, "meniscus": 397},
    },
    "heldout": {
        "exams": 120,
        "slices": {"axial": (20, 52), "coronal": (17, 48), "sagittal": (21, 45)},
        "positives": {"abnormal": 95, "acl": 54, "meniscus": 52},
    },
}

MURA_STUDIES = {  # by body part: normal and abnormal, of train and of valid; as the literature counts them
    "elbow": ((1094, 660), (92, 66)), "finger": ((1280, 655), (92, 83)), "forearm": ((590, 287), (69, 64)),
    "hand": ((1497, 521), (101, 66)), "humerus": ((321, 271), (68, 67)), "shoulder": ((1364, 1457), (99, 95)),
    "wrist": ((2134, 1326), (140, 97)),
}  # fmt: skip

CHEXPERT_IMAGES = {  # of train: positive, negative, uncertain
    "no_finding": (22381, 0, 0), "enlarged_cardiomediastinum": (10798, 21638, 12403), "cardiomegaly": (27000, 11116, 8087),
    "lung_opacity": (105581, 6599, 5598), "lung_lesion": (9186, 1270, 1488), "edema": (52246, 20726, 12984),
    "consolidation": (14783, 28097, 27742), "pneumonia": (6039, 2799, 18770), "atelectasis": (33376, 1328, 33739),
    "pneumothorax": (19448, 56341, 3145), "pleural_effusion": (86187, 35396, 11628), "pleural_other": (3523, 316, 2653),
    "fracture": (9040, 2512, 642), "support_devices": (116001, 6137, 1079),
}  # fmt: skip

_ORGANS = "bladder femur-left femur-right heart kidney-left kidney-right liver lung-left lung-right pancreas spleen"
_ORGANS_3D = "liver kidney-right kidney-left femur-right femur-left bladder heart lung-right lung-left spleen pancreas"


@dataclass(frozen=True)
class Subset:
    """The published description of one set of MedMNIST. Two-class sets have one label, class 1.

    Attributes:
        labels: class or finding names in the order of the file; ``negative|positive`` for two classes.
        counts: train, val, test as published (MedMNIST v2).
        kind: ``binary``, ``classes`` (exclusive) or ``findings`` (multi-label).
    """

    labels: str
    counts: tuple[int, int, int]
    kind: str = "classes"
    colour: bool = False
    volume: bool = False


MEDMNIST = {
    "pathmnist": Subset(
        "adipose background debris lymphocytes mucus smooth-muscle normal-colon-mucosa cancer-associated-stroma "
        "colorectal-adenocarcinoma-epithelium", (89996, 10004, 7180), colour=True),
    "chestmnist": Subset(
        "atelectasis cardiomegaly pleural_effusion infiltration mass nodule pneumonia pneumothorax consolidation edema "
        "emphysema fibrosis pleural_thickening hernia", (78468, 11219, 22433), "findings"),
    "dermamnist": Subset(
        "actinic-keratoses basal-cell-carcinoma benign-keratosis dermatofibroma melanoma melanocytic-nevi vascular-lesions",
        (7007, 1003, 2005), colour=True),
    "octmnist": Subset("choroidal-neovascularization diabetic-macular-edema drusen normal", (97477, 10832, 1000)),
    "pneumoniamnist": Subset("normal pneumonia", (4708, 524, 624), "binary"),
    "retinamnist": Subset("grade-0 grade-1 grade-2 grade-3 grade-4", (1080, 120, 400), colour=True),
    "breastmnist": Subset("malignant normal-or-benign", (546, 78, 156), "binary"),
    "bloodmnist": Subset(
        "basophil eosinophil erythroblast immature-granulocytes lymphocyte monocyte neutrophil platelet",
        (11959, 1712, 3421), colour=True),
    "tissuemnist": Subset(
        "collecting-duct distal-convoluted-tubule glomerular-endothelial-cells interstitial-endothelial-cells leukocytes "
        "podocytes proximal-tubule-segments thick-ascending-limb", (165466, 23640, 47280)),
    "organamnist": Subset(_ORGANS, (34561, 6491, 17778)),
    "organcmnist": Subset(_ORGANS, (12975, 2392, 8216)),
    "organsmnist": Subset(_ORGANS, (13932, 2452, 8827)),
    "organmnist3d": Subset(_ORGANS_3D, (971, 161, 610), volume=True),
    "nodulemnist3d": Subset("benign malignant", (1158, 165, 310), "binary", volume=True),
    "adrenalmnist3d": Subset("normal hyperplasia", (1188, 98, 298), "binary", volume=True),
    "fracturemnist3d": Subset(
        "buckle-rib-fracture nondisplaced-rib-fracture displaced-rib-fracture", (1027, 103, 240), volume=True),
    "vesselmnist3d": Subset("vessel aneurysm", (1335, 191, 382), "binary", volume=True),
    "synapsemnist3d": Subset("inhibitory excitatory", (1230, 177, 352), "binary", volume=True),
}  # fmt: skip
