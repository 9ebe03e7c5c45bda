"""The coordinator's Flower ``ServerApp``: it finds the run's folder and carries out its plan.

A run's configuration holds only the run's name. The folder comes from this machine's environment,
so nobody who may submit a run can make the coordinator read or write elsewhere.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from asterion_server.keys import public_keys
from asterion_server.ledger_heads import FOLDER, LedgerHeads
from asterion_server.live_cohort import LiveCohort
from asterion_server.open_orders import FILE as OPEN_ORDERS
from asterion_server.receipts import issue_receipt
from asterion_server.round_audit import coordinator_trail, record_end, record_launch
from asterion_server.rounds import run_rounds
from asterion_server.run_folder import RunFolder
from asterion_shared.audit import AuditTrail
from asterion_shared.carrier import Carrier
from asterion_shared.child_process import MOST_LOG_BYTES
from asterion_shared.errors import AsterionError, UserInputError
from asterion_shared.events import Event, RunFinished, append_event
from asterion_shared.plan import Plan
from asterion_shared.privacy.secure_sum import elliptic_verifier
from asterion_shared.result import Result

COORDINATOR_VARIABLE = "ASTERION_COORDINATOR"
"""Environment variable with the coordinator's folder."""

LOG = logging.getLogger("asterion.coordinator")
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the run that the configuration names, or the rest of it."""
    name = str(context.run_config.get("run", ""))
    if RUN_NAME.fullmatch(name) is None:
        msg = f"the run's name is {name!r}; it must be lower-case letters, digits, '_', '.', '-'"
        raise UserInputError(msg)
    coordinator = Path(os.environ[COORDINATOR_VARIABLE])
    conduct(
        grid,
        RunFolder(coordinator / "runs" / name),
        LedgerHeads(coordinator / FOLDER),
        coordinator_trail(coordinator),
    )


def conduct(
    grid: Grid,
    folder: RunFolder,
    heads: LedgerHeads | None = None,
    audit: AuditTrail | None = None,
    *,
    carrier: Carrier = "flower",
) -> Result:
    """Carry out the plan in a run's folder over a grid; whatever ends it is written there.

    Args:
        grid: where the sites are.
        folder: the run's.
        heads: of the sites' privacy ledgers, over all runs; None: they are not remembered.
        audit: the coordinator's trail; None: nothing is written down.
        carrier: what the grid is, for the result.

    Raises:
        AsterionError: the run ended early; ``problem.json`` says why.
    """
    with _log_to(folder.log):
        return _conduct(grid, folder, heads, audit, carrier)


def _conduct(
    grid: Grid,
    folder: RunFolder,
    heads: LedgerHeads | None,
    audit: AuditTrail | None,
    carrier: Carrier,
) -> Result:
    try:
        folder.write_process()
        launch = folder.read_launch()
        stopped = folder.stop_file.exists
        plan, signature = folder.read_plan(), folder.read_signature()
        if audit is not None:
            record_launch(audit, folder.path.name, plan, launch.sites, signature)

        def tell(event: Event) -> None:
            if audit is not None:
                record_end(audit, folder.path.name, event)
            _tell(folder, plan, event)

        cohort = LiveCohort(
            grid,
            stop_requested=stopped,
            ledger_heads=heads,
            signature=signature,
            audit=audit,
            open_orders=folder.path / OPEN_ORDERS,
            emit=tell,
        )
        missing = cohort.wait_for(launch.sites, launch.wait_seconds)
        if missing:
            LOG.warning("%d of %d sites are not connected", len(missing), len(launch.sites))
        return run_rounds(
            plan,
            cohort,
            folder.path,
            run=folder.path.name,
            expected_sites=launch.sites,
            carrier=carrier,
            emit=tell,
            plan_folder=Path(launch.plan_folder),
            verify=elliptic_verifier(public_keys(folder.path.parent.parent)),
        )
    except AsterionError as error:
        LOG.warning("the run ended early: %s", type(error).__name__)
        folder.write_problem(error)
        raise
    except Exception as error:
        LOG.exception("the coordinator failed")
        msg = f"the coordinator failed ({type(error).__name__}); {folder.log} has the details"
        folder.write_problem(AsterionError(msg))
        raise


def _tell(folder: RunFolder, plan: Plan, event: Event) -> None:
    """Store an event for whoever follows; the report lies there before the run's end is told."""
    if isinstance(event, RunFinished):
        # Here, because it imports a plotting library that the run itself does not need.
        from asterion_shared.reports.run_report import write_report

        write_report(event.result, folder.report, plan=plan)
        issue_receipt(folder, event.result)
    append_event(folder.events, event)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Flower discards what a ServerApp prints, so the run has its own log."""
    handler = RotatingFileHandler(path, maxBytes=MOST_LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()
