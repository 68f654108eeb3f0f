"""`python simulate.py demo`, short, with the real base model: what it leaves behind is what a deployment has."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.privacy_accountant import NeighboringRelation

ROOT = Path(__file__).resolve().parents[2]
SHOPS = ["alpine-outfitters", "city-kitchen", "game-corner", "green-thumb"]

pytestmark = [pytest.mark.e2e, pytest.mark.base]


def _python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


def _budget(folder: Path) -> dict[str, Any]:
    client = Path(sys.executable).parent / "flower-client"
    shown = subprocess.run([client, "budget", "--dir", folder, "--json"], capture_output=True, text=True, check=True)
    return dict(json.loads(shown.stdout))


def _second_opinion(releases: list[dict[str, Any]], delta: float) -> float:
    """Epsilon of a ledger's rows by Google's dp-accounting (PLD), which shares no code with the ledger's accountant."""
    accountant = pld_privacy_accountant.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for row in releases:
        event: dp_event.DpEvent = dp_event.GaussianDpEvent(row["noise_multiplier"])
        if row["sample_rate"] < 1:
            event = dp_event.PoissonSampledDpEvent(row["sample_rate"], event)
        accountant.compose(event, row["steps"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(out.parent / "state"))
        ran = _python("simulate.py", "demo", "--out", out, "--rounds", 2, "--split-seed", 0, "--json")
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert printed == json.loads((out / "summary.json").read_text())
    return out, printed


def test_the_summary_says_what_was_done(demo: tuple[Path, dict[str, Any]]) -> None:
    out, summary = demo
    assert summary["rounds"] == 2 and summary["seconds"] > 0
    assert [tenant["name"] for tenant in summary["tenants"]] == SHOPS
    for tenant in summary["tenants"]:
        assert 0 < tenant["epsilon_spent"] <= tenant["epsilon"] == 8.0
        assert (tenant["delta"], tenant["unit"], tenant["adjacency"]) == (1e-5, "user", "add-or-remove-one")
        # Two rounds, and a table before, in the middle and at the end; nothing was refused.
        assert (tenant["releases"], tenant["refused"]) == (5, 0)
        assert (out / "tenants" / tenant["name"]).is_dir()
        assert (out / "populations" / f"{tenant['name']}.sqlite").is_file()
    for metric in summary["metrics"].values():
        assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
    assert summary["exact_metrics"]["private"] is False and 0 < summary["exact_metrics"]["auc"] < 1
    assert summary["comparison"] == {}
    assert summary["bytes_up"] > 0 and summary["bytes_down"] > 0
    assert (out / "adapter" / "head.safetensors").is_file()


def test_a_rehearsal_leaves_the_users_own_ledgers_alone(demo: tuple[Path, dict[str, Any]]) -> None:
    assert not (demo[0].parent / "state").exists()


def test_a_second_accountant_agrees_with_the_ledger(demo: tuple[Path, dict[str, Any]]) -> None:
    budget = _budget(demo[0] / "tenants" / SHOPS[0])
    for kind, told in (("train", budget["epsilon_train"]), ("evaluate", budget["epsilon_evaluation"])):
        rows = [row for row in budget["releases"] if row["kind"] == kind]
        reference = _second_opinion(rows, budget["segments"][0]["delta"])
        assert told >= reference - 1e-4, "the ledger would say less than was spent"
        assert told - reference <= max(0.02 * reference, 0.02)
    assert budget["epsilon_spent"] == max(budget["epsilon_train"], budget["epsilon_evaluation"])


def test_a_folder_that_is_not_empty_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    ran = _python("simulate.py", "demo", "--out", tmp_path)
    assert ran.returncode == 2 and "is not empty" in ran.stderr and "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_its_help_says_what_exists() -> None:
    ran = _python("simulate.py", "--help")
    assert ran.returncode == 0 and "demo" in ran.stdout and "EXPERIMENT.toml" in ran.stdout
    ran = _python("simulate.py", "no-such-file.toml")
    assert ran.returncode == 2 and "no-such-file.toml: cannot be read" in ran.stderr
