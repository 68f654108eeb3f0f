"""A finished audit as rows of a report: its own, and that of an experiment that shows it beside its results."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.errors import ConfigError
from fedprofile.simulations.audit.one_run import get_eps_audit
from fedprofile.simulations.report import AuditRow, MembershipRow, ReportFacts
from fedprofile.simulations.scenarios import is_generated

FILE = "audit.json"

_ATTACKS = {"updates": "all updates", "final": "the final adapter"}
_FOUND_AT = "0.01"


def read_audit(folder: Path) -> dict[str, Any]:
    """Read what an audit wrote.

    Args:
        folder: Its `--out`.

    Returns:
        The content of its `audit.json`.

    Raises:
        ConfigError: There is none, or it is not an audit's.
    """
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        audit_rows(found)
        membership_rows(found)
    except OSError as error:
        raise ConfigError(
            f"--audit {folder}: holds no {FILE}; run `python simulate.py audit --out {folder}` first."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--audit {folder}: its {FILE} is not one that this version wrote; run it again.") from error
    return dict(found)


def audit_rows(found: Mapping[str, Any]) -> tuple[AuditRow, ...]:
    """Guesses at canaries.

    Args:
        found: Content of `audit.json`.

    Returns:
        A row for each attack on each audited tenant of each run.
    """
    return tuple(
        AuditRow(
            attack=_name(finding, attack),
            claim=None if finding["claim"] is None else PrivacyLoss(**finding["claim"]),
            canaries=finding["canaries"],
            guesses=finding[attack]["guesses"],
            correct=finding[attack]["right"],
            bound=finding[attack]["bound"],
            confidence=finding["confidence"],
            needed=found["audit"]["must_reach"],
            ceiling=get_eps_audit(
                m=finding["canaries"],
                r=finding[attack]["guesses"],
                v=finding[attack]["guesses"],
                p=1 - finding["confidence"],
                delta=finding["delta"],
            ),
            # From the final adapter alone less may come out; it is the updates that judge.
            judges=attack == "updates",
            noise=_noise(finding) if attack == "updates" else None,
        )
        for finding in found["findings"]
        for attack in _ATTACKS
    )


def membership_rows(found: Mapping[str, Any]) -> tuple[MembershipRow, ...]:
    """Attacks on the people in the data.

    Args:
        found: Content of `audit.json`.

    Returns:
        A row for each attack on each audited tenant of each run.
    """
    return tuple(
        MembershipRow(
            attack=_name(finding, attack),
            asked=_asked(finding),
            members=people["members"],
            others=people["others"],
            auc=_three(people["auc"]),
            found=_three(people["true_positives"][_FOUND_AT]),
        )
        for finding in found["findings"]
        for attack in _ATTACKS
        for people in [finding[f"members_by_{attack}"]]
    )


def audit_facts(found: Mapping[str, Any], command: str) -> ReportFacts:
    """What an audit's own report says.

    Args:
        found: Content of `audit.json`.
        command: That ran it.

    Returns:
        The facts.
    """
    audit, rows = found["audit"], audit_rows(found)
    packages = ("torch", "transformers", "peft", "opacus", "flwr")
    sections = ("data", "canaries", "engine", "card", "tenant")
    settings = {key: str(value) for key, value in audit.items() if key not in sections}
    settings |= {f"{section}.{key}": str(value) for section in sections for key, value in audit[section].items()}
    return ReportFacts(
        experiment=audit["name"],
        command=command,
        dataset=audit["data"]["dataset"],
        real_data=not is_generated(audit["data"]["dataset"]),
        promise=next((row.claim for row in rows if row.claim is not None), None),
        seeds=(audit["seed"],),
        audit=rows,
        membership=membership_rows(found),
        settings=settings,
        versions={name: str(found["machine"][name]) for name in packages},
        machine={key: str(value) for key, value in found["machine"].items() if key not in packages},
    )


def _name(finding: Mapping[str, Any], attack: str) -> str:
    return f"{_ATTACKS[attack]}, {finding['tenant']}"


def _noise(finding: Mapping[str, Any]) -> tuple[float, float, float] | None:
    noise = finding["noise"]
    return None if noise is None else tuple(noise[end] / noise["claimed"] for end in ("found", "low", "high"))


def _asked(finding: Mapping[str, Any]) -> float:
    return math.inf if finding["epsilon"] == "inf" else float(finding["epsilon"])


def _three(estimate: Mapping[str, float]) -> tuple[float, float, float]:
    return estimate["value"], estimate["low"], estimate["high"]
