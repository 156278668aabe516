"""Members' tables brought together: their groups and patients."""

from __future__ import annotations

import pytest
from test_combine import table

from xraylab.errors import UserError
from xraylab.evaluation.ensembles.alignment import alike, own_table, union_table


def test_groups_that_differ_are_named_together_and_unknown_patients_are_anothers():
    a, b = table("test", 0, 0.1), table("test", 1, 0.1, group="coronal")
    joined = alike([a.assign(patient=""), b], ["a", "b"])
    assert set(joined[0]["group"]) == {"axial+coronal"}
    assert joined[0]["patient"].equals(b["patient"])
    assert set(alike([a, b.assign(group="all")], ["a", "b"])[0]["group"]) == {"axial"}


def test_patients_are_put_together_study_by_study():
    a, b, c = (table("test", k, 0.1, n=8) for k in range(3))
    known = a["patient"].copy()
    a.loc[0:3, "patient"], b.loc[2:, "patient"] = "", ""
    found = [alike([a, b], ["a", "b"])[0], own_table([a, b.assign(group="axial")], ["axial", "coronal"])]
    for joined in found:
        assert joined["patient"].tolist() == [*known[:2], "", "", *known[4:]]
    assert union_table([a, b], ["a", "b"])["patient"].tolist() == [*known[:2], "", "", *known[4:]]
    with pytest.raises(UserError, match="runs b and c have other patients: test0 is test-p0 and x, test1 is test-p0 and x"):
        alike([a, b, c.assign(patient=["x", "x", *known[2:]])], ["a", "b", "c"])
    with pytest.raises(UserError, match=r"have other groups of the same studies: axial\+coronal\. With method=own every run"):
        own_table([a, b.assign(group="coronal")], ["axial", "coronal"])
