"""Datasets as tables of studies, their splits, and the way from a row to a batch."""

from xraylab.system.classes import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Augmentation": "augmentation",
        "CheXpert": "datasets.chexpert",
        "CovidQuEx": "datasets.class_folders",
        "CsvTable": "datasets.csv_table",
        "Folder": "datasets.folder",
        "KneeGrades": "datasets.class_folders",
        "MedMNIST": "datasets.medmnist",
        "MIMIC": "datasets.mimic_cxr",
        "MimicTutorial": "datasets.mimic_tutorial",
        "MRNet": "datasets.mrnet",
        "MURA": "datasets.mura",
        "NIH": "datasets.nih",
        "PediatricPneumonia": "datasets.class_folders",
        "OpenI": "datasets.published_tables.reports",
        "PadChest": "datasets.published_tables.reports",
        "RSNAPneumonia": "datasets.published_tables.challenges",
        "SIIMPneumothorax": "datasets.published_tables.challenges",
        "VinDrCXR": "datasets.published_tables.challenges",
        "DatasetReader": "datasets.base",
        "StudyDataModule": "datamodule",
        "StudyTable": "study_table",
    },
)
