"""`flower-client`: what a tenant types.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprofile.client.cli_budget import budget
from fedprofile.client.cli_common import AsJson, Directory, logged, stop_on_signals
from fedprofile.client.cli_profile import adapters, explain, leave, predict, serve, worth
from fedprofile.common.cli import run_command, show

if TYPE_CHECKING:
    from fedprofile.client.directory import TenantDirectory

app = typer.Typer(
    name="flower-client",
    help="Take part in a private federation with your own data, under your own budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script."""
    run_command(app, "flower-client")


@app.command()
def join(
    directory: Directory,
    invite: Annotated[Path | None, typer.Argument(metavar="[FILE.invite]", help="The operator's invite.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Agree without being asked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Join a federation: first with the invite, then, after editing tenant.toml, without it."""
    from fedprofile.client.directory import TenantDirectory

    place = TenantDirectory(directory)
    if invite is not None:
        _take_invite(place, invite, as_json)
    else:
        _agree(place, yes, as_json)


@app.command()
def check(
    directory: Directory,
    values: Annotated[bool, typer.Option("--values", help="Show wrong cells themselves; on a terminal only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Validate data and policy, show histories, forecast epsilon and rounds. Sends nothing."""
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.common.errors import ConfigError, DataError

    if values and (as_json or not sys.stdout.isatty()):
        raise ConfigError("check --values shows cells of your users' data, and does so on a terminal only.")
    place = TenantDirectory(directory)
    invite, tenant = place.read_newest_invite(), place.read_tenant_file()
    card = invite.read_card()
    from fedprofile.client.agreement import claim_population
    from fedprofile.client.registry import Registry

    claim_population(place, tenant, Registry.of_user())
    from fedprofile.client.preview import preview
    from fedprofile.client.wrong_cells import WrongCells

    cells = WrongCells()
    try:
        found = preview(place, card, tenant, keep_wrong=cells if values else None)
    except DataError as error:
        for line in cells.lines():
            print(line)
        raise error.in_full() from None
    show(f"{found.as_text(sys.stdout.isatty())}\nNothing was sent.", found.as_dict(), as_json)


@app.command()
def start(
    directory: Directory,
    record_egress: Annotated[
        Path | None, typer.Option("--record-egress", metavar="FILE", help="Append every request that is sent to FILE.")
    ] = None,
) -> None:
    """Wait for the operator's enrolment, then take part until the run ends."""
    from fedprofile.client.agreement import claim_population, claim_sources, read_agreement
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.client.enrolment import read_key
    from fedprofile.client.registry import Registry
    from fedprofile.common.errors import BudgetRefusal

    place = TenantDirectory(directory)
    agreement = read_agreement(place)
    registry = Registry.of_user()
    claim_population(place, agreement.tenant, registry)
    key = read_key(place.key)
    if record_egress is not None:
        from fedprofile.client.output_files import refuse_own_file

        ledger = place.ledger_of(agreement.tenant)
        refuse_own_file(record_egress, "--record-egress", place, ledger=ledger, tenant=agreement.tenant)
    with place.running():
        from fedprofile.client.remaining import is_over
        from fedprofile.client.snapshot import Snapshot, run_digest

        say = logged(place)
        snapshot = Snapshot(place.snapshot, run_digest(agreement.tenant, agreement.segment.plan, place.root))
        try:
            over = is_over(place, agreement, registry, say)
        except BudgetRefusal:
            snapshot.remove()
            raise
        whole_run = agreement.tenant.reading.snapshot == "run"
        if over or not whole_run:
            snapshot.remove()
        if over:
            return
        if place.new_invite.exists():
            say(f"note: a newer invite has another card; see `flower-client join --dir {place.root}`.")
        from fedprofile.client.egress import EgressFile
        from fedprofile.client.records import ExampleSource

        egress = EgressFile(record_egress) if record_egress else None
        claim = partial(claim_sources, place, agreement.tenant, registry)
        kept = snapshot if whole_run else None
        examples = ExampleSource(agreement.tenant, agreement.card, place.root, claim, kept)
        # Before anything heavy is imported, so that a wrong row is said at once.
        examples.validate()
        say("loading the base model and the data.")
        from fedprofile.client.participation import participate

        finished = participate(place, agreement, examples, key, say, stop_on_signals(), egress)
    if finished and agreement.tenant.adapters.accept == "not-worse":
        _judge_after_run(place, say)


for _command in (budget, predict, explain, serve, adapters, worth, leave):
    app.command()(_command)


def _take_invite(place: "TenantDirectory", path: Path, as_json: bool) -> None:
    from fedprofile.client.directory import write_private
    from fedprofile.client.enrolment import accept_invite
    from fedprofile.client.tenant_template import tenant_template

    invite = accept_invite(place, path)
    card = invite.read_card()
    fresh = not place.tenant_file.exists()
    if fresh:
        write_private(place.tenant_file, tenant_template(card).encode())
    edit = f"Edit {place.tenant_file}" if fresh else f"{place.tenant_file} was kept; look at it again"
    show(
        f"The invite for tenant '{invite.tenant}' to federation '{card.name}' is in {place.root}.\n"
        f"{edit}, then run:\n"
        f"  flower-client check --dir {place.root}\n"
        f"  flower-client join --dir {place.root}",
        {"tenant": invite.tenant, "card": card.hash, "tenant_file": str(place.tenant_file), "fresh": fresh},
        as_json,
    )


def _agree(place: "TenantDirectory", yes: bool, as_json: bool) -> None:
    from fedprofile.client.enrolment import read_key
    from fedprofile.common.errors import ConfigError, PolicyRefusal

    if not yes and (as_json or not sys.stdin.isatty()):
        raise ConfigError("join asks on a terminal; give --yes where there is none, after you have looked at `check`.")
    invite, tenant = place.read_newest_invite(), place.read_tenant_file()
    card, agreed = invite.read_card(), place.read_agreed_card()
    read_key(place.key)
    from fedprofile.client.agreement import agree, card_text, claim_population
    from fedprofile.client.registry import Registry

    registry = Registry.of_user()
    claim_population(place, tenant, registry)
    from fedprofile.client.preview import preview

    found = preview(place, card, tenant)
    if not as_json:
        print(card_text(card, agreed))
        print(found.as_text(sys.stdout.isatty()))
    if not yes and not typer.confirm(
        f"Agree to this card and charge {found.cost.cap} to population '{tenant.population.name}'?"
    ):
        raise PolicyRefusal("you did not agree; nothing was opened, written or sent.")
    _, enrolment = agree(place, invite=invite, card=card, tenant=tenant, plan=found.plan, registry=registry)
    ledger = place.ledger_of(tenant)
    show(
        f"Joined. The ledger of population '{tenant.population.name}' is {ledger}.\n"
        f"Send {enrolment} to the operator (it holds no secret), then run:\n"
        f"  flower-client start --dir {place.root}",
        {"tenant": invite.tenant, "enrolment": str(enrolment), "ledger": str(ledger), **found.as_dict()},
        as_json,
    )


def _judge_after_run(place: "TenantDirectory", say: Callable[[str], None]) -> None:
    """Judge what has come; the run is over, whatever becomes of it."""
    from fedprofile.client.acceptance import judge_waiting
    from fedprofile.common.errors import FedprofileError

    # Nothing is left to be taken leave of, so a signal ends this at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for verdict in judge_waiting(place):
            say(str(verdict))
    except FedprofileError as error:
        say(f"adapters wait for `flower-client adapters --judge --dir {place.root}`: {error}")
    except Exception as error:
        say(f"adapters wait for `flower-client adapters --judge --dir {place.root}`: {type(error).__name__}")


if __name__ == "__main__":
    main()
