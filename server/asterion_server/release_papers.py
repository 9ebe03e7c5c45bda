"""The papers of a release that programs read: counts per site, privacy, approval."""

from typing import Any

from asterion_server.release_run import TrainedRun
from asterion_server.release_words import approval_sentence, privacy_sentences
from asterion_shared.release.facts import Calibration
from asterion_shared.reports.metric_words import headline_metric
from asterion_shared.result import Result


def datasheets(run: TrainedRun) -> dict[str, Any]:
    """Counts per site, and what became of it in the rounds behind the model.

    Under a secure sum no site tells its counts: they are null.
    """
    result, metric = run.result, headline_metric(run.plan.task)
    behind = [r for r in result.rounds if 0 < r.round <= run.rounds]

    def sheet(name: str, **counts: int) -> dict[str, Any]:
        known = {key: None if result.secure_sum else count for key, count in counts.items()}
        return known | {
            "in_the_model": name in run.sites,
            "rounds_answered": sum(name in (*r.answered, *r.carried) for r in behind),
            "metrics": result.final_sites.get(name, {}),
        }

    return {
        "metric": metric,
        "sites": {
            s.name: sheet(
                s.name,
                training_examples=s.num_examples,
                test_examples=s.num_test,
                files_skipped=s.num_bad_files,
            )
            | {"manifest_sha256": s.manifest_sha256}
            for s in result.sites
        },
    }


def privacy_statement(run: TrainedRun) -> dict[str, Any]:
    """What is claimed, what the claim stands on, and what an attack showed of it."""
    result = run.result
    account, audit = result.privacy_account, result.privacy_audit
    return {
        "sentences": privacy_sentences(run),
        "secure_sum": result.secure_sum,
        "account": None if account is None else account.model_dump(mode="json"),
        "attack": None if audit is None else audit.model_dump(mode="json"),
        "claim_broken": result.claim_broken,
    }


def calibration_of(result: Result) -> Calibration | None:
    """The temperature and the thresholds that the run fitted; None when it fitted none."""
    fitted = result.decisions
    if fitted is None:
        return None
    return Calibration(
        temperature=1.0 if fitted.temperature is None else fitted.temperature,
        thresholds={name: point.score for name, point in fitted.thresholds.items()},
    )


def approval(run: TrainedRun) -> dict[str, Any]:
    """Who signed the plan for this run. What each site approved is on that site's own record."""
    signature = run.signature
    return {
        "sentence": approval_sentence(run),
        "holds": run.signature_holds,
        "signature": None if signature is None else signature.model_dump(mode="json"),
    }
