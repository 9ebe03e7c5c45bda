"""A run's numbers in an MLflow tracking server."""

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from asterion_shared.errors import ConnectionProblemError, MissingExtraError
from asterion_shared.plan import Plan
from asterion_shared.reports.compared_runs import flat_plan
from asterion_shared.reports.run_numbers import Begun, Told, final_numbers, numbers_of
from asterion_shared.result import Result, RoundResult

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_TAG, DONE_TAG = "asterion.identity", "asterion.headline"
CHECK = "asterion/checksum"
"""Metric whose steps are the rounds that are written, and whose values tell what was."""

_MOST_IN_BATCH = 900  # the server takes 1,000 metrics at once
_MOST_PARAMETERS = 90  # and 100 parameters
_MOST_CHARACTERS = 500  # of a parameter's value, what older servers take
_STATUS = {"finished": "FINISHED", "stopped": "KILLED"}


def write_mlflow(told: Iterable[Told], address: str, folder_name: str, plan: Plan | None) -> int:
    """Write a run's rounds as metrics, its plan as parameters and how it ended as tags.

    The experiment is named as the plan. A run that an earlier export began is gone on with: the
    rounds that are there are not written again, unless they were measured anew.

    Args:
        told: the run, from ``run_numbers``; each round is sent before the next is taken.
        address: of the tracking server, or a store that MLflow knows.
        folder_name: what the run is called there.
        plan: None where it is not known.

    Returns:
        How many rounds were written now.

    Raises:
        ConnectionProblemError: the server does not answer or refuses.
        MissingExtraError: the package ``mlflow`` is not installed.
    """
    # Before its import: no word to its makers, and a server that is away is told of soon.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise MissingExtraError(package="mlflow", extra="mlflow", distribution="asterion") from None
    try:
        return _write(told, MlflowClient(address), folder_name, plan)
    except MlflowException as error:
        first = str(error).partition("\n")[0]
        msg = f"the MLflow server at {address} did not take the run: {first}"
        raise ConnectionProblemError(msg) from error


def _write(
    told: Iterable[Told], client: "MlflowClient", folder_name: str, plan: Plan | None
) -> int:
    count, begun, number = 0, None, ""
    written: set[tuple[int, float]] = set()
    for one in told:
        if isinstance(one, Begun):
            begun = one
            continue
        if begun is None:
            continue
        if not number:
            number = _open_run(client, begun, _identity(begun, one, plan), folder_name, plan)
            written = {(m.step, m.value) for m in client.get_metric_history(number, CHECK)}
        if isinstance(one, Result):
            _close_run(client, number, one)
            continue
        values = numbers_of(one, begun.task)
        check = float(zlib.crc32(json.dumps(values, sort_keys=True).encode()))
        if (one.round, check) not in written:
            _log(client, number, values, one.round)
            # Goes last, so that a round that was cut is written again.
            _log(client, number, {CHECK: check}, one.round)
            count += 1
    return count


def _identity(begun: Begun, first: RoundResult | Result, plan: Plan | None) -> str:
    """The same whenever this run is exported, another for one that was begun anew by its name."""
    measured = first.seconds if isinstance(first, RoundResult) else first.started
    facts = f"{begun.run} {'' if plan is None else plan.sha256} {measured!r}"
    return hashlib.sha256(facts.encode()).hexdigest()


def _open_run(
    client: "MlflowClient", begun: Begun, identity: str, folder_name: str, plan: Plan | None
) -> str:
    """The run's number there: of an earlier export, or of a new run."""
    known = client.get_experiment_by_name(begun.name)
    experiment = client.create_experiment(begun.name) if known is None else str(known.experiment_id)
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {RUN_TAG: identity, "asterion.task": begun.task}
    run = client.create_run(experiment, tags=tags, run_name=folder_name)
    number = str(run.info.run_id)
    if plan is not None:
        _log_plan(client, number, plan)
    return number


def _log_plan(client: "MlflowClient", number: str, plan: Plan) -> None:
    from mlflow.entities import Param

    values = {"plan_sha256": plan.sha256} | flat_plan(plan)
    rows = [Param(_key(name), value[:_MOST_CHARACTERS]) for name, value in values.items()]
    for start in range(0, len(rows), _MOST_PARAMETERS):
        client.log_batch(number, params=rows[start : start + _MOST_PARAMETERS])


def _log(client: "MlflowClient", number: str, values: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    rows = [Metric(_key(name), value, now, step) for name, value in values.items()]
    for start in range(0, len(rows), _MOST_IN_BATCH):
        client.log_batch(number, metrics=rows[start : start + _MOST_IN_BATCH])


def _close_run(client: "MlflowClient", number: str, result: Result) -> None:
    # A run that was stopped and went on ends again, with other final numbers.
    if client.get_run(number).data.tags.get(DONE_TAG) != result.headline:
        last = max((r.round for r in result.rounds), default=0)
        _log(client, number, final_numbers(result), last)
    tags = {"asterion.status": result.status, "asterion.privacy": result.privacy,
            DONE_TAG: result.headline}  # fmt: skip
    for name, value in tags.items():
        client.set_tag(number, name, value)
    client.set_terminated(number, _STATUS.get(result.status, "FAILED"))


def _key(name: str) -> str:
    """A name as MLflow takes it: other characters become their code.

    >>> _key("pooled/dice/left lobe"), _key("dice/a+b")
    ('pooled/dice/left lobe', 'dice/a:2b:b')
    """
    return re.sub(r"[^A-Za-z0-9_\-. /]", lambda found: f":{ord(found[0]):x}:", name)
