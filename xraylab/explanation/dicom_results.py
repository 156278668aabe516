"""Predictions as DICOM, made with highdicom (the extra ``dicom``): a structured report (TID 1500, a measurement report) of a
study, and heat maps as secondary captures, in the study that the images are of.

They are in the study and of the patient that the images' headers name, which is copied; nothing else of the headers is, and no
path. Both refer to their images. Codes of findings are SNOMED CT's where DICOM or common use has one for the bare finding, else
private ones of 99XRAYLAB.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from xraylab import __version__
from xraylab.data.findings import spelled
from xraylab.data.images.dicom import discreet
from xraylab.data.images.dicom_headers import UTF_8, DicomHeader
from xraylab.errors import UserError
from xraylab.explanation.explanations import Drawn

if TYPE_CHECKING:
    from highdicom import SOPClass
    from highdicom.sr import CodedConcept, MeasurementsAndQualitativeEvaluations, ObserverContext
    from pydicom import Dataset

PRIVATE = "99XRAYLAB"
RESEARCH = "research only, no medical device"
SAMPLE = "synthetic sample: results mean nothing for patients"
#: codes of SNOMED CT
SNOMED = {
    "abnormal": ("263654008", "Abnormal"),
    "atelectasis": ("46621007", "Atelectasis"),
    "cardiomegaly": ("8186001", "Cardiomegaly"),
    "consolidation": ("95436008", "Lung consolidation"),
    "edema": ("79654002", "Edema"),
    "fibrosis": ("112674009", "Fibrosis"),
    "fracture": ("125605004", "Fracture of bone"),
    "mass": ("4147007", "Mass"),
    "nodule": ("27925004", "Nodule"),
    "pleural_effusion": ("60046008", "Pleural effusion"),
    "pneumonia": ("233604007", "Pneumonia"),
    "pneumothorax": ("36118008", "Pneumothorax"),
}
UNFIT = "its header holds what no DICOM result may hold, as a date that is none"
SERIES = {"report": 9101, "maps": 9102}  # numbers, far from those of scanners


@dataclass(frozen=True)
class Model:
    """What predicted, as results name it.

    Attributes:
        name: of its architecture.
        version: of xraylab, and of its weights.
        run: the run's own name, without a folder.
    """

    name: str
    version: str
    run: str


@dataclass(frozen=True)
class Finding:
    """What a report says of one finding.

    Attributes:
        name: the label.
        probability: in [0,1].
        model: what said so.
        call: positive or not; None: nothing is called.
        threshold: of the call, of the probability as it is here; None: nothing is called.
        map: over the image that adds most; None: there is none.
    """

    name: str
    probability: float
    model: Model
    call: bool | None = None
    threshold: float | None = None
    map: Drawn | None = None


def require_highdicom() -> None:
    """Refuse where what writes DICOM is not installed.

    Raises:
        UserError: as said.
    """
    if not find_spec("highdicom") or not find_spec("pydicom"):
        raise UserError("format=dicom_sr needs highdicom and pydicom: pip install 'xraylab[dicom]'.")


def coded(finding: str) -> CodedConcept:
    """A finding's code.

    >>> coded("pneumothorax").value, coded("pneumothorax").scheme_designator
    ('36118008', 'SCT')
    >>> coded("Torn acl").value, coded("Torn acl").scheme_designator
    ('Torn acl', '99XRAYLAB')
    """
    from highdicom.sr import CodedConcept

    if finding in SNOMED:
        return CodedConcept(SNOMED[finding][0], "SCT", SNOMED[finding][1])
    return _own(finding, spelled(finding))


def made_of(
    headers: Mapping[str, DicomHeader], findings: Sequence[Finding], study: str, synthetic: bool
) -> tuple[bytes, dict[str, bytes]]:  # fmt: skip
    """The files of one study: its report, and by finding its heat maps.

    Args:
        headers: of its images by the images' names, all of one DICOM study, at least one.
        findings: at least one.
        study: what the study is called here, for errors.
        synthetic: the model or the images are of the synthetic sample.

    Raises:
        UserError: the headers do not allow it.
    """
    from pydicom.uid import generate_uid

    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of each attribute that it copies
    series, maps = str(generate_uid(prefix=None)), {}
    for number, finding in enumerate((f for f in findings if f.map is not None), start=1):
        if finding.map is not None:
            header = headers[finding.map.image]
            maps[finding.name] = _written(_capture(header, finding, finding.map, series, number, synthetic), header, study)
    report = _report(list(headers.values()), [_group(headers, finding) for finding in findings], findings, synthetic)
    return _written(report, next(iter(headers.values())), study), maps


def _written(result: SOPClass, header: DicomHeader, study: str) -> bytes:
    """A file's content, of the patient and in the study of a header.

    Raises:
        UserError: the header does not allow it.
    """
    file = io.BytesIO()
    with discreet(study, UNFIT):
        header.copy_to(result)
        result.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _words(synthetic: bool) -> str:
    return f"xraylab; {RESEARCH}" + f"; {SAMPLE}" * synthetic


def _series(synthetic: bool) -> str:
    return "xraylab, synthetic sample, research only" if synthetic else f"xraylab, {RESEARCH}"


def _own(value: str, meaning: str) -> CodedConcept:
    """A private code."""
    from highdicom.sr import CodedConcept

    return CodedConcept(value, PRIVATE, meaning[:64])


def _report(
    headers: Sequence[DicomHeader], groups: Sequence[MeasurementsAndQualitativeEvaluations], findings: Sequence[Finding],
    synthetic: bool,
) -> SOPClass:  # fmt: skip
    """The structured report of one study, still of nobody."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    models = list(dict.fromkeys(finding.model for finding in findings))
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=_observer(models)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(
        hd.sr.TextContentItem(codes.DCM.Comment, _words(synthetic), hd.sr.RelationshipTypeValues.CONTAINS)
    )
    return hd.sr.ComprehensiveSR(
        evidence=[_reference(header) for header in headers],
        content=content[0],
        series_instance_uid=generate_uid(prefix=None),
        series_number=SERIES["report"],
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer="xraylab",
        is_complete=True,
        specific_character_set=UTF_8,
        series_description=_series(synthetic),
        **_device(models),
        coding_schemes=[hd.coding_schemes.CodingSchemeIdentificationItem(PRIVATE, name="labels and terms of xraylab")],
    )


