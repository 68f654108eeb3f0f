"""Whole audits over the tiny base: the attack works where nothing protects, and a fault that is planted is found."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from numpy.typing import NDArray
from tests.simulations.conftest import WriteExperiment

from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.modeling.base import hash_base
from fedprofile.simulations import cli, cohort, federation
from fedprofile.simulations.audit.auditor import Auditor
from fedprofile.simulations.audit.command import run_audit
from fedprofile.simulations.audit.findings import AuditFailed
from fedprofile.simulations.audit.shown import audit_rows, membership_rows, read_audit
from fedprofile.simulations.audit.spec import Audit, load_audit
from fedprofile.simulations.experiment import load_experiment
from fedprofile.simulations.randomness import NoNoise, SeededRandomness
from fedprofile.simulations.sweep import run_experiment


@pytest.fixture
def audit_data(tiny_base: Path) -> dict[str, Any]:
    """A small audit as plain data."""
    return {
        "name": "small",
        "epsilons": [1.0, math.inf],
        "tenants": ["green-thumb"],
        "data": {"limit": 60},
        "canaries": {"count": 200, "columns": 3, "guesses_in": 40, "guesses_out": 40},
        "card": {
            "base": hash_base(tiny_base, "example/tiny-bert", "main").model_dump(),
            "adapter": {"rank": 2, "text_scale": 0.1},
            "training": {
                "rounds": 4,
                "local_steps": 1,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "head_learning_rate": 0.5,
            },
            "evaluation": {"when": "never"},
        },
        "tenant": {"privacy": {"sample_rate": 0.7, "evaluation_users": 0.5}},
        "engine": {"base": str(tiny_base)},
    }


def test_the_attack_succeeds_without_dp_and_bounds_stay_below_claims_with_it(
    audit_data: dict[str, Any], write_experiment: WriteExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_audit(validate(audit_data, Audit, "audit"), out=tmp_path / "out", json_output=True)
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert found["outcome"] == "holds"
    private, bare = found["findings"]
    assert private["claim"]["epsilon"] == pytest.approx(1.0, rel=0.01)
    assert private["claim"]["unit"] == "user" and private["claim"]["delta"] == private["delta"] == 1e-5
    assert private["updates"]["bound"] < 1.0 and private["bound_over_claim"] < 1.0 and not private["broken"]
    # 80 of 80 right without DP: the bound has a closed form up to delta's part.
    assert bare["epsilon"] == "inf" and bare["claim"] is None
    assert bare["updates"]["right"] >= 79 and bare["updates"]["bound"] >= 2.5
    for finding in (private, bare):
        assert finding["canaries"] == 200 and 70 < finding["included"] < 130
        assert finding["updates"]["guesses"] == finding["final"]["guesses"] == 80
    # Real people, too, are found without DP and not with it.
    assert bare["members_by_updates"]["auc"]["low"] > 0.5 > private["members_by_updates"]["auc"]["low"]
    # An audit is a function of its file.
    [again] = Auditor(validate(audit_data, Audit, "audit")).findings(1.0)
    assert json.loads(json.dumps(again.as_dict())) == private
    _check_report(tmp_path / "out", found)
    experiment = load_experiment(write_experiment())
    run_experiment(experiment, out=tmp_path / "shown", resume=False, jobs=1, json_output=False, audit=tmp_path / "out")
    assert "'all updates, green-thumb' works" in (tmp_path / "shown" / "report.md").read_text(encoding="utf-8")


def _check_report(out: Path, found: dict[str, Any]) -> None:
    """The audit's own report, and the rows of an experiment's that shows the audit, say what audit.json says."""
    text = (out / "report.md").read_text(encoding="utf-8")
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "lie below the claim in all of 2 attacks" in text and "'all updates, green-thumb' works" in text
    assert "REFUTED" not in text and "FAILS" not in text
    read = read_audit(out)
    rows = audit_rows(read)
    # 80 guesses that are all right, up to delta's part.
    assert all(row.ceiling == pytest.approx(-math.log(0.05 ** (-1 / 80) - 1), abs=0.1) for row in rows)
    assert all(row.holds for row in rows if row.judges)
    assert [(row.attack, row.bound, row.judges) for row in rows] == [
        (f"{name}, green-thumb", finding[attack]["bound"], attack == "updates")
        for finding in found["findings"]
        for attack, name in (("updates", "all updates"), ("final", "the final adapter"))
    ]
    assert {(row.asked, row.auc[1] > 0.5) for row in membership_rows(read) if row.attack.startswith("all updates")} == {
        (math.inf, True),
        (1.0, False),
    }


@pytest.mark.parametrize("content", [None, "{", '{"findings": 3}', '{"findings": [{"claim": null}]}'])
def test_a_folder_without_a_usable_audit_is_refused_before_anything_runs(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "audit.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"--audit {tmp_path}: .*run"):
        read_audit(tmp_path)


def test_missing_noise_under_a_claim_fails_with_exit_code_3(
    audit_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The fault: the tenants' source gives zeros, while their ledgers count as always.
    monkeypatch.setattr(federation, "SeededRandomness", NoNoise)
    file = tmp_path / "audit.toml"
    file.write_text(tomli_w.dumps(audit_data | {"epsilons": [1.0]}), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["simulate.py", "audit", str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    error = capsys.readouterr().err
    assert "FAILED: tenant 'green-thumb'" in error and "its ledger claims epsilon=0.999 (delta=1e-05" in error
    [finding] = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))["findings"]
    assert finding["broken"] and finding["updates"]["bound"] > 2 * finding["claim"]["epsilon"]


def test_half_the_noise_under_a_claim_is_found_though_the_guesses_cannot_tell(
    audit_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Halved(SeededRandomness):
        """The fault: half of every draw of noise."""

        def gaussian(self, count: int) -> NDArray[np.float64]:
            return super().gaussian(count) / 2

    monkeypatch.setattr(federation, "SeededRandomness", Halved)
    audit = validate(audit_data | {"epsilons": [3.0]}, Audit, "audit")
    with pytest.raises(AuditFailed, match=r"hold noise of .*, and its ledger accounts for"):
        run_audit(audit, out=tmp_path / "out", json_output=False)
    [finding] = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))["findings"]
    assert finding["broken"] and finding["updates"]["bound"] < finding["claim"]["epsilon"]
    assert finding["noise"]["found"] / finding["noise"]["claimed"] == pytest.approx(0.5, abs=0.1)
    assert "THE AUDIT FAILS: the updates hold" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


class _Less(SeededRandomness):
    """The fault: noise of a sixteenth of its size."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        return super().gaussian(count) / 16


