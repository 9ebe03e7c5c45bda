"""A run becomes a release: what is in it, and what it says of itself."""

import json
import re
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from monai.bundle.scripts import verify_net_in_out
from tests.conftest import Ran
from tests.release.conftest import small_plan
from tests.release.runs import RUN, SITES, WORST, a_round, add_run, coordinator_with_run
from torch import nn

from asterion_server.backup import back_up_coordinator
from asterion_server.keys import Provisioned
from asterion_server.release_build import Made, registry_of, release
from asterion_server.release_onnx import export_onnx
from asterion_server.release_settings import AboutSettings, ReleaseSettings
from asterion_server.run_folder import RunFolder
from asterion_shared.audit import trail_files
from asterion_shared.audit_verify import verify_trails
from asterion_shared.errors import (
    FileProblemError,
    PlanMismatchError,
    ReleaseBrokenError,
    ReleaseHeldError,
    UserInputError,
)
from asterion_shared.metrics.decisions import Decisions, Threshold
from asterion_shared.release.facts import MODEL, ONNX
from asterion_shared.release.opening import open_release
from asterion_shared.release.verifying import verify_release

WORDS = "Only to count cells | on slides\nof this study."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return coordinator_with_run(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def first(made: Provisioned) -> Made:
    settings = ReleaseSettings(about=AboutSettings(intended_use=WORDS, data_sources=WORDS))
    return release(made, RUN, settings)


@pytest.fixture(scope="module")
def card(first: Made) -> str:
    return (first.folder / "docs/README.md").read_text()


def test_a_release_has_the_weights_of_the_run(made: Provisioned, first: Made) -> None:
    folder = made.runs / RUN
    opened = open_release(first.folder, made.releases / "release.pem")
    assert (first.folder / MODEL).read_bytes() == (folder / "model.safetensors").read_bytes()
    assert opened.plan.canonical() == (folder / "plan.json").read_text()
    facts = opened.facts
    assert (facts.run, facts.rounds, facts.sites, facts.version) == (RUN, 3, 3, 1)
    assert facts.versions == {"torch": "2.13.0"}
    assert {"asterion_shared", "asterion_server"} == facts.code_sha256.keys()


def test_onnx_computes_what_torch_does(first: Made) -> None:
    opened = open_release(first.folder)
    onnx = opened.facts.onnx
    assert onnx.largest_difference is not None
    assert onnx.tolerance is not None
    assert onnx.largest_difference <= onnx.tolerance < 1e-2
    session = onnxruntime.InferenceSession(first.folder / ONNX)
    for batch in (1, 5):
        inputs = torch.randn(batch, 1, 16, 16)
        with torch.no_grad():
            expected = opened.network(inputs).numpy()
        (found,) = session.run(None, {"inputs": inputs.numpy()})
        np.testing.assert_allclose(found, expected, atol=onnx.tolerance)


class Undecided(nn.Module):
    """Its path depends on the numbers, which an export cannot follow."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs if float(inputs.sum()) > 0 else -inputs


class TwoFaced(nn.Module):
    """Exported it is another function."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + 1 if torch.compiler.is_exporting() else inputs


@pytest.mark.parametrize(
    ("network", "why"), [(Undecided(), "torch cannot export"), (TwoFaced(), "differ by 1,")]
)
def test_an_export_that_fails_is_told_and_leaves_no_file(
    network: nn.Module, why: str, tmp_path: Path
) -> None:
    facts = export_onnx(network.eval(), small_plan(), tmp_path / ONNX)
    assert why in facts.why_not
    assert not (tmp_path / ONNX).exists()


def test_a_release_is_a_monai_bundle(first: Made) -> None:
    configs = first.folder / "configs"
    root = str(first.folder)
    verify_net_in_out(
        meta_file=str(configs / "metadata.json"), config_file=str(configs / "inference.json"),
        net_id="network_def", device="cpu", bundle_root=root,
    )  # fmt: skip
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.json"))
    parser["bundle_root"] = root
    network = parser.get_parsed_content("network")
    inferer = parser.get_parsed_content("inferer")
    with torch.no_grad():
        assert inferer(torch.randn(1, 1, 40, 24), network).shape == (1, 2, 40, 24)
    metadata = json.loads((configs / "metadata.json").read_text())
    needed = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "task",
              "description", "authors", "copyright", "network_data_format"}  # fmt: skip
    assert needed <= metadata.keys()