def _device(models: Sequence[Model]) -> dict[str, Any]:
    """What made a result, for the header."""
    return {
        "manufacturer_model_name": "; ".join(model.name for model in models)[:64],
        "software_versions": f"xraylab {__version__}",
        "device_serial_number": "; ".join(model.run for model in models)[:64],
    }


def _observer(models: Sequence[Model]) -> ObserverContext:
    """The models as the device that observed."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    names, versions, runs = ("; ".join(dict.fromkeys(getattr(m, of) for m in models)) for of in ("name", "version", "run"))
    return hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[names, versions, runs]),  # the same of the same models
            name="xraylab",
            manufacturer_name="xraylab",
            model_name=f"{names} ({versions})",
            serial_number=runs,
        ),
    )


def _group(headers: Mapping[str, DicomHeader], finding: Finding) -> MeasurementsAndQualitativeEvaluations:
    """What is said of one finding."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    ratio = hd.sr.CodedConcept("{0:1}", "UCUM", "range: 0:1")
    numbers = [hd.sr.Measurement(codes.DCM.Probability, float(finding.probability), ratio)]
    calls = []
    if finding.call is not None and finding.threshold is not None:
        numbers.append(hd.sr.Measurement(_own("threshold", "Probability from which on it is positive"), finding.threshold, ratio))
        called = codes.SCT.Positive if finding.call else codes.SCT.Negative
        calls.append(hd.sr.QualitativeEvaluation(_own("call", "Call at the threshold"), called))
    images = []
    if finding.map is not None:
        header, frame = headers[finding.map.image], finding.map.slice
        of_frame = None if frame is None else [frame]
        images.append(hd.sr.SourceImageForMeasurementGroup(header.uid("SOPClassUID"), header.uid("SOPInstanceUID"), of_frame))
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(generate_uid(prefix=None), finding.name),
        finding_type=coded(finding.name),
        algorithm_id=hd.sr.AlgorithmIdentification(
            finding.model.name, finding.model.version, [f"run {finding.model.run}", RESEARCH], manufacturer="xraylab"
        ),
        measurements=numbers,
        qualitative_evaluations=calls or None,
        source_images=images or None,
    )


def _reference(header: DicomHeader) -> Dataset:
    """An image as evidence, without its patient, who is copied in the end."""
    from pydicom import Dataset

    out = Dataset()
    blank = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
    for keyword in blank:
        setattr(out, keyword, "")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        setattr(out, keyword, header.uid(keyword))
    return out


def _capture(header: DicomHeader, finding: Finding, over: Drawn, series: str, number: int, synthetic: bool) -> SOPClass:
    """A heat map over its image as a secondary capture, still of nobody."""
    import highdicom as hd
    from pydicom import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    capture = hd.sc.SCImage(
        pixel_array=np.ascontiguousarray(over.pixels),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # that of the image follows
        study_instance_uid=header.uid("StudyInstanceUID"),
        series_instance_uid=series,
        series_number=SERIES["maps"],
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=number,
        manufacturer="xraylab",
        specific_character_set=UTF_8,
        series_description=_series(synthetic),
        **_device([finding.model]),
    )
    del capture.PatientOrientation
    header.copy_picture_to(capture)
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = header.uid("SOPClassUID"), header.uid("SOPInstanceUID")
    if over.slice is not None:
        source.ReferencedFrameNumber = over.slice
    source.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    source.SpatialLocationsPreserved = "YES"
    capture.SourceImageSequence = [source]
    capture.DerivationDescription = (
        f"Heat map over the source image: where it speaks for {spelled(finding.name)} to the model {finding.model.name}, run "
        f"{finding.model.run}. It shows what the model looked at, not what is the matter with a patient. {_words(synthetic)}"
    )[:1024]
    return capture
