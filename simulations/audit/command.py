"""`python simulate.py audit AUDIT.toml`: every run of an audit, a table, and a verdict.

OUT/audit.json                settings, findings, verdict; `simulate.py --audit OUT` shows it in an experiment's report
OUT/report.html, report.md    the same, for people
"""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fedprofile.common.errors import ConfigError
from fedprofile.simulations.audit.auditor import Auditor
from fedprofile.simulations.audit.findings import AuditFailed, Finding, Guesses, judge
from fedprofile.simulations.audit.membership import Estimate, Membership
from fedprofile.simulations.audit.shown import FILE, audit_facts
from fedprofile.simulations.audit.spec import Audit
from fedprofile.simulations.cells import machine
from fedprofile.simulations.report import write_audit_report


def run_audit(audit: Audit, *, out: Path | None, json_output: bool, command: str = "python simulate.py audit") -> None:
    """Run an audit; see the command's options.

    Args:
        audit: Which.
        out: Where its files go.
        json_output: Print `audit.json` at the end.
        command: What the report says that it was made with.

    Raises:
        ConfigError: The audit does not fit card or data, or the folder is not empty.
        AuditFailed: A lower bound exceeds what a ledger claims; all findings are written first.
    """
    root = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root}: is not empty; choose another --out, or empty it.")
    console = Console(stderr=json_output, soft_wrap=True)
    auditor = Auditor(audit)
    findings: list[Finding] = []
    for epsilon in audit.epsilons:
        console.print(f"Run at epsilon {epsilon:g} with {audit.canaries.count} canaries at each audited tenant.")
        findings += auditor.findings(epsilon)
    verdict = judge(findings, audit.must_reach)
    result = {
        "audit": audit.model_dump(mode="json"),
        "findings": [finding.as_dict() for finding in findings],
        "outcome": verdict.outcome,
        "verdict": verdict.sentence,
        "machine": machine(audit.engine),
    }
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    (root / FILE).write_text(text + "\n", encoding="utf-8")
    write_audit_report(root, audit_facts(json.loads(text), command))
    for table in _tables(findings):
        console.print(table)
    if json_output:
        print(text)
    if verdict.outcome == "fails":
        raise AuditFailed(verdict.sentence)
    console.print(f"{verdict.sentence} Everything is in {root}: report.html, report.md and {FILE}.")


def _tables(findings: list[Finding]) -> Iterator[Table]:
    """Two for each tenant; in both, a line for each attack of each run."""
    for tenant in dict.fromkeys(finding.tenant for finding in findings):
        canaries = Table(
            *("epsilon", "attack", "canaries", "guesses", "right", "bound", "claim", "bound/claim", "noise"),
            title=f"Canaries at {tenant}: a lower bound on epsilon beside the ledger's claim",
            box=box.SIMPLE_HEAD,
        )
        people = Table(
            *("epsilon", "attack", "AUC", "found at 1 % FPR", "at 0.1 % FPR"),
            title=f"Real people at {tenant}: who took part? (95 % intervals)",
            box=box.SIMPLE_HEAD,
        )
        for finding in findings:
            if finding.tenant == tenant:
                _add(finding, canaries, people)
        yield canaries
        yield people


def _add(finding: Finding, canaries: Table, people: Table) -> None:
    attacks: list[tuple[str, Guesses, Membership]] = [
        ("updates", finding.updates, finding.members_by_updates),
        ("final", finding.final, finding.members_by_final),
    ]
    for name, guesses, found in attacks:
        place = f"{finding.epsilon:g}", name
        numbers = f"{finding.canaries}", f"{guesses.guesses}", f"{guesses.right}", f"{guesses.bound:.2f}"
        claim = None if finding.claim is None else finding.claim.epsilon
        claimed = ("none", "") if claim is None else (f"{claim:.2f}", f"{guesses.bound / claim:.2f}")
        canaries.add_row(*place, *numbers, *claimed, _noise(finding) if name == "updates" else "")
        people.add_row(*place, _shown(found.auc), *map(_shown, found.true_positives.values()))


def _noise(finding: Finding) -> str:
    """What was seen over what is accounted for."""
    noise = finding.noise
    if noise is None:
        return ""
    return f"{noise.found / noise.claimed:.3f} ({noise.low / noise.claimed:.3f}-{noise.high / noise.claimed:.3f})"


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"
