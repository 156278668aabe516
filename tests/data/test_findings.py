"""One vocabulary of findings and views."""

from __future__ import annotations

import pytest

from xraylab.data.findings import CHEXPERT, COMPETITION, NIH, VIEWS, chosen, finding, wanted_views
from xraylab.errors import UserError


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Pleural Effusion", "pleural_effusion"), ("Effusion", "pleural_effusion"), ("pleural_effusion ", "pleural_effusion"),
        ("Airspace Opacity", "lung_opacity"), ("Pleural_Thickening", "pleural_thickening"), ("No Finding", "no_finding"),
    ],
)  # fmt: skip
def test_every_spelling_is_one_name(given, name):
    assert finding(given) == name
    assert finding(name) == name


def test_the_vocabulary_is_its_own():
    for names in (CHEXPERT, NIH, COMPETITION):
        assert tuple(map(finding, names)) == names
        assert len(set(names)) == len(names)
    assert len(CHEXPERT) == len(NIH) == 14
    assert set(COMPETITION) <= set(CHEXPERT) & set(NIH)


def test_findings_are_chosen_in_the_order_given():
    assert chosen("all", CHEXPERT) == CHEXPERT
    assert chosen(["all"], CHEXPERT) == CHEXPERT
    assert chosen("competition", CHEXPERT) == COMPETITION
    assert chosen(["Edema", "airspace-opacity"], CHEXPERT) == ("edema", "lung_opacity")
    assert chosen("all", NIH, ["no_finding"]) == NIH
    assert chosen("No Finding", NIH, ["no_finding"]) == ("no_finding",)


@pytest.mark.parametrize("given", ["hernia", [], ["edema", "Edema"], None, 3, "competition,edema"])
def test_findings_that_a_dataset_has_not_are_refused(given):
    with pytest.raises(UserError, match="it is all, competition, or some of these, each once: no_finding, "):
        chosen(given, CHEXPERT)


def test_views_stand_for_kinds():
    assert wanted_views("frontal") == ("pa", "ap", "frontal")
    assert wanted_views(["lateral", "pa", "lateral"]) == ("lateral", "pa")
    assert set(wanted_views("all")) == {kind for kinds in VIEWS.values() for kind in kinds}


@pytest.mark.parametrize("given", ["fronal", [], ["pa", "ll"], None, 1])
def test_views_that_are_none_are_refused(given):
    with pytest.raises(UserError, match="it is frontal, lateral, pa, ap, all, or a list of them"):
        wanted_views(given)
