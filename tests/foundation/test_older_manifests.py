"""Facts that manifests have not always had: tokens that leave inside the last layer, groups of merged tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lifedeploy.artifact import read_manifest
from lifedeploy.errors import ArtifactError
from lifedeploy.manifest import Manifest
from lifedeploy.records import GraphRecord
from lifedeploy.schedule import Schedule
from tests.foundation.test_artifact import MANIFEST, SPEC
from tests.foundation.test_manifest import FULL, plain

MERGED = replace(
    MANIFEST,
    spec=replace(
        SPEC,
        method="tome",
        options={"r": "30", "inflect": 0.0},
        schedule=Schedule.from_counts(196, 12, (166, 136, 106), (4, 7, 12)),
    ),
    graph=GraphRecord(form="per-stage", kept=(4, 7, 12), scores=False, groups=True),
)


def test_a_manifest_without_them_says_what_it_always_said():
    data = plain()
    assert "last" not in data["spec"]["schedule"] or data["spec"]["schedule"].pop("last") is None
    data["graph"].pop("groups", None)
    found = Manifest.from_dict(data)
    assert found.spec == FULL.spec
    assert (found.spec.schedule.last, found.graph.groups) == (None, False)
    assert found.kept == FULL.kept
    written = plain(found)
    assert "groups" not in written["graph"]


def test_tokens_that_leave_inside_the_last_layer_come_back_as_they_were(tmp_path):
    MERGED.write(tmp_path / "model.json")
    found = read_manifest(tmp_path / "model.json")
    assert found == MERGED
    assert (found.spec.schedule.last, found.spec.schedule.counts) == (106, (166, 136, 106))
    assert found.graph.groups
    assert found.kept.counts == {4: 166, 7: 136, 12: 106}
    assert found.kept.taps == ("kept_4", "kept_7", "kept_12")


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (137, "token counts grow from 136 to 137 after layer 12"),
        (0, r"\$\.spec\.schedule\.last|schedule\.last|at least 1"),
        (-5, "last"),
        ("106", "last"),
        (1.5, "last"),
    ],
)
def test_a_last_count_that_cannot_be_is_refused(last, said):
    data = plain(MERGED)
    data["spec"]["schedule"]["last"] = last
    with pytest.raises(ArtifactError, match=said) as refused:
        Manifest.from_dict(data)
    assert "\n" not in refused.value.message


def test_where_none_leave_the_last_layer_it_may_be_no_drop_layer():
    data = plain(MERGED)
    data["spec"]["schedule"]["last"] = None
    with pytest.raises(ArtifactError, match="drop layer 12 is out of range: this backbone has 12 layers, so 1 to 11"):
        Manifest.from_dict(data)