def test_the_card_has_the_numbers_and_says_what_nobody_recorded(card: str) -> None:
    assert "# cells, version 1\n\n**For research only.**" in card
    assert "| Dice | 0.820 | 0.790 to 0.850 | 0.010 |" in card
    assert f"the lowest Dice is {WORST:.3f}, at south." in card
    assert "| south | 40 | 12 | 1 | 0.710 | 0.680 to 0.740 |" in card
    assert "Only to count cells | on slides of this study." in card
    assert "(reference standard): *Not recorded.*" in card
    assert "Site north missing in rounds 2-3 (late)." in card
    assert "| HD95 (mm) | not defined |" in card
    assert "are few" not in card
    assert "the signature holds under the key" in card
    assert "None" not in card.replace("None: updates leave", "")


DECISIONS = Decisions(
    temperature=1.6, log_loss=0.5, log_loss_after=0.4, num_cases=36, num_bins=30,
    thresholds={"youden": Threshold(score=0.37, sensitivity=0.9, false_alarm_rate=0.2)},
)  # fmt: skip


def test_each_model_has_what_was_fitted_of_it(tmp_path: Path) -> None:
    plan = small_plan(
        task="classification", model={"name": "logistic"}, rounds={"count": 3},
        data={"kind": "table", "features": ["age"], "classes": ["well", "ill"]},
    )  # fmt: skip
    last = a_round(3, 0.8, 0.7, SITES)
    auroc: dict[str, float | None] = {"auroc": 0.9, "baseline/auroc": 0.5, "prevalence": 0.5,
                                      "num_cases": 36.0, "calibration_error": 0.08}  # fmt: skip
    of_the_best = DECISIONS.model_copy(update={"temperature": 0.8, "thresholds": {}})
    rounds = tuple(
        r.model_copy(update={"pooled": auroc, "decisions": fitted})
        for r, fitted in ((a_round(2, 0.8, 0.7, SITES), of_the_best), (last, DECISIONS))
    )
    made = coordinator_with_run(
        tmp_path,
        plan,
        decisions=DECISIONS,
        rounds=rounds,
        final_metrics=auroc,
        sites=tuple({"name": site, "num_examples": 9, "num_test": 2} for site in SITES),
    )
    final = release(made, RUN, ReleaseSettings())
    opened = open_release(final.folder)
    assert (opened.temperature, opened.thresholds) == (1.6, {"youden": 0.37})
    card = (final.folder / "docs/README.md").read_text()
    assert "* 6 test examples in all are few" in card
    assert "It was too sure: dividing its logits by 1.600" in card
    assert (
        "At the threshold 0.37 (youden) it finds 90 % of the positive cases and calls 20 %" in card
    )
    best = open_release(release(made, RUN, ReleaseSettings(), chosen="best").folder)
    assert (best.temperature, best.thresholds) == (0.8, {})


def test_the_claim_report_has_every_item_in_order(first: Made) -> None:
    text = (first.folder / "docs/claim.md").read_text()
    numbers = [int(n) for n in re.findall(r"^\*\*(\d+)\. ", text, re.MULTILINE)]
    assert numbers == list(range(1, 45))
    assert "**36. Who they are.** *Not recorded.*" in text
    assert "**7. Sources of data.** Only to count cells" in text


def test_programs_can_read_the_papers(first: Made) -> None:
    docs = first.folder / "docs"
    south = json.loads((docs / "datasheets.json").read_text())["sites"]["south"]
    assert (south["training_examples"], south["rounds_answered"]) == (40, 3)
    assert json.loads((docs / "approval.json").read_text())["holds"] is True
    assert json.loads((docs / "privacy.json").read_text())["account"] is None


def test_the_key_is_private_and_in_the_backup(
    made: Provisioned, first: Made, tmp_path: Path
) -> None:
    assert stat.S_IMODE((made.releases / "release.key").stat().st_mode) == 0o600
    back_up_coordinator(made.folder, tmp_path / "backup.tar")
    with tarfile.open(tmp_path / "backup.tar") as archive:
        names = [Path(name).parts for name in archive.getnames()]
    for name in ("release.key", "registry.jsonl"):
        assert any(parts[-2:] == ("releases", name) for parts in names)
    assert any(parts[-5:] == ("releases", "cells", "1", *Path(MODEL).parts) for parts in names)


