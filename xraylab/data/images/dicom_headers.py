"""Whose a DICOM file is: the patient and the study in its header, for results that go back to that study and nowhere else.

Nothing else of :mod:`xraylab` reads who a patient is; no log and no error quotes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xraylab.data.images.dicom import discreet, require_pydicom
from xraylab.errors import UserError, listed

if TYPE_CHECKING:
    from pydicom import Dataset

#: what a result in the same study has as the images have it: of the patient, and of the study
PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence",
)  # fmt: skip
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName",
)  # fmt: skip
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
#: of the picture, for a picture made of it
PICTURE = ("PatientOrientation", "Laterality", "BurnedInAnnotation")
SAME = ("StudyInstanceUID", "PatientID", "IssuerOfPatientID")  # of all images of one study
UTF_8 = "ISO_IR 192"


@dataclass(frozen=True)
class DicomHeader:
    """What a file says of its patient, its study and itself.

    Attributes:
        path: of the file.
        dataset: these elements alone, as far as the file has them, text decoded.
    """

    path: Path
    dataset: Dataset = field(repr=False)

    def uid(self, keyword: str) -> str:
        """One of those that every header must have."""
        return str(self.dataset[keyword].value)

    def copy_to(self, result: Dataset) -> None:
        """Put the patient and the study into a result, as they are here; what is not here goes from there or is left blank."""
        from copy import deepcopy

        for keyword in (*PATIENT, *STUDY):
            if keyword in self.dataset:
                result[keyword] = deepcopy(self.dataset[keyword])
            elif keyword in result:
                setattr(result, keyword, None)
        result.SpecificCharacterSet = UTF_8

    def copy_picture_to(self, result: Dataset) -> None:
        """Put what holds of the picture as well as of one made of it into a result: how it lies, and if text is burned in."""
        for keyword in PICTURE:
            if keyword in self.dataset:
                result[keyword] = self.dataset[keyword]
        if "PatientOrientation" not in result:
            result.PatientOrientation = None  # not known


def read_header(path: Path) -> DicomHeader:
    """Whose a file is.

    Raises:
        UserError: pydicom is not installed, or the header cannot be read, or it lacks what places a result in the same study.
    """
    require_pydicom(path)
    from pydicom import dcmread
    from pydicom.uid import UID

    wanted: Any = ["SpecificCharacterSet", *PATIENT, *STUDY, *NEEDED, *PICTURE]
    with discreet(path, "a DICOM file whose header cannot be read"):
        dataset = dcmread(path, force=True, specific_tags=wanted, stop_before_pixels=True)
        dataset.decode()
        if missing := [keyword for keyword in NEEDED if not dataset.get(keyword)]:
            raise UserError(f"{path}: its header has no {' and no '.join(missing)}, which a result in its study needs.")
        if wrong := [keyword for keyword in NEEDED if not UID(str(dataset[keyword].value)).is_valid]:
            raise UserError(f"{path}: {listed(wrong)} of its header is not a UID, so no result can be put in its study.")
        if any("\ufffd" in str(element.value) for element in dataset):
            raise UserError(f"{path}: text in its header is not in the character set that it names, so it cannot be copied.")
    return DicomHeader(path, dataset)


def require_one_study(headers: Sequence[DicomHeader]) -> None:
    """Refuse files of several DICOM studies, or patients, as one.

    Raises:
        UserError: as said.
    """
    for keyword in SAME:
        values = {str(header.dataset.get(keyword) or "") for header in headers}
        if len(values) > 1:
            raise UserError(
                f"{headers[0].path} and {len(headers) - 1} more, one study here, differ in {keyword}: there is no one study that "
                "a result could be put in."
            )
