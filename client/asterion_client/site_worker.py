"""A site that answers orders: it keeps its data and its model warm between rounds.

At the closing evaluation it writes a report for its own eyes, with pictures, which never leaves.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from asterion_client.data.site_data import check_frozen, load_site_data
from asterion_client.local_round import Workspace, count_examples, make_workspace, work
from asterion_client.privacy_ledger_restored import require_accepted
from asterion_client.privacy_release import (
    charge_release,
    group_salt,
    refuse_readable,
    require_head,
)
from asterion_client.secure_round import SecureRounds
from asterion_client.settings import SiteSettings
from asterion_client.site_audit import record_charge
from asterion_client.site_history import remember, report_run
from asterion_client.small_groups import CellPatients, refuse_few, without_small_groups
from asterion_client.stored_reports import StoredReport
from asterion_client.update_rounding import keep_residual, rounded, store_residual
from asterion_shared.audit import AuditTrail
from asterion_shared.cases import SiteData
from asterion_shared.errors import OrderRefusedError
from asterion_shared.link.steps import reached
from asterion_shared.messages import Order, Report
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.privacy.summed_vector import Words
from asterion_shared.reports.pictures import draw_examples
from asterion_shared.tasks.prediction import model_predictor
from asterion_shared.update_codec import EncodedUpdate


class SiteWorker:
    """Answers the orders of one site; one run is warm at a time.

    Args:
        settings: the site's settings.
        folder: where ``site.toml`` lies; relative paths in it are meant from here.
        audit: where charges are written down; None: nowhere.
    """

    def __init__(
        self, settings: SiteSettings, folder: Path, audit: AuditTrail | None = None
    ) -> None:
        self.settings, self.folder, self._audit = settings, folder, audit
        self._warm: tuple[str, str] | None = None
        self._data: SiteData | None = None
        self._workspace: Workspace | None = None
        self._group_salt = ""
        self._answered_from = ""
        self._secure = SecureRounds(settings, folder)
        self._head: str | None = None

    def answer(self, order: Order) -> Report:
        """Carry out an order.

        Raises:
            OrderRefusedError: the order is for another task, or cannot be met; has a code.
            DataProblemError: the site's data break the plan's contract; has a code.
            DiskProblemError: the state folder cannot be written.
            BudgetSpentError: the report would cost more privacy than the site allows.
            LedgerStoppedError: the site's ledger lacks what it once had.
            FileProblemError: what rounding lost in the round before cannot be read.
        """
        if order.plan.task != self.settings.task:
            msg = f"the plan is for {order.plan.task}, this site's data for {self.settings.task}"
            raise OrderRefusedError(msg, code="wrong_task")
        require_accepted(self.settings, self.folder)
        refuse_readable(self.settings, order.plan)
        require_head(self.settings, self.folder, order)
        self._head = None
        report, self._answered_from = self._answer(order)
        return replace(report, ledger_head=self._head)

    def _answer(self, order: Order) -> tuple[Report, str]:
        """The report, and the hash of the data set that it was formed from."""
        torch.set_num_threads(self.settings.compute.threads)
        data = self.data(order.run, order.plan)
        refuse_few(data, order.plan, self.settings.smallest_group)
        if order.phase == "sum":
            charge = partial(self._charge, data=data)
            summed = self._secure.answer(order, charge, data.manifest_sha256)
            return summed, data.manifest_sha256
        if order.phase == "count":
            counted = count_examples(data)
            if order.plan.secure_sum is not None:
                return counted.bare(), data.manifest_sha256
            few = self.settings.smallest_group
            counted = without_small_groups(counted, data, few, CellPatients())
            return counted, data.manifest_sha256
        report = self._worked(order, data)
        # Who withdrew meanwhile has no part in what leaves.
        while (now := self.data(order.run, order.plan)) is not data:
            data = now
            refuse_few(data, order.plan, self.settings.smallest_group)
            report = self._worked(order, data)
        if order.plan.secure_sum is not None:
            return self._secure.hold(order, report), data.manifest_sha256
        leaves = report.encoded or report.update
        if leaves is not None:
            self._charge(order, data, leaves)
            keep_residual(self.run_folder(order.run), order.round)
            reached("S5")
        return report, data.manifest_sha256

    def _worked(self, order: Order, data: SiteData) -> Report:
        """The report to a train or evaluate order: the stored one, or a new one once stored."""
        stored = StoredReport(self.settings, self.folder, order)
        found = stored.find()
        if found is not None and found.manifest_sha256 == data.manifest_sha256:
            return found
        folder, workspace = self.run_folder(order.run), self.workspace(order.plan)
        noted = CellPatients() if self._counts_patients(order.plan) else None
        report = work(order, data, workspace, folder, noted)
        if order.plan.secure_sum is None:
            report, residual = rounded(order, report, folder)
            store_residual(folder, order.round, residual)
        reached("S3")
        remember(folder, order, report)
        if order.phase == "evaluate":
            # The model still has the weights of the order, so the pictures show what was scored.
            predict = model_predictor(workspace.model, order.plan, workspace.device)
            report_run(folder, order.plan, data, draw_examples(order.plan, predict, data.test))
        if noted is not None:
            report = without_small_groups(report, data, self.settings.smallest_group, noted)
        stored.store(report)
        reached("S4")
        return report

    def _counts_patients(self, plan: Plan) -> bool:
        """Whether what leaves depends on how many patients stand behind it."""
        return plan.secure_sum is None and self.settings.smallest_group > 1

    def _charge(
        self, order: Order, data: SiteData, payload: Vector | Words | EncodedUpdate
    ) -> None:
        """Charge what is about to leave; the report that it leaves with tells the ledger's head."""
        payload_bytes = payload.tobytes()
        self._head = charge_release(self.settings, self.folder, order, data, payload_bytes)
        if self._audit is not None and self._head is not None:
            record_charge(self._audit, order, self._head)

    def data(self, run: str, plan: Plan) -> SiteData:
        """The site's cases for a run, read at its first order and checked at each later one.

        They are read again when records have left, so that nothing of these stays in memory.
        """
        settings, folder, warm = self.settings, self.folder, (run, plan.sha256)
        if self._data is not None and self._warm == warm:
            if self._data.manifest_sha256 == check_frozen(
                settings, folder, plan, run, self._group_salt
            ):
                return self._data
        else:
            self._workspace = None
        self._data = None
        self._group_salt = salt = group_salt(settings, folder, plan)
        self._data = load_site_data(settings, folder, plan, run=run, group_salt=salt)
        self._warm = warm
        return self._data

    def still_holds(self, order: Order) -> bool:
        """Whether the last answer may be given again: no record it was formed from has left since.

        Raises:
            AsterionError: the data cannot be had; see :meth:`answer`.
        """
        return self.data(order.run, order.plan).manifest_sha256 == self._answered_from

    def workspace(self, plan: Plan) -> Workspace:
        """The model object of the warm run."""
        if self._workspace is None:
            self._workspace = make_workspace(plan, self.settings.compute.device)
        return self._workspace

    def run_folder(self, run: str) -> Path:
        """Where the site keeps what belongs to a run."""
        return self.folder / self.settings.state_folder / "runs" / run
