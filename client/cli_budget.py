"""`flower-client budget`: what was spent and is left, and the few acts that change a ledger by a person's word."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprofile.client.cli_common import AsJson, Directory, ask
from fedprofile.common.cli import show

if TYPE_CHECKING:
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.client.high_water import Marks
    from fedprofile.client.ledger_summary import LedgerSummary


def budget(
    directory: Directory,
    release: Annotated[int | None, typer.Option("--show", metavar="N", help="The exact fields of release N.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Recompute it with a second accountant.")] = False,
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Write it for an auditor.")] = None,
    write_off: Annotated[bool, typer.Option("--write-off", help="Count lost entries as spent, for good.")] = False,
    raised: Annotated[
        str | None, typer.Option("--raise", metavar="REASON", help="Raise the life's budget to tenant.toml's.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write off or raise without being asked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the ledger: what may be spent, what is spent, what is left. Works while `start` runs."""
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.client.ledger_summary import summary
    from fedprofile.common.errors import ConfigError

    if sum((release is not None, verify, export is not None, write_off, raised is not None)) > 1:
        raise ConfigError("budget takes one of --show, --verify, --export, --write-off and --raise at a time.")
    place = TenantDirectory(directory)
    if write_off:
        _write_off(place, yes, as_json)
        return
    if place.segment.exists():
        path = place.ledger_path(place.read_segment().ledger)
    else:
        path = place.ledger_of(place.read_tenant_file())
    # Before the ledger, so that a client that runs meanwhile is never behind its own marks.
    kept = _kept_marks(place) if verify else []
    found = summary(path)
    if raised is not None:
        _raise_budget(place, found, path, raised, yes, as_json)
    elif verify:
        _verify(found, kept, as_json)
    elif export is not None:
        _export(place, found, path, export, as_json)
    elif release is not None:
        from fedprofile.client.released import release_of

        shown = release_of(found, release, place.outbox)
        show(shown.as_text(), shown.as_dict(), as_json)
    else:
        from fedprofile.client.budget_text import budget_text

        show(budget_text(found), found.as_dict(), as_json)


def _kept_marks(place: "TenantDirectory") -> "list[Marks]":
    """What the directory and the account remember of the population's ledger."""
    from fedprofile.client.high_water import high_waters
    from fedprofile.client.registry import Registry

    name = place.read_segment().population if place.segment.exists() else place.read_tenant_file().population.name
    kept = [marks.read() for marks in high_waters(name, place.marks, Registry.of_user().marks)]
    return [marks for marks in kept if marks is not None]


def _verify(found: "LedgerSummary", kept: "list[Marks]", as_json: bool) -> None:
    from fedprofile.client.second_accountant import verify
    from fedprofile.common.errors import BudgetRefusal

    result = verify(found, kept)
    show(result.as_text(), result.as_dict(), as_json)
    if result.problems:
        raise BudgetRefusal(
            f"the ledger of population '{found.population}' does not hold: {'; '.join(result.problems)}."
        )


def _export(place: "TenantDirectory", found: "LedgerSummary", ledger: Path, path: Path, as_json: bool) -> None:
    from fedprofile.client.output_files import refuse_own_file, write_new

    refuse_own_file(path, "--export", place, ledger=ledger)
    write_new(path, (json.dumps(found.for_auditor(), indent=2) + "\n").encode(), "--export")
    told = {"export": str(path), "releases": len(found.releases), "chain_holds": found.chain_holds}
    show(
        f"The ledger with {len(found.releases)} releases is in {path}. It holds no key and no user's data.",
        told,
        as_json,
    )


def _write_off(place: "TenantDirectory", yes: bool, as_json: bool) -> None:
    """Show what would be counted as spent, ask, and write it into the ledger."""
    from fedprofile.client.agreement import open_behind
    from fedprofile.client.budget_text import losses_text
    from fedprofile.client.ledger_history import ONLY_CLAIMED
    from fedprofile.client.registry import Registry

    segment = place.read_segment()
    with open_behind(place, segment, Registry.of_user()) as ledger:
        if not ledger.missing() and not ledger.lacks_budget():
            show("No entry is known to be missing; nothing was written.", {"written_off": [], "steps": 0}, as_json)
            return
        if not as_json:
            print(losses_text(ledger, segment.plan))
        question = f"Count this as spent for good, for population '{segment.population}'?"
        if ledger.only_claimed():
            question = f"{ONLY_CLAIMED} {question}"
        ask("budget --write-off", question, yes, as_json)
        ledger.open_segment(segment.plan)
        entries = ledger.write_off()
    steps = sum(entry.steps for entry in entries)
    show(
        f"Written off: {steps} steps in {len(entries)} entries. `flower-client start --dir {place.root}` can go on.",
        {"written_off": [entry.sequence for entry in entries], "steps": steps},
        as_json,
    )


def _raise_budget(
    place: "TenantDirectory", found: "LedgerSummary", path: Path, reason: str, yes: bool, as_json: bool
) -> None:
    """Show the old budget and tenant.toml's, ask, and write the new one into the ledger."""
    from fedprofile.client.ledger import Ledger
    from fedprofile.client.registry import Registry
    from fedprofile.common.accounting import PrivacyLoss

    tenant = place.read_tenant_file()
    wanted = PrivacyLoss(tenant.budget.epsilon, tenant.life_delta)
    with Ledger.open(
        path,
        population=tenant.population.name,
        user_column=tenant.columns.user,
        epsilon=found.cap.epsilon,
        delta=found.cap.delta,
        evaluation_users=tenant.privacy.evaluation_users,
        marks=place.marks,
        account_marks=Registry.of_user().marks,
        new=False,
    ) as ledger:
        ledger.check_raise(wanted.epsilon, wanted.delta, reason)
        if not as_json:
            print(f"Population {found.population}: what its users were promised, for life\n  was  {found.cap}")
            print(f"  is to be  {wanted}")
        question = f"Raise it for good? The promise so far would no longer hold for '{found.population}'."
        ask("budget --raise", question, yes, as_json)
        budget = ledger.raise_budget(wanted.epsilon, wanted.delta, reason)
    show(
        f"Raised, and kept in the ledger with its reason. Other directories over '{found.population}' must have the "
        "same [budget]. Open runs keep their shares; only new ones can take more.",
        {"population": found.population, "number": budget.number, **wanted.as_dict(), "reason": budget.reason},
        as_json,
    )
