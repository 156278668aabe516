"""Datasets as tables of studies, their splits, and the way from a row to a batch."""

from xraylab.system.classes import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Augmentation": "augmentation",
        "CheXpert": "datasets.chexpert",
        "CsvTable": "datasets.csv_table",
        "Folder": "datasets.folder",
        "MedMNIST": "datasets.medmnist",
        "MIMIC": "datasets.mimic_cxr",
        "MimicTutorial": "datasets.mimic_tutorial",
        "MRNet": "datasets.mrnet",
        "MURA": "datasets.mura",
        "NIH": "datasets.nih",
        "DatasetReader": "datasets.base",
        "StudyDataModule": "datamodule",
        "StudyTable": "study_table",
    },
)
