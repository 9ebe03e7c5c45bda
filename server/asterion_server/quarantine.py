"""Quarantine: a central step that folds no suspicious report without saying so.

It stands before the plan's own step and keeps a round's updates until all are in. Then those that
are unlike the others (:mod:`asterion_server.suspicion`) are left out and stored, or folded and
named, as the plan's ``[quarantine]`` says; the others go on to the step. A report that a person
released is folded by the next round that begins, beside that round's own.

What is decided depends on the round's updates, the plan and what was fixed when the round was first
begun, so that a round that is done again decides the same.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from asterion_server.central_step import CentralStep, Sum
from asterion_server.fold import Part
from asterion_server.quarantine_files import HeldReport, QuarantineFiles, SuspiciousLayer
from asterion_server.robust_fold import KeptUpdates
from asterion_server.suspicion import LayerFigures, suspicious
from asterion_shared.blocks import map_numbers, through
from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.files import write_parts_atomically
from asterion_shared.fold_rules import QuarantineSettings
from asterion_shared.parameters import Layout, Vector, named_parts
from asterion_shared.result import SiteOutcome
from asterion_shared.tensor_files import map_tensors, write_tensors


class Quarantine:
    """A central step before another.

    Args:
        inner: the plan's step.
        settings: the plan's section.
        layout: of the run's network.
        folder: the run's.
        run: identity of the run.
    """

    linear = False

    def __init__(
        self,
        inner: CentralStep,
        settings: QuarantineSettings,
        layout: Layout,
        folder: Path,
        run: str,
    ) -> None:
        self._inner, self._settings, self._layout = inner, settings, layout
        self._files, self._run = QuarantineFiles(folder), run
        self._spill = folder / "early"
        self._updates = KeptUpdates(self._spill)
        self._round = 0
        self._taken: tuple[tuple[str, int], ...] = ()

    def open_round(self, number: int) -> None:
        """Fix which released reports the round folds; to be called before :meth:`begin`.

        Raises:
            DiskProblemError: the run's folder is not writable.
            FileProblemError: a file of the quarantine was edited and does not hold.
        """
        self._files.forget_folded(number)
        self._round, self._taken = number, self._files.take(number)

    @property
    def released(self) -> dict[str, tuple[int, ...]]:
        """The released reports that this round folds: their rounds, by site."""
        return {
            site: tuple(number for name, number in self._taken if name == site)
            for site, _ in self._taken
        }

    def begin(self, sites: Sequence[str], size: int) -> None:
        """See :class:`CentralStep`; released reports come after the round's own."""
        self._updates = KeptUpdates(self._spill)
        self._inner.begin([*sites, *(_key(*one) for one in self._taken)], size)

    def add(self, site: str, update: Vector, weight: float, factor: float = 1.0) -> None:
        """Keep an update until :meth:`close`."""
        self._updates.add(site, update, weight, factor)

    def add_sum(self, sites: Iterable[str], total: Sum, weight: float) -> None:
        """Refused: a sum shows no site's own update."""
        msg = "quarantine needs each update by itself"
        raise TypeError(msg)

    def leave_out(self, site: str) -> None:
        """See :class:`CentralStep`."""
        self._inner.leave_out(site)

    def close(self, outcomes: Mapping[str, SiteOutcome]) -> dict[str, SiteOutcome]:
        """Hand what may be folded to the step, once all of a round's answers are in.

        Returns:
            The outcomes, with what became of suspicious reports.

        Raises:
            DiskProblemError: the run's folder is not writable.
            FileProblemError: a released report's file is gone or changed.
        """
        parts, policy = self._updates.parts, self._settings.on_suspicion
        found = suspicious(parts, self._layout, self._settings)
        after = dict(outcomes)
        for site, part in parts.items():
            layers = found.get(site, ())
            if layers:
                self._store(site, part, layers, len(parts))
                changed: dict[str, object] = {"suspicious_layers": tuple(x.layer for x in layers)}
                if policy != "report":
                    changed["outcome"] = "quarantined"
                after[site] = after[site].model_copy(update=changed)
            if layers and policy != "report":
                self._inner.leave_out(site)
            else:
                self._inner.add(site, part.update, part.weight, part.factor)
        self._files.forget_others(self._round, tuple(found))
        for site, number in self._taken:
            part = self._released(site, number)
            self._inner.add(_key(site, number), part.update, part.weight, part.factor)
        self._updates = KeptUpdates(self._spill)
        return after

    @property
    def clip_norm(self) -> float | None:
        """The inner step's."""
        return self._inner.clip_norm

    def count_clipped(self, num_within: int, num_beyond: int) -> None:
        """See :class:`CentralStep`."""
        self._inner.count_clipped(num_within, num_beyond)

    def finish(self, round_: int, weights: Vector) -> Vector:
        """See :class:`CentralStep`."""
        return self._inner.finish(round_, weights)

    def state(self) -> Mapping[str, Vector]:
        """See :class:`CentralStep`."""
        return self._inner.state()

    def restore(self, state: Mapping[str, Vector]) -> None:
        """See :class:`CentralStep`."""
        self._inner.restore(state)

    def _store(
        self, site: str, part: Part, layers: tuple[LayerFigures, ...], num_reports: int
    ) -> None:
        digest = ""
        if self._settings.on_suspicion == "hold":
            tensors = named_parts(part.update, self._layout)
            digest = write_tensors(self._files.update_file(self._round, site), tensors)
        report = HeldReport(
            run=self._run,
            round=self._round,
            site=site,
            policy=self._settings.on_suspicion,
            num_reports=num_reports,
            weight=part.weight,
            clip_factor=part.factor,
            update_sha256=digest,
            layers=tuple(SuspiciousLayer(**asdict(one)) for one in layers),
        )
        with self._files.locked():
            self._files.put(report)

    def _released(self, site: str, number: int) -> Part:
        """A released report's update, mapped in the layout's order."""
        kept = next(r for r in self._files.reports() if (r.site, r.round) == (site, number))
        path = self._files.update_file(number, site)
        again = "put the file back: the round was begun with it"
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise FileProblemError(path, error.strerror or "unreadable", again) from None
        if found != kept.update_sha256:
            what = f"its SHA-256 is {found}, it was stored with {kept.update_sha256}"
            raise FileProblemError(path, what, again)
        named = map_tensors(path).tensors
        flat = (named[tensor.name].reshape(-1) for tensor in self._layout.shared)
        laid_out = self._spill / f"released-{_key(site, number)}"
        write_parts_atomically(
            laid_out,
            (one[block].view(np.uint8).data for one in flat for block in through(one.size, one)),
        )
        try:
            update = map_numbers(laid_out, self._layout.size)
            laid_out.unlink()
        except OSError as error:
            raise DiskProblemError(laid_out, error.strerror or "unreadable") from error
        return Part(update, kept.weight, kept.clip_factor)


def _key(site: str, number: int) -> str:
    """A name that no site has, for a report of an earlier round."""
    return f"{site} of round {number}"