def _by_record(draw: Callable[..., Any]) -> Callable[..., Any]:
    """The fault: every record is clipped by itself, so that a user counts as often as it has records."""

    def drawn(jobs: Any, rows: int) -> Any:
        sample = draw(jobs, rows)
        return replace(sample, records=replace(sample.records, user=np.arange(len(sample.records.user))))

    return drawn


@pytest.mark.parametrize(
    ("fault", "records", "broken"),
    [("none", 16, False), ("noise", 1, True), ("clipping", 16, True), ("clipping", 1, False)],
)
def test_what_an_audit_finds_and_what_it_cannot(
    audit_data: dict[str, Any], fault: str, records: int, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "noise":
        monkeypatch.setattr(federation, "SeededRandomness", _Less)
    if fault == "clipping":
        monkeypatch.setattr(cohort, "_draw", _by_record(cohort._draw))
    audit_data["canaries"]["records"] = records
    audit_data["tenant"]["privacy"]["records_per_user"] = records
    [finding] = Auditor(validate(audit_data, Audit, "audit")).findings(1.0)
    assert finding.broken == broken, finding.updates


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tenants": ["nobody"]}, "'nobody' is not a tenant of this data; it has alpine-outfitters"),
        ({"canaries": {"count": 20}}, "guesses_in .* is above count = 20"),
        ({"epsilons": [1.0, 1.0]}, "names the same value twice"),
        ({"engine": {"kind": "ray"}}, "leave engine.kind out"),
        ({"canaries": {"words": 40}}, "canaries.words=40 does not fit history.max_tokens=32"),
        ({"card": {"training": {"rounds": 0}}}, "training.rounds"),
    ],
)
def test_what_cannot_be_audited_is_named(
    audit_data: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_audit(validate(audit_data | changes, Audit, "audit"), out=tmp_path / "out", json_output=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused(audit_data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        run_audit(validate(audit_data, Audit, "audit"), out=tmp_path, json_output=False)


def test_the_shipped_audit_is_one() -> None:
    audit = load_audit(cli.AUDIT)
    assert audit.epsilons == (1.0, 3.0, 8.0, math.inf) and audit.canaries.count == 1000
