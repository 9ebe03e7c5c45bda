"""A site's part in the secure sums of a run: what it holds, and the answer to each step.

After a train or evaluate order under ``[secure_sum]`` the update and the metrics stay here; the
coordinator hears only that the site is ready. They leave as one masked vector, charged in the
site's ledger before that.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from asterion_client.identities import read_identities
from asterion_client.settings import SiteSettings
from asterion_shared.errors import (
    DiskProblemError,
    OrderRefusedError,
    UserInputError,
)
from asterion_shared.files import make_folder, sync_folder
from asterion_shared.messages import Order, Report, SumOrder, order_sha256
from asterion_shared.metrics import check_statistics
from asterion_shared.privacy.secret_stream import secret_stream
from asterion_shared.privacy.secure_sum import Instance, elliptic_signer, elliptic_verifier
from asterion_shared.privacy.secure_sum_messages import (
    AgreementList,
    Inbox,
    KeyList,
    RevealList,
    Survivors,
    ToCentre,
)
from asterion_shared.privacy.secure_sum_site import FORGED, OUT_OF_STEP, TWO_SETS, SiteSum
from asterion_shared.privacy.summed_vector import BITS, SummedVector, Words


class SecureRounds:
    """What one site holds for secure sums; one order's result at a time.

    Args:
        settings: the site's settings.
        folder: where ``site.toml`` lies.
    """

    def __init__(self, settings: SiteSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._held: tuple[Order, Report] | None = None
        self._sum: SiteSum | None = None
        self._instance: Instance | None = None

    def hold(self, order: Order, report: Report) -> Report:
        """Keep a report for the sum; what leaves instead says only that the site is ready.

        Raises:
            OrderRefusedError: ``report_rejected``: its metrics are not the plan's. Nobody else
                can see that.
        """
        try:
            check_statistics(report.statistics, order.plan, num_cases=report.num_test)
        except ValueError as error:
            raise OrderRefusedError(str(error), code="report_rejected") from None
        self._held, self._sum, self._instance = (order, report), None, None
        return report.bare()

    def answer(self, order: Order, charge: Callable[..., None], manifest_sha256: str) -> Report:
        """Take one step.

        Args:
            order: with a ``sum``.
            charge: ``charge(order, payload=vector)`` enters its release into the ledger.
            manifest_sha256: of the data set as it is now; what is held of another one stays here.

        Raises:
            OrderRefusedError: nothing is held for it, the instance is not what the plan says, or a
                message is not what an honest coordinator sends; has a code.
            DiskProblemError: the survivors cannot be put on record.
            BudgetSpentError: the vector would cost more privacy than the site allows.
        """
        step, (held_for, report) = order.sum, self._held_for(order, manifest_sha256)
        assert step is not None  # noqa: S101  # its phase says so
        size = 0 if report.update is None else report.update.size
        vector = SummedVector(order.plan, size, order.round)
        if step.step == "keys":
            self._begin(held_for, step, vector)
        if self._sum is None or self._instance is None or step.id != self._instance.id:
            msg = f"step {step.step!r} of a sum that this site has not begun (was it restarted?)"
            raise OrderRefusedError(msg, code=OUT_OF_STEP)

        def words() -> Words:
            found = vector.encode(
                report.update, report.num_examples, report.statistics, secret_stream()
            )
            if held_for.phase == "train":
                charge(held_for, payload=found)
            return found

        message = _message(self._sum, step, step.content[self._settings.name], words)
        return Report(
            site=self._settings.name,
            num_examples=0,
            num_test=0,
            num_bad_files=0,
            manifest_sha256="",
            sum_message=message.to_bytes(),
        )

    def _held_for(self, order: Order, manifest_sha256: str) -> tuple[Order, Report]:
        step = order.sum
        if self._held is not None and step is not None:
            held, report = self._held
            if (held.run, held.plan, held.round, held.phase, report.manifest_sha256) == (
                order.run, order.plan, order.round, step.of, manifest_sha256,
            ):  # fmt: skip
                return held, report
        msg = f"nothing is held for a sum of round {order.round} (was the site restarted?)"
        raise OrderRefusedError(msg, code=OUT_OF_STEP)

    def _begin(self, order: Order, step: SumOrder, vector: SummedVector) -> None:
        if step.size != vector.size:
            msg = f"the sum is of {step.size} numbers, this site's update has {vector.size}"
            raise OrderRefusedError(msg, code="layout_mismatch")
        roster, key = read_identities(self._settings.connection, self._settings.name, self._folder)
        try:
            self._instance = Instance(
                run=order.run, id=step.id, round=order.round, sites=step.sites, bits=BITS,
                sharing=vector.sharing, length=vector.length, order_sha256=order_sha256(order),
            )  # fmt: skip
        except UserInputError as error:
            raise OrderRefusedError(str(error), code=FORGED) from None
        self._sum = SiteSum(
            self._instance,
            self._settings.name,
            roster=roster,
            sign=elliptic_signer(key),
            verify=elliptic_verifier(roster),
            record=self._record,
        )

    def _record(self, instance_id: str, survivors_hash: str) -> None:
        name = hashlib.sha256(instance_id.encode()).hexdigest()
        records = self._folder / self._settings.state_folder / "secure_sums"
        put_on_record(records / name, survivors_hash)


def _message(
    site_sum: SiteSum, step: SumOrder, content: bytes, words: Callable[[], Words]
) -> ToCentre:
    match step.step:
        case "keys":
            return site_sum.keys()
        case "reveal":
            return site_sum.reveal(KeyList.from_bytes(content))
        case "shares":
            known = RevealList if content.startswith(RevealList.kind) else KeyList
            return site_sum.shares(known.from_bytes(content))
        case "masked":
            inbox = Inbox.from_bytes(content)
            site_sum.check_inbox(inbox)  # what is refused is not charged
            return site_sum.masked(inbox, words())
        case "agree":
            return site_sum.agree(Survivors.from_bytes(content))
        case "unmask":
            return site_sum.unmask(AgreementList.from_bytes(content))


def put_on_record(path: Path, survivors_hash: str) -> None:
    """Record that a sum was unmasked for these survivors; durable when it returns.

    Raises:
        OrderRefusedError: ``secure_sum_two_sets``: others are on record, or half a record is.
        DiskProblemError: the folder cannot be written.
    """
    try:
        make_folder(path.parent)
        try:
            with path.open("x") as file:  # never over an older record
                file.write(survivors_hash)
        except FileExistsError:
            if path.read_text() != survivors_hash:
                msg = f"other survivors are on record for this sum ({path.name})"
                raise OrderRefusedError(msg, code=TWO_SETS) from None
        # Of an older record too: who wrote it may have been killed before this.
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
