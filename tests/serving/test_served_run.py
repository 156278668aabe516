"""A served run: planes and views, combinations, and what it refuses."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

import xraylab
from xraylab.combine import main as combine_main
from xraylab.errors import UserError
from xraylab.serving.samples import Samples
from xraylab.serving.served_run import ServedRun, Wanted
from xraylab.serving.uploads import Decoded, Facts, Limits, Refusal, Study, Upload, decoded_study


@pytest.fixture
def exam(mrnet_root, tmp_path):
    """Decode planes of an exam, by the names that they are sent as."""

    def decode(names: dict[str, str], number: int = 0) -> Study:
        uploads = []
        for k, (name, plane) in enumerate(names.items()):
            source = sorted((mrnet_root / "valid" / plane).glob("*.npy"))[number]
            path = tmp_path / f"{k}_{len(list(tmp_path.iterdir()))}.npy"
            path.write_bytes(source.read_bytes())
            uploads.append(Upload(name, path))
        return decoded_study(uploads, Path(tempfile.mkdtemp(dir=tmp_path)), Limits())

    return decode


def volume(mrnet_root: Path, plane: str, number: int = 0) -> np.ndarray:
    return np.load(sorted((mrnet_root / "valid" / plane).glob("*.npy"))[number])


THREE = {"axial": "axial", "coronal": "coronal", "sagittal": "sagittal"}


def test_of_several_planes_the_one_that_the_model_sees_is_taken_and_the_others_are_named(exam, knee, knee_runs, mrnet_root):
    study = exam({f"1130/{plane}.npy": plane for plane in THREE})
    answer = knee.answer(study)
    wanted = xraylab.load(knee_runs["axial"]).predict(volume(mrnet_root, "axial"))
    assert {k: of["uncalibrated"] for k, of in answer["findings"].items()} == pytest.approx(wanted, abs=1e-6)
    assert {image["name"] for image in answer["images"]} == {"1130/axial.npy"}
    assert [of["file"] for of in answer["skipped"]] == ["1130/coronal.npy", "1130/sagittal.npy"]
    assert answer["id"] == "1130"


def test_another_plane_is_refused_by_its_name_and_by_its_header(exam, knee):
    with pytest.raises(Refusal, match="coronal") as raised:
        knee.answer(exam({"coronal/1130.npy": "coronal"}))
    assert raised.value.reason == "other_view"
    study = exam({"1130.npy": "coronal"})
    turned = [of._replace(facts=Facts(plane="coronal")) for of in study.files]
    with pytest.raises(Refusal, match="axial"):
        knee.answer(Study(study.id, turned))


def test_a_file_that_says_no_plane_is_taken_for_the_models_and_that_is_said(exam, knee):
    answer = knee.answer(exam({"1130.npy": "axial"}))
    assert "no file says its plane" in answer["warnings"][0]


def test_all_planes_are_one_study_whatever_their_names_order(exam, knee_runs, mrnet_root):
    served = ServedRun(knee_runs["all"])
    wanted = xraylab.load(knee_runs["all"]).predict({plane: volume(mrnet_root, plane) for plane in THREE})
    for names in (
        {f"{p}.npy": p for p in THREE},
        {f"{p}/7.npy": p for p in reversed(THREE)},
        {f"7_{p.upper()}.npy": p for p in THREE},
    ):
        answer = served.answer(exam(names), ["acl"], pictures=64)
        assert {k: of["uncalibrated"] for k, of in answer["findings"].items()} == pytest.approx(wanted, abs=1e-6)
        assert len(answer["images"]) == sum(len(volume(mrnet_root, plane)) for plane in THREE)
        assert sum(i["shares"]["acl"] for i in answer["images"]) + answer["maps"]["acl"]["rest"] == pytest.approx(
            answer["findings"]["acl"]["logit"], abs=1e-4
        )
    with pytest.raises(Refusal, match="nothing of sagittal"):
        served.answer(exam({"axial.npy": "axial", "coronal.npy": "coronal"}))
    with pytest.raises(Refusal, match=r"axial\.npy"):
        served.answer(exam({"1.npy": "axial", "2.npy": "coronal", "3.npy": "sagittal"}))


def test_a_combination_answers_by_its_members(exam, knee_runs, here, mrnet_root, tmp_path):
    runs = ",".join(str(knee_runs[plane]) for plane in ("axial", "coronal"))
    assert here(f"runs=[{runs}]", "method=mean", "hydra.run.dir=both", entry=combine_main)[0] == 0
    served = ServedRun(tmp_path / "both")
    assert set(served.wanted.planes) == {"axial", "coronal"}
    answer = served.answer(exam({f"{plane}.npy": plane for plane in ("axial", "coronal")}))
    own = [xraylab.load(knee_runs[plane]).predict(volume(mrnet_root, plane))["acl"] for plane in ("axial", "coronal")]
    assert answer["findings"]["acl"]["uncalibrated"] == pytest.approx(np.mean(own), abs=1e-5)
    assert {image["name"] for image in answer["images"]} == {"axial.npy", "coronal.npy"}


def test_a_checkpoint_alone_answers_and_says_what_is_unknown(exam, knee_runs, tmp_path):
    file = tmp_path / "alone.ckpt"
    file.write_bytes((knee_runs["axial"] / "checkpoints" / "best.ckpt").read_bytes())
    served = ServedRun(file)
    (acl, _) = served.answer(exam({"1.npy": "axial"}))["findings"].values()
    assert (acl["operating_point"], acl["calibrated"], acl["points"]["0.5"]["split"]) == ("0.5", False, None)
    assert served.decisions.would_have("acl", 0.5)["split"] is None


@pytest.mark.parametrize(
    ("wanted", "facts", "words"),
    [
        (Wanted(xray=True), Facts(modality="MR"), "trained on X-rays"),
        (Wanted(xray=False), Facts(modality="DX"), "trained on MRI"),
        (Wanted(view="frontal", xray=True), Facts(view="LL", modality="DX"), "frontal"),
        (Wanted(view="lateral"), Facts(view="PA"), "lateral"),
    ],
)  # fmt: skip
def test_another_modality_or_view_is_refused(knee, exam, wanted, facts, words, monkeypatch):
    study = exam({"1.npy": "axial"})
    monkeypatch.setattr(knee, "wanted", wanted)
    with pytest.raises(Refusal, match=words) as raised:
        knee.answer(Study(study.id, [of._replace(facts=facts) for of in study.files]))
    assert raised.value.reason == "other_view"


def test_an_operating_point_that_the_run_does_not_have_is_refused(knee_runs):
    with pytest.raises(UserError, match="youden"):
        ServedRun(knee_runs["axial"], point="yuden")


def test_what_is_not_like_the_training_data_is_refused_with_its_distance(knee, tmp_path, monkeypatch):
    path = tmp_path / "0.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (3, 40, 40)).astype(np.uint8))
    study = Study("noise", [Decoded("noise.npy", path, 3, Facts())])
    with pytest.raises(Refusal, match="not like those that the model was trained on") as raised:
        knee.answer(study)
    assert raised.value.reason == "unlike_training"
    assert raised.value.more["distance"] > raised.value.more["threshold"] > 0
    monkeypatch.setattr(knee, "refuse", False)
    assert knee.answer(study)["distribution"] == raised.value.more


def test_volumes_of_two_sizes_are_one_study_where_the_model_resizes(knee, tmp_path, monkeypatch):
    monkeypatch.setattr(knee, "refuse", False)
    files = []
    for k, side in enumerate((40, 50)):
        path = tmp_path / f"{k}.npy"
        np.save(path, np.random.default_rng(k).integers(0, 255, (3, side, side)).astype(np.uint8))
        files.append(Decoded(f"part{k}.npy", path, 3, Facts()))
    sizes = [(i["name"], i["slice"], i["width"]) for i in knee.answer(Study("two", files))["images"]]
    assert sizes == [(f"part{k}.npy", slice, side) for k, side in ((0, 40), (1, 50)) for slice in (1, 2, 3)]


def test_samples_are_studies_of_the_runs_own_kind(bone_run, knee_runs, tmp_path, monkeypatch):
    assert [of["findings"] for of in Samples(bone_run).names()][:2] == [["abnormal"], []]
    samples = Samples(knee_runs["all"])
    study = samples.study("1", tmp_path)
    assert {of.name.split("/")[0] for of in study.files} == set(THREE)
    assert ServedRun(knee_runs["all"]).answer(study)["findings"]["acl"]["probability"] > 0
    with pytest.raises(Refusal):
        samples.study("9", tmp_path)
    assert Samples(tmp_path / "none").names() == []
