"""How sure: entropy by hand, dropout that can be repeated, releases that disagree, maps."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from tests.predict.releases import CUBE, PLANE, Bright, Half, Mean, plan_of, predict, released
from tests.predict.test_classes import SICK, rows_of, store_images
from torch import nn

from asterion_client.predict.results import CaseResult, by_certainty
from asterion_client.predict.uncertainty import DropoutOn, segmentation_summary, spread_of
from asterion_shared.errors import PlanMismatchError


def test_entropy_and_disagreement_by_hand() -> None:
    # Two that are certain of opposite things: the mean knows nothing, and all of it is between.
    apart = spread_of([np.array([1, 0], np.float32), np.array([0, 1], np.float32)])
    assert (float(apart.entropy), float(apart.disagreement)) == (1.0, 1.0)
    # Two that agree on knowing nothing.
    alike = spread_of([np.full(2, 0.5, np.float32)] * 2)
    assert (float(alike.entropy), float(alike.disagreement)) == (1.0, 0.0)
    four = spread_of([np.array([0.5, 0.5, 0, 0], np.float32)])
    assert float(four.entropy) == pytest.approx(0.5)


def test_a_segmentation_is_judged_where_an_object_is_possible() -> None:
    probabilities = np.array([[0.999, 0.6, 0.89], [0.001, 0.4, 0.11]], np.float32)
    spread = spread_of([probabilities])
    entropy, _, points = segmentation_summary(spread, probabilities)
    assert points == 2
    assert entropy == pytest.approx(spread.entropy[1:].mean())
    nothing = np.array([[0.999, 0.95], [0.001, 0.05]], np.float32)
    entropy, _, points = segmentation_summary(spread_of([nothing]), nothing)
    assert (points, entropy) == (0, pytest.approx(spread_of([nothing]).entropy.max()))


def test_dropout_alone_is_on() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Dropout(0.0))
    on = DropoutOn(network)
    for mode in (True, False):
        on.train(mode)
        assert [layer.training for layer in network] == [False, True, False]


def test_dropout_says_how_sure_and_can_be_repeated(tmp_path: Path) -> None:
    folder = store_images(tmp_path / "in")
    model = released(tmp_path / "r", plan_of("classification", SICK), Mean(0.5))
    found = predict(model, folder, tmp_path / "out", samples=8)
    assert found.facts["uncertainty"]["method"] == "dropout"
    assert found.facts["uncertainty"]["count"] == 8
    plain = predict(released(tmp_path / "r", model.plan, Mean()), folder, tmp_path / "plain")
    for one, other in zip(found.results, plain.results, strict=True):
        # What is predicted is the network's own, as it was evaluated.
        assert one.probabilities == other.probabilities
        assert one.uncertainty != other.uncertainty
        assert one.disagreement is not None
        assert one.disagreement > 0
    torch.manual_seed(99)
    again = predict(model, folder, tmp_path / "again", samples=8)
    assert again.results == found.results
    off = predict(model, folder, tmp_path / "off", samples=0)
    assert off.facts["uncertainty"]["method"] == "single"
    assert "no samples were asked for" in off.facts["uncertainty"]["how"]


def test_releases_that_disagree_are_less_certain(tmp_path: Path) -> None:
    plan = plan_of("segmentation", CUBE)
    (tmp_path / "in").mkdir()
    image = np.zeros((4, 4, 4), np.float32)
    image[1] = 1
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-1, 1, 1, 1])), tmp_path / "in/a.nii")
    model = released(tmp_path / "r", plan, Bright())
    other = released(tmp_path / "s", plan, Bright(-20.0))
    found = predict(model, tmp_path / "in", tmp_path / "out", others=[other])
    assert found.facts["uncertainty"]["how"] == "2 releases"
    assert found.results[0].uncertainty == pytest.approx(1.0, abs=1e-3)
    assert found.results[0].disagreement == pytest.approx(1.0, abs=2e-3)
    # The mask is that of the first release.
    mask = np.asarray(nibabel.load(tmp_path / "out/masks/a.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, image)
    map_ = np.asarray(nibabel.load(tmp_path / "out/uncertainty/a.nii.gz").dataobj)
    np.testing.assert_allclose(map_, np.ones((4, 4, 4)), atol=1e-3)
    strange = released(tmp_path / "t", plan_of("segmentation", PLANE), Bright())
    with pytest.raises(PlanMismatchError, match="another task or other data"):
        predict(model, tmp_path / "in", tmp_path / "no", others=[strange])


def test_scores_of_anomalies_differ_between_releases(tmp_path: Path) -> None:
    plan = plan_of("anomaly", PLANE | {"classes": ["normal", "odd"], "patch_size": [4, 4]})
    model = released(tmp_path / "r", plan, Half())
    exact = replace(model, network=nn.Identity())
    folder = store_images(tmp_path / "in", np.array([1.0, 2.0]))
    found = predict(model, folder, tmp_path / "out", others=[exact])
    # Scores 0.25 and 0: deviation over mean is 1.
    assert [r.uncertainty for r in found.results] == pytest.approx([1.0, 1.0])
    review = rows_of(tmp_path / "out/review.csv")
    assert review[0]["why"] == "score 1; the scores of 2 releases run from 0 to 1"


def test_the_least_certain_come_first() -> None:
    rows = [CaseResult(id="a", uncertainty=0.1), CaseResult(id="b", uncertainty=0.9),
            CaseResult(id="c", score=2.0), CaseResult(id="d", score=3.0)]  # fmt: skip
    assert [r.id for r in by_certainty(rows)] == ["b", "a", "d", "c"]