def test_versions_are_promoted_and_rolled_back(
    made: Provisioned, first: Made, asterion: Callable[..., Ran]
) -> None:
    at = ("--folder", made.folder)
    early = asterion("server", "releases", "rollback", "cells", *at)
    assert early.code == UserInputError.exit_code
    best = asterion("server", "release", RUN, "--model", "best", "--maturity", "evaluated", *at)
    assert best.code == 0, best.said
    assert "Dice is 0.860" in best.out
    second = verify_release(made.releases / "cells/2").facts
    assert (second.rounds, second.chosen, second.maturity) == (2, "best", "evaluated")
    card = (made.releases / "cells/2/docs/README.md").read_text()
    assert "| south | 40 | 12 | 1 | 0.800 |" in card
    assert "a little too good" in card
    for words, current in ((("promote", "cells", 1), 1), (("promote", "cells", 2), 2),
                           (("rollback", "cells"), 1)):  # fmt: skip
        assert asterion("server", "releases", *words, *at).code == 0
        assert registry_of(made).model("cells").current == current
    listed = json.loads(asterion("server", "releases", *at, "--json").out)["models"]["cells"]
    assert (listed["current"], [v["version"] for v in listed["versions"]]) == (1, [1, 2])
    assert "version 1: research  (in use)" in asterion("server", "releases", *at).out
    # A release that was changed does not come into use.
    weights = made.releases / "cells/2" / MODEL
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    changed = asterion("server", "releases", "promote", "cells", 2, *at)
    assert changed.code == ReleaseBrokenError.exit_code
    assert registry_of(made).model("cells").current == 1
    (verdict,) = verify_trails(trail_files(made.audit))
    assert verdict.problem is None
    kinds = [line.record.kind for line in verdict.lines if line.record.kind.startswith("model_")]
    assert kinds == ["model_released"] * 2 + ["model_promoted"] * 2 + ["model_rolled_back"]


def test_what_the_gate_holds_back_is_released_only_with_a_reason(
    made: Provisioned, first: Made, asterion: Callable[..., Ran]
) -> None:
    (made.folder / "release.toml").write_text("[gate]\nworst_site_at_least = 0.75\n")
    at = ("--folder", made.folder, "--name", "held")
    try:
        held = asterion("server", "release", RUN, *at)
        assert held.code == ReleaseHeldError.exit_code
        assert "worst site: Dice is 0.710 at south, and 0.75 is asked" in held.err
        assert "held" not in registry_of(made).models()
        why = "to show it to | the sites"
        done = asterion("server", "release", RUN, *at, "--despite", why, "--maturity", "approved")
        assert done.code == 0, done.said
    finally:
        (made.folder / "release.toml").unlink()
    facts = verify_release(made.releases / "held/1").facts
    assert (facts.maturity, facts.despite) == ("research", why)
    assert "Dice is 0.710 at south" in facts.held_back[0]
    card = (made.releases / "held/1/docs/README.md").read_text()
    assert "> **The release gate held it back:**\n> * worst site: Dice is 0.710 at south" in card
    assert f"because: {why}" in card
    promoted = asterion("server", "releases", "promote", "held", 1, "--folder", made.folder)
    assert promoted.code == ReleaseHeldError.exit_code
    assert registry_of(made).model("held").current is None


def test_what_cannot_be_released_is_refused(made: Provisioned, tmp_path: Path) -> None:
    settings = ReleaseSettings()
    with pytest.raises(UserInputError, match="there is no run 'nothing'"):
        release(made, "nothing", settings)
    kept = small_plan(name="own-heads", parameters={"keep": ["logits.*"]}, rounds={"count": 3})
    add_run(made, kept, "own-heads")
    with pytest.raises(PlanMismatchError, match="each site keeps its own"):
        release(made, "own-heads", settings)
    with pytest.raises(UserInputError, match="exists"):
        release(made, RUN, settings, out=tmp_path)
    other = add_run(made, small_plan(rounds={"count": 3}), "other")
    with other.carried_out_here(), pytest.raises(UserInputError, match="has not ended"):
        release(made, "other", settings)
    model = RunFolder(made.runs / "other").path / "model.safetensors"
    model.write_bytes((made.runs / RUN / "model.safetensors").read_bytes())
    with pytest.raises(FileProblemError, match="is not the model of the result"):
        release(made, "other", settings)
    assert not list(made.releases.glob("*/.*"))
