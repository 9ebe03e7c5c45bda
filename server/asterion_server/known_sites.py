"""What each site said of its data, over the rounds of a run."""

from collections.abc import Iterable

from asterion_server.checkpoint import read_sites, sites_text
from asterion_shared.messages import Report
from asterion_shared.result import SiteSummary


class KnownSites:
    """The sites that answered, by name, and the text of them that a checkpoint has.

    Thousands of sites seldom change from round to round, so the text is kept until one does.
    """

    def __init__(self) -> None:
        self.summaries: dict[str, SiteSummary] = {}
        self._text = ""

    def restore(self, text: str) -> None:
        """Take up what a checkpoint has."""
        self.summaries = {site.name: site for site in read_sites(text)}
        self._text = ""

    def remember(self, report: Report) -> None:
        """Take what a report says of the site's data."""
        said = {
            "num_examples": report.num_examples,
            "num_test": report.num_test,
            "num_bad_files": report.num_bad_files,
            "manifest_sha256": report.manifest_sha256,
        }
        known = self.summaries.get(report.site)
        if known is None or any(getattr(known, name) != value for name, value in said.items()):
            self.summaries[report.site] = SiteSummary.model_validate({"name": report.site} | said)
            self._text = ""

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Training examples by site; 0 for one that has not said."""
        known = self.summaries
        return {name: known[name].num_examples if name in known else 0 for name in names}

    def text(self) -> str:
        """As :func:`asterion_server.checkpoint.sites_text` writes them, sorted by name."""
        if not self._text:
            self._text = sites_text(self.summaries[name] for name in sorted(self.summaries))
        return self._text
