"""Predictions as FHIR R4: a Bundle of Observations that name no patient.

https://hl7.org/fhir/R4/observation.html and bundle.html. Each observation is ``preliminary``: a
person has not looked at it. It names the file below the folder and nothing of the patient; whoever
files it adds the subject.
"""

import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from asterion_client.predict.results import CaseResult
from asterion_shared.files import write_atomically
from asterion_shared.release.opening import ReleasedModel

FILE_SYSTEM = "urn:asterion:local-file"
"""System of the identifiers: names of files, which mean something at the site alone."""

CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
UNITS = "http://unitsofmeasure.org"


def write_observations(
    path: Path,
    results: Sequence[CaseResult],
    released: ReleasedModel,
    release_sha256: str,
    now: datetime,
) -> None:
    """Write a Bundle of type ``collection`` with one Observation a result.

    Args:
        path: replaced atomically.
        results: of classification or anomaly; may be empty.
        released: the model.
        release_sha256: of the release, by which entries have their own ids.
        now: UTC.

    Raises:
        DiskProblemError: it cannot be written.
    """
    moment = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    entries = []
    for result in results:
        key = f"{release_sha256}/{result.id}"
        resource_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:asterion:{key}"))
        resource = observation(result, released, moment) | {"id": resource_id}
        entries.append({"fullUrl": f"urn:uuid:{resource_id}", "resource": resource})
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "collection", "timestamp": moment}
    if entries:  # an empty list is no FHIR
        bundle["entry"] = entries
    text = json.dumps(bundle, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode())


def observation(result: CaseResult, released: ReleasedModel, moment: str) -> dict[str, Any]:
    """One result as an Observation without an id.

    Args:
        result: of classification or anomaly.
        released: the model.
        moment: when it was predicted, as a FHIR instant.
    """
    facts, plan = released.facts, released.plan
    found: dict[str, Any] = {
        "resourceType": "Observation",
        "identifier": [{"system": FILE_SYSTEM, "value": result.id}],
        "status": "preliminary",
        "code": {"text": f"{plan.task} by model {facts.name} version {facts.version}"},
        "effectiveDateTime": moment,
        "issued": moment,
        "method": {
            "text": f"Asterion release {facts.name} version {facts.version}, {facts.maturity}"
        },
    }
    if plan.data.kind == "image":
        found["category"] = [{"coding": [{"system": CATEGORY, "code": "imaging"}]}]
    parts = [
        _part(f"probability of {name}", value)
        for name, value in zip(plan.data.classes, result.probabilities, strict=False)
    ]
    if result.score is None:
        found["valueCodeableConcept"] = {"text": result.call}
    else:
        found["valueQuantity"] = _quantity(result.score)
        if result.call:
            found["interpretation"] = [{"text": result.call}]
    if result.uncertainty is not None:
        words = "uncertainty, 0 certain to 1"
        if result.score is not None:
            words = "spread of the score between releases, relative"
        parts.append(_part(words, result.uncertainty))
    if parts:
        found["component"] = parts
    return found


def _part(name: str, value: float) -> dict[str, Any]:
    return {"code": {"text": name}, "valueQuantity": _quantity(value)}


def _quantity(value: float) -> dict[str, Any]:
    return {"value": float(f"{value:.6g}"), "system": UNITS, "code": "1"}
