"""A person's decision on a suspicious report of a run."""

from asterion_server.app import RUN_NAME
from asterion_server.keys import Provisioned
from asterion_server.quarantine_files import HeldReport, QuarantineFiles, Verdict
from asterion_server.run_folder import RunFolder
from asterion_shared.errors import UserInputError
from asterion_shared.result import read_result


def quarantine_of(made: Provisioned, run: str) -> QuarantineFiles:
    """The quarantine of a run.

    Raises:
        UserInputError: there is no such run.
    """
    path = made.runs / run
    if RUN_NAME.fullmatch(run) is None or not path.is_dir():
        msg = f"there is no run {run!r} in {made.folder}; asterion server status lists the runs"
        raise UserInputError(msg)
    return QuarantineFiles(path)


def one_report(files: QuarantineFiles, run: str, site: str, round_: int) -> HeldReport:
    """The suspicious report of a site that is meant.

    Args:
        files: of the run.
        run: its name, for messages.
        site: whose report.
        round_: of the report; 0 where the site has one only, or one only that is undecided.

    Raises:
        UserInputError: there is none, or there are several.
        FileProblemError: a file was edited and does not hold.
    """
    found = [r for r in files.reports() if r.site == site and round_ in (0, r.round)]
    if len(found) > 1:
        open_ones = [report for report in found if files.state(report) == "held"]
        found = open_ones if len(open_ones) == 1 else found
    if len(found) != 1:
        rounds = ", ".join(str(report.round) for report in found)
        msg = (
            f"site {site} has suspicious reports of rounds {rounds}; say which with --round"
            if found
            else f"site {site} has no such suspicious report in run {run}; see quarantine list"
        )
        raise UserInputError(msg)
    return found[0]


def decide(made: Provisioned, run: str, site: str, round_: int, verdict: Verdict) -> HeldReport:
    """Release a held report into the next round, or drop it for good; returns the report.

    Raises:
        UserInputError: there is no such report, or the run has no next round.
        AsterionError: as :meth:`asterion_server.quarantine_files.QuarantineFiles.decide`.
    """
    files = quarantine_of(made, run)
    result = RunFolder(files.path).result
    if verdict == "release" and result.exists() and read_result(result).status == "finished":
        msg = f"run {run} is finished and has no next round; nothing would fold the report"
        raise UserInputError(msg)
    report = one_report(files, run, site, round_)
    files.decide(report, verdict)
    return report
