"""One step of a plan on the site's own data, in a process whose network is closed.

``python -m asterion_client.dry_run --site SITE_TOML``, the plan as JSON on standard input, what it
found as JSON on standard output. Nothing is charged, stored or sent.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asterion_client.closed_network import close_network
from asterion_shared.errors import AsterionError, EngineFailedError

MOST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a dry run found.

    Attributes:
        network: how the network was closed.
        num_examples, num_patients: of training, and the people or fields behind them.
        num_test, num_test_patients: held out.
        num_bad_files: that cannot be read.
        num_weights: numbers in an update.
        bytes_up: of one round's report, or of the vector for a secure sum.
        seconds: that one step took, reading data not counted.
    """

    network: str
    num_examples: int
    num_patients: int
    num_test: int
    num_test_patients: int
    num_bad_files: int
    num_weights: int
    bytes_up: int
    seconds: float


def dry_run(site_toml: Path, plan_json: str) -> DryRun:
    """Try a plan in a process of its own.

    Args:
        site_toml: the site's settings.
        plan_json: the plan in its canonical form.

    Raises:
        AsterionError: of any kind: what the plan would end in here, with its exit code.
        EngineFailedError: the process died, or took longer than :data:`MOST_SECONDS`.
    """
    command = [sys.executable, "-m", "asterion_client.dry_run", "--site", str(site_toml)]
    try:
        done = subprocess.run(
            command,
            input=plan_json, capture_output=True, text=True, timeout=MOST_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        msg = f"the dry run did not end within {MOST_SECONDS:.0f} s; leave it out with --no-dry-run"
        raise EngineFailedError(msg) from None
    lines = done.stdout.strip().splitlines()
    if not lines:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        msg = f"the dry run ended with code {done.returncode}: {last[0]}"
        raise EngineFailedError(msg)
    told = json.loads(lines[-1])
    if "error" in told:
        error = AsterionError(told["error"])
        error.exit_code = told["exit_code"]
        raise error
    return DryRun(**told)


def _try(site_toml: Path, plan_json: str, network: str) -> DryRun:
    # Imported here, because torch starts threads and the network is closed before that.
    import torch

    from asterion_client.data.site_data import load_site_data
    from asterion_client.local_round import make_workspace, work
    from asterion_client.settings import read_site_settings
    from asterion_client.update_rounding import rounded
    from asterion_shared.flower_messages import encode_report, num_bytes
    from asterion_shared.messages import Order
    from asterion_shared.plan import parse_plan
    from asterion_shared.privacy.summed_vector import SummedVector

    settings, plan = read_site_settings(site_toml), parse_plan(plan_json)
    torch.set_num_threads(settings.compute.threads)
    data = load_site_data(settings, site_toml.resolve().parent, plan)
    one_step = plan.local.model_copy(update={"amount": 1, "unit": "steps"})
    tried = plan.model_copy(update={"local": one_step})
    workspace = make_workspace(tried, settings.compute.device)
    order = Order(
        run="dry-run",
        plan=tried,
        round=1,
        phase="train" if plan.kind == "train" else "evaluate",
        weights=workspace.initial_weights,
        layout_sha256=workspace.layout.sha256,
    )
    with tempfile.TemporaryDirectory(prefix="asterion-dry-run-") as kept:
        report = work(order, data, workspace, Path(kept))
        if plan.secure_sum is None:
            report, _ = rounded(order, report, Path(kept))
    if plan.secure_sum is None:
        bytes_up = num_bytes(encode_report(report))
    else:
        bytes_up = 4 * SummedVector(plan, workspace.layout.size, 1).length
    return DryRun(
        network=network,
        num_examples=len(data.train),
        num_patients=len({case.group for case in data.train}),
        num_test=len(data.test),
        num_test_patients=len({case.group for case in data.test}),
        num_bad_files=data.num_bad_files,
        num_weights=workspace.layout.size,
        bytes_up=bytes_up,
        seconds=round(report.seconds, 3),
    )


def main() -> None:
    """Run from the review's command line."""
    network = close_network()
    parser = argparse.ArgumentParser()
    parser.add_argument("--site", required=True, type=Path)
    given = parser.parse_args()
    try:
        found: dict[str, Any] = asdict(_try(given.site, sys.stdin.read(), network))
    except AsterionError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    print(json.dumps(found))  # noqa: T201  # for the process that asked


if __name__ == "__main__":
    main()
