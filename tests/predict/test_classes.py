"""Classes, scores and how sure they are: CSV, FHIR, thresholds, temperature, rows of tables."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.predict.releases import PLANE, Half, Mean, plan_of, predict, released

from asterion_client.data.site_data import scale_at_site
from asterion_client.predict.calls import call_classes
from asterion_client.predict.folder import release_sha256
from asterion_client.settings import SiteSettings
from asterion_shared.errors import PlanMismatchError
from asterion_shared.settings_files import validate
from asterion_shared.tasks import initial_model

SICK = PLANE | {"classes": ["well", "sick"], "patch_size": [4, 4]}
LOGITS = np.array([-2.0, -0.4, 0.2, 3.0])


def store_images(folder: Path, means: np.ndarray = LOGITS) -> Path:
    folder.mkdir()
    images = np.broadcast_to(means[:, np.newaxis, np.newaxis], (len(means), 4, 4))
    np.savez(folder / "set.npz", images=images.astype(np.float32))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_temperature_and_threshold_are_applied(tmp_path: Path) -> None:
    plan = plan_of("classification", SICK)
    model = released(tmp_path / "r", plan, Mean(), 2.0, {"sick": 0.4})
    found = predict(model, store_images(tmp_path / "in"), tmp_path / "out")
    rows = rows_of(tmp_path / "out/predictions.csv")
    sick = 1 / (1 + np.exp(-LOGITS / 2.0))
    assert [float(r["p_sick"]) for r in rows] == pytest.approx(sick, rel=1e-5)
    # Without the temperature 0.40131 reaches 0.4, and 0.11920 does not; with it 0.45 and 0.27.
    assert [r["call"] for r in rows] == ["well", "sick", "sick", "sick"]
    again = released(tmp_path / "r", plan, Mean(), 2.0, {"sick": 0.402})
    later = predict(again, tmp_path / "in", tmp_path / "later")
    assert [r.call for r in later.results] == ["well", "well", "sick", "sick"]
    assert [r["file"] for r in rows] == [f"set.npz#{i}" for i in range(4)]
    binary = -(sick * np.log2(sick) + (1 - sick) * np.log2(1 - sick))
    assert [r.uncertainty for r in found.results] == pytest.approx(binary)
    review = rows_of(tmp_path / "out/review.csv")
    assert [r["file"] for r in review] == [f"set.npz#{i}" for i in (2, 1, 0, 3)]
    assert {r["measured_by"] for r in review} == {"single"}
    assert "sick is called from 0.4 on, before the temperature" in review[0]["why"]
    assert "no dropout" in found.facts["uncertainty"]["how"]


@pytest.mark.parametrize(
    ("thresholds", "called"),
    [({}, [0, 2, 1]), ({"b": 0.3}, [1, 1, 1]), ({"b": 0.45}, [0, 2, 1]),
     ({"a": 0.9, "b": 0.9, "c": 0.45}, [0, 2, 0]), ({"b": 0.3, "c": 0.4}, [1, 2, 1])],
)  # fmt: skip
def test_a_class_is_called_from_its_threshold_on(
    thresholds: dict[str, float], called: list[int]
) -> None:
    points = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]]).T
    assert call_classes(points, ("a", "b", "c"), thresholds).tolist() == called


def test_points_are_told_and_youden_calls(tmp_path: Path) -> None:
    points = {"youden": 0.6, "false_alarm_rate": 0.94}
    model = released(tmp_path / "r", plan_of("classification", SICK), Mean(), 1, points)
    found = predict(model, store_images(tmp_path / "in"), tmp_path / "out")
    rows = rows_of(tmp_path / "out/predictions.csv")
    assert [r["call"] for r in rows] == ["well", "well", "well", "sick"]  # 0.55 is below 0.6
    assert [r["at_or_above_false_alarm_rate"] for r in rows] == ["no", "no", "no", "yes"]
    assert found.facts["called_by"] == "the threshold youden"
    named = replace(model, thresholds=points | {"sick": 0.5})
    again = predict(named, tmp_path / "in", tmp_path / "again")
    assert [r.call for r in again.results] == ["well", "well", "sick", "sick"]


def test_a_threshold_of_no_class_is_refused(tmp_path: Path) -> None:
    three = SICK | {"classes": ["well", "sick", "worse"]}
    model = released(tmp_path / "r", plan_of("classification", three), Mean(), 1, {"ill": 0.4})
    with pytest.raises(PlanMismatchError, match="'ill'"):
        predict(model, store_images(tmp_path / "in"), tmp_path / "out")


def check_fhir(bundle: dict[str, Any]) -> None:
    """What R4 requires of a Bundle, an Observation and the types they use."""
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "collection")
    for entry in bundle["entry"]:
        found = entry["resource"]
        assert entry["fullUrl"] == f"urn:uuid:{found['id']}"
        assert found["resourceType"] == "Observation"
        assert found["status"] == "preliminary"
        assert found["code"]["text"]
        assert sum(key.startswith("value") for key in found) == 1
        assert all(set(i) == {"system", "value"} for i in found["identifier"])
        assert not {"subject", "performer", "encounter"} & set(found)
        for part in found.get("component", []):
            assert part["code"]["text"]
            assert part["valueQuantity"]["system"] == "http://unitsofmeasure.org"
            assert part["valueQuantity"]["code"] == "1"


def test_observations_are_fhir_without_a_patient(tmp_path: Path) -> None:
    model = released(tmp_path / "r", plan_of("classification", SICK), Mean())
    predict(model, store_images(tmp_path / "in"), tmp_path / "out")
    bundle = json.loads((tmp_path / "out/observations.json").read_text())
    check_fhir(bundle)
    first = bundle["entry"][0]["resource"]
    assert first["valueCodeableConcept"] == {"text": "well"}
    assert first["identifier"][0]["value"] == "set.npz#0"
    values = [part["valueQuantity"]["value"] for part in first["component"]]
    assert values[:2] == pytest.approx([0.880797, 0.119203], rel=1e-4)
    assert len({entry["resource"]["id"] for entry in bundle["entry"]}) == 4
    assert len(release_sha256(model)) == 64


def test_an_anomaly_has_a_score_and_a_map(tmp_path: Path) -> None:
    plan = plan_of("anomaly", PLANE | {"classes": ["normal", "odd"], "patch_size": [4, 4]})
    model = released(tmp_path / "r", plan, Half(), thresholds={"odd": 0.5})
    found = predict(model, store_images(tmp_path / "in", np.array([1.0, 2.0])), tmp_path / "out")
    assert [r.score for r in found.results] == pytest.approx([0.25, 1.0])
    assert [r.call for r in found.results] == ["normal", "odd"]
    np.testing.assert_allclose(np.load(tmp_path / "out/error_maps/set/000001.npy"), np.ones((4, 4)))
    bundle = json.loads((tmp_path / "out/observations.json").read_text())
    check_fhir(bundle)
    assert bundle["entry"][1]["resource"]["valueQuantity"]["value"] == 1.0
    assert bundle["entry"][1]["resource"]["interpretation"] == [{"text": "odd"}]
    # Nothing says how sure a lone autoencoder is; the highest score comes first.
    assert [r["file"] for r in rows_of(tmp_path / "out/review.csv")] == ["set.npz#1", "set.npz#0"]


def test_rows_are_scaled_as_the_site_trained(tmp_path: Path) -> None:
    data = {"kind": "table", "features": ["age", "cp"], "categorical": ["cp=1|2"],
            "classes": ["well", "sick"]}  # fmt: skip
    plan = plan_of("classification", data, model={"name": "logistic"})
    (tmp_path / "site").mkdir()
    lines = [f"{age},1,well,p{age},train" for age in (40, 60)] + ["900,2,sick,x,test"]
    (tmp_path / "site/all.csv").write_text("\n".join(["age,cp,label,who,split", *lines]))
    values = {"name": "s", "task": "classification",
              "data": {"format": "table", "group_column": "who"}}  # fmt: skip
    site = validate(SiteSettings, values, "site")
    scale = scale_at_site(site, tmp_path / "site", plan)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/new.csv").write_text("age,cp\n70,2\nold,1\n,\n")
    model = released(tmp_path / "r", plan, initial_model(plan))
    found = predict(model, tmp_path / "in", tmp_path / "out", settings=site.data, scale=scale)
    columns = torch.tensor([[2.0, 0, 0, 1]])  # (70 - 50) / 10, not missing, not 1, 2
    expected = model.network(columns).softmax(1)[0].detach().numpy()
    assert found.results[0].probabilities == pytest.approx(expected, rel=1e-6)
    assert [name for name, _ in found.skipped] == ["new.csv#1", "new.csv#2"]
