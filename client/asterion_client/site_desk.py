"""Where a live site's orders are answered: consent first, then the work."""

import time
from pathlib import Path

from asterion_client.consent import Consent
from asterion_client.day_book import day_book
from asterion_client.settings import SiteSettings
from asterion_client.site_worker import SiteWorker
from asterion_shared.audit import AuditTrail
from asterion_shared.messages import Order, Report


class SiteDesk:
    """Answers the orders that its site agrees to.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
        audit: where charges are written down; None: nowhere.
    """

    def __init__(
        self, settings: SiteSettings, folder: Path, audit: AuditTrail | None = None
    ) -> None:
        self._days = day_book((folder / settings.state_folder).resolve())
        self._consent = Consent(settings, folder, self._days)
        self._worker = SiteWorker(settings, folder, audit)

    def answer(self, order: Order) -> Report:
        """Carry out an order.

        Raises:
            OrderRefusedError: the site does not agree to it, or cannot meet it; has a code.
            AsterionError: as :meth:`asterion_client.site_worker.SiteWorker.answer`.
        """
        self._consent.require(order)
        began = time.monotonic()
        try:
            return self._worker.answer(order)
        finally:
            self._days.worked(time.monotonic() - began)

    def still_holds(self, order: Order) -> bool:
        """Whether the last answer may be given again to the same order: nobody withdrew since.

        Raises:
            AsterionError: as :meth:`asterion_client.site_worker.SiteWorker.still_holds`.
        """
        return self._worker.still_holds(order)
