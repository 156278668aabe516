"""DICOM results of predictions: read back by pydicom and by highdicom, they say what the table says, in the images' study."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from test_predict import here as here
from test_predict import mura as mura
from test_predict import run_of, table_of

from xraylab.data.images.dicom_headers import read_header
from xraylab.data.synthetic.pictures import draw_picture
from xraylab.errors import UserError
from xraylab.explanation.dicom_results import SNOMED, Finding, Model, made_of
from xraylab.explanation.explanations import Drawn, Explainer, draw
from xraylab.explanation.maps import METHODS
from xraylab.inference.inputs import LEFT_OUT, find_studies
from xraylab.inference.studies import Options

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")
from data.images.test_dicom import dataset  # noqa: E402
from pydicom.sr.codedict import codes  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402

HEADER = {
    "PatientName": "Müller^Jörg", "PatientID": "PID-271828", "IssuerOfPatientID": "Ward 7", "PatientBirthDate": "19470101",
    "PatientSex": "M", "StudyDate": "20240131", "StudyTime": "101112", "StudyID": "S1", "StudyDescription": "Hand in 2 Ebenen",
    "AccessionNumber": "A-77", "ReferringPhysicianName": "DR^WHO", "SpecificCharacterSet": "ISO_IR 100",
}  # fmt: skip
OTHER = {"InstitutionName": "Hospital of Nowhere", "OperatorsName": "OPERATOR^ANNE", "PatientAddress": "1 Elm Street"}
CPU = Options(workers=0)


def dicom(path: Path, seed: int = 0, frames: int = 0, study: str | None = None, without: tuple[str, ...] = (), **header) -> Path:
    """A file with a whole header."""
    pictures = [cv2.resize(draw_picture(np.random.default_rng(seed + k), blob=True), (72, 60)) for k in range(frames or 1)]
    made = dataset(np.stack(pictures) if frames else pictures[0], frames=bool(frames), **{**HEADER, **OTHER, **header})
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = study or generate_uid(), generate_uid()
    made.PatientOrientation = ["L", "F"]
    for keyword in without:
        delattr(made, keyword)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format="SOPInstanceUID" not in without)
    return path


def texts(found) -> str:
    """All that a file says, but its pixels."""
    found = pydicom.dcmread(found)
    return "\n".join(str(element.value) for element in found.iterall() if element.keyword != "PixelData")


@pytest.fixture(scope="module")
def two(tmp_path_factory, chexpert_root):
    """A run on two findings of chest X-rays."""
    findings = ("dataset=chexpert", f"dataset.root={chexpert_root}", "dataset.findings=[edema,support_devices]")
    return run_of(tmp_path_factory.mktemp("dicom_results") / "chexpert", *findings)


def test_a_report_says_what_the_table_says(here, mura, tmp_path):
    top = tmp_path / "in"
    study = generate_uid()
    dicom(top / "visit" / "a.dcm", 1, study=study)
    dicom(top / "visit" / "b.dcm", 2, study=study)
    dicom(top / "many.dcm", 3, frames=3)
    said = here(f"run={mura}", f"input={top}", "format=dicom_sr", "output=out", "threshold=0.3")
    assert "COPIES who the patient is" in said
    assert "SYNTHETIC SAMPLE" in said
    here(f"run={mura}", f"input={top}", "output=out.csv", "threshold=0.3")
    table = table_of(tmp_path / "empty" / "out.csv").set_index("id")
    out = tmp_path / "empty" / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"{i}.{e}.dcm" for i in ("many", "visit") for e in ("sr", "abnormal.sc")
    )
    assert not (tmp_path / "empty" / "out.skipped.csv").exists()
    for name in table.index:
        report = hd.sr.srread(out / f"{name}.sr.dcm")
        (group,) = report.content.get_image_measurement_groups()
        probability, threshold = group.get_measurements()
        assert probability.name == codes.DCM.Probability
        assert probability.value == float(table["p_abnormal"][name])
        assert (probability.unit.value, probability.unit.scheme_designator) == ("{0:1}", "UCUM")
        assert threshold.value == 0.3
        (call,) = group.get_qualitative_evaluations()
        assert call.value == (codes.SCT.Positive if int(table["call_abnormal"][name]) else codes.SCT.Negative)
        assert group.finding_type == codes.SCT.Abnormal
        assert group.tracking_identifier == "abnormal"


def test_all_is_in_one_study_of_one_patient_and_nothing_else_is_copied(here, mura, tmp_path, capfd):
    top, study = tmp_path / "secret folder", generate_uid()
    sources = [dicom(top / "visit" / f"{k}.dcm", k, study=study, PatientSex="W", PatientBirthDate="1947") for k in range(2)]
    said = here(f"run={mura}", f"input={top}", "format=dicom_sr", "output=out")
    files = sorted((tmp_path / "empty" / "out").iterdir())
    assert [f.name for f in files] == ["visit.abnormal.sc.dcm", "visit.sr.dcm"]
    found, asked = [pydicom.dcmread(f) for f in files], [pydicom.dcmread(f) for f in sources]
    for result in found:
        for keyword, value in {**HEADER, "PatientSex": "W", "PatientBirthDate": "1947", "StudyInstanceUID": study}.items():
            if keyword != "SpecificCharacterSet":
                assert str(result[keyword].value) == str(asked[0][keyword].value) == value, "as it is, though it be wrong"
    uids = [r[k].value for r in (*found, *asked) for k in ("SeriesInstanceUID", "SOPInstanceUID")]
    assert len(set(uids)) == len(uids) == 8
    assert [r.file_meta.MediaStorageSOPInstanceUID for r in found] == [r.SOPInstanceUID for r in found]
    evidence = found[1].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert {i.ReferencedSOPInstanceUID for s in evidence for i in s.ReferencedSOPSequence} == {a.SOPInstanceUID for a in asked}
    assert (found[1].VerificationFlag, found[1].PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    written = [texts(f) for f in files]
    for text in written:
        assert "research only, no medical device" in text
        assert "synthetic sample: results mean nothing for patients" in text
        assert not [s for s in (*OTHER.values(), str(tmp_path), "secret folder", str(mura)) if s in text]
        assert mura.name in text
    names = [HEADER[k] for k in ("PatientName", "PatientID", "ReferringPhysicianName", "AccessionNumber")]
    for text in (said, *capfd.readouterr()):
        assert not [s for s in (*names, *OTHER.values()) if s in text]


def test_heat_maps_are_those_of_explaining(here, mura, tmp_path):
    source = dicom(tmp_path / "in" / "many.dcm", 3, frames=3)
    here(f"run={mura}", f"input={source}", "format=dicom_sr", "output=out")
    capture = pydicom.dcmread(tmp_path / "empty" / "out" / "many.abnormal.sc.dcm")
    explainer = Explainer(mura, find_studies(str(source)), CPU)
    (explained,) = explainer.explained("many", explainer.read("many"), ["abnormal"], METHODS[0])
    draw(explained, tmp_path / "png", 1, "")
    (png,) = [p for p in (tmp_path / "png").iterdir() if p.name != "sheet.png"]
    assert np.array_equal(capture.pixel_array, cv2.cvtColor(cv2.imread(str(png)), cv2.COLOR_BGR2RGB))
    assert capture.pixel_array.shape == (60, 72, 3)
    assert len(np.unique(capture.pixel_array.reshape(-1, 3).std(1))) > 1, "there is colour"
    best = explained.table().sort_values("share")["slice"].iloc[-1]
    (of,) = capture.SourceImageSequence
    asked = pydicom.dcmread(source)
    assert (of.ReferencedSOPInstanceUID, of.ReferencedFrameNumber) == (asked.SOPInstanceUID, best)
    assert list(capture.PatientOrientation) == ["L", "F"]
    assert capture.ImageType[0] == "DERIVED"
    assert "BurnedInAnnotation" not in capture, "the image does not say"
    assert "where it speaks for Abnormal" in capture.DerivationDescription
    (group,) = hd.sr.srread(tmp_path / "empty" / "out" / "many.sr.dcm").content.get_image_measurement_groups()
    (image,) = group.source_images
    assert image.referenced_sop_instance_uid == asked.SOPInstanceUID
    assert image.referenced_frame_numbers == [best]


def test_runs_side_by_side_and_combinations_report_too(here, mura, two, tmp_path):
    from xraylab.evaluation.ensembles.combination import Combination, write_combination

    dicom(tmp_path / "a.dcm", 5, BurnedInAnnotation="YES")
    (tmp_path / "mean").mkdir()
    write_combination(tmp_path / "mean", Combination("mean", ("a", "b")), [mura, mura], "MURA-v1.1")
    (tmp_path / "mean" / "config.yaml").write_text("method: mean\n")
    runs = f"run=[{tmp_path / 'mean'},{two}]"
    here(runs, f"input={tmp_path / 'a.dcm'}", "format=dicom_sr", "output=out", "threshold=0")
    here(runs, f"input={tmp_path / 'a.dcm'}", "output=out.csv")
    out = tmp_path / "empty" / "out"
    table = table_of(tmp_path / "empty" / "out.csv")
    groups = hd.sr.srread(out / "a.sr.dcm").content.get_image_measurement_groups()
    names = ["abnormal", "edema", "support_devices"]
    assert [g.tracking_identifier for g in groups] == names
    assert [g.get_measurements()[0].value for g in groups] == [float(table[f"p_{n}"][0]) for n in names]
    assert (groups[2].finding_type.scheme_designator, groups[2].finding_type.value) == ("99XRAYLAB", "support_devices")
    assert sorted(p.name for p in out.glob("*.sc.dcm")) == [f"a.{n}.sc.dcm" for n in names], "all are called positive"
    captures = [pydicom.dcmread(p) for p in sorted(out.glob("*.sc.dcm"))]
    assert len({c.SeriesInstanceUID for c in captures}) == 1
    assert len({c.SOPInstanceUID for c in captures}) == 3
    assert [c.InstanceNumber for c in captures] == [1, 2, 3]
    assert {c.BurnedInAnnotation for c in captures} == {"YES"}, "as the image says"
    assert "mean of 2 models" in texts(out / "a.sr.dcm")


def test_a_threshold_that_was_chosen_is_said_on_the_scale_of_the_probability(here, mura, tmp_path):
    import json
    import shutil

    run = Path(shutil.copytree(mura, tmp_path / "run"))
    chosen = json.loads((run / "operating_points.json").read_text())
    chosen["labels"]["abnormal"]["temperature"] = {"value": 2.0, "reason": None}
    chosen["labels"]["abnormal"]["thresholds"]["youden"] = {"value": 0.2, "reason": None}
    (run / "operating_points.json").write_text(json.dumps(chosen))
    dicom(tmp_path / "a.dcm", 5)
    keys = ("threshold=youden", "calibrate=true", f"input={tmp_path / 'a.dcm'}", f"run={run}")
    here(*keys, "format=dicom_sr")
    here(*keys, "output=out.csv")
    table = table_of(tmp_path / "empty" / "out.csv")
    (group,) = hd.sr.srread(
        run / "predictions" / "a_calibrated_calls_dicom_sr" / "a.sr.dcm"
    ).content.get_image_measurement_groups()
    probability, threshold = group.get_measurements()
    assert probability.value == float(table["p_abnormal"][0])
    assert threshold.value == pytest.approx(1 / 3)
    assert (group.get_qualitative_evaluations()[0].value == codes.SCT.Positive) == bool(int(table["call_abnormal"][0]))


def test_one_bad_file_costs_that_file_only(here, mura, tmp_path):
    top = tmp_path / "in"
    study = generate_uid()
    dicom(top / "good.dcm", 1)
    dicom(top / "half" / "a.dcm", 2, study=study)
    dicom(top / "half" / "b.dcm", 3, study=study)
    wrong = dicom(top / "wrong.dcm", 7)
    wrong.write_bytes(wrong.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 192"))
    (top / "half" / "b.dcm").write_bytes((top / "half" / "a.dcm").read_bytes()[:-500])
    dicom(top / "nameless.dcm", 4, without=("StudyInstanceUID",))
    dicom(top / "mixed" / "a.dcm", 5)
    dicom(top / "mixed" / "b.dcm", 6)
    cv2.imwrite(str(top / "picture.png"), np.zeros((9, 9), np.uint8))
    said = here(f"run={mura}", f"input={top}", "format=dicom_sr", "output=out")
    out = tmp_path / "empty" / "out"
    assert sorted(p.name for p in out.glob("*.sr.dcm")) == ["good.sr.dcm", "half.sr.dcm"]
    skipped = pd.read_csv(out.with_name("out.skipped.csv")).set_index("id")
    assert skipped["study"].to_dict() == {
        "half": "predicted from the rest", "nameless": LEFT_OUT, "mixed": LEFT_OUT, "picture": LEFT_OUT, "wrong": LEFT_OUT,
    }  # fmt: skip
    assert "its header has no StudyInstanceUID" in skipped["reason"]["nameless"]
    assert "differ in StudyInstanceUID" in skipped["reason"]["mixed"]
    assert "not a DICOM file" in skipped["reason"]["picture"]
    assert "text in its header is not in the character set that it names" in skipped["reason"]["wrong"]
    assert "predicted 2 studies, 4 left out" in said
    evidence = pydicom.dcmread(out / "half.sr.dcm").CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(evidence) == 1, "of the file that was seen alone"


def test_what_is_no_dicom_is_refused_and_nothing_written(here, mura, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((2, 40, 40), np.uint8))
    source = dicom(tmp_path / "a.dcm", 1)
    bare = dicom(tmp_path / "bare.dcm", 1, without=("SeriesInstanceUID",))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for typed, words in (
        (["input=test"], "input=test: format=dicom_sr puts results in the study of DICOM files"),
        ([f"input={tmp_path / 'a.png'}"], r"has no study of DICOM files.*a\.png is no DICOM file"),
        ([f"input={tmp_path / 'b.npy'}"], "has no study of DICOM files"),
        ([f"input={bare}"], "not one of 1 studies can be written as DICOM: .* its header has no SeriesInstanceUID"),
        ([f"input={source}", "overwrite=true"], "writes into a new folder and replaces nothing"),
        ([f"input={source}", "output=../full"], "the folder is not empty"),
    ):
        with pytest.raises(UserError, match=words):
            here(f"run={mura}", "format=dicom_sr", *(["output=out"] if len(typed) == 1 else []), *typed)
        assert not list((tmp_path / "empty").iterdir())
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["file"]
    monkeypatch.setattr("xraylab.explanation.dicom_results.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'xraylab\[dicom\]'"):
        here(f"run={mura}", "format=dicom_sr", "output=out", f"input={source}")


def test_names_of_every_script_long_labels_and_pictures_of_odd_size(tmp_path):
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    source = dicom(tmp_path / "a.dcm", PatientName=name, SpecificCharacterSet=["", "ISO 2022 IR 87"], StudyDescription="Hand")
    model = Model("resnet18", "1", "2026-01-31_12-00-00")
    over = Drawn("a", None, 1, 0.2, np.random.default_rng(0).integers(0, 255, (61, 73, 3)).astype(np.uint8))
    findings = [Finding("pneumothorax", 0.1 + 0.2, model, True, 0.3, over), Finding("l" * 80, 1e-12, model, False, 0.3)]
    report, maps = made_of({"a": read_header(source)}, findings, "a", synthetic=False)
    found, capture = (pydicom.dcmread(io.BytesIO(content)) for content in (report, maps["pneumothorax"]))
    for result in (found, capture):
        assert str(result.PatientName) == name
        assert result.PatientName.ideographic == "山田^太郎"
        assert "ynthetic" not in str(result.to_json())
    assert np.array_equal(capture.pixel_array, over.pixels)
    groups = hd.sr.srread(io.BytesIO(report)).content.get_image_measurement_groups()
    assert [g.get_measurements()[0].value for g in groups] == [0.1 + 0.2, 1e-12], "to the last digit"
    assert groups[1].finding_type.value == "l" * 80
    assert groups[0].finding_type == codes.SCT.Pneumothorax


def test_a_model_without_places_reports_without_a_map(here, mura, tmp_path, monkeypatch):
    def explained(*_):
        raise UserError("no layer has places")

    monkeypatch.setattr(Explainer, "explained", explained)
    said = here(f"run={mura}", f"input={dicom(tmp_path / 'a.dcm')}", "format=dicom_sr", "output=out")
    assert "there are no heat maps: no layer has places" in said
    assert [file.name for file in (tmp_path / "empty" / "out").iterdir()] == ["a.sr.dcm"]


@pytest.mark.slow
def test_the_command_ends_with_2_where_it_refuses(command, mura, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40), np.uint8))
    done = command("predict", f"run={mura}", f"input={tmp_path / 'a.png'}", "format=dicom_sr", f"output={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "has no study of DICOM files" in done.stderr
    assert not (tmp_path / "out").exists()


def test_codes_of_findings_are_those_of_dicom():
    """As far as DICOM's own tables have them; cardiomegaly is another there, atelectasis, pneumonia and others are not."""
    own = {value: meaning for of in pydicom.sr._concepts_dict.concepts["SCT"].values() for value, (meaning, _) in of.items()}
    there = {name: own[value] for name, (value, _) in SNOMED.items() if value in own}
    assert there == {name: SNOMED[name][1] for name in there}
    assert len(there) >= 7
