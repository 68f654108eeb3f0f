"""`flower-client`: what a tenant types.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from fedprofile.common.cli import run_command, show

if TYPE_CHECKING:
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.client.high_water import Marks
    from fedprofile.client.ledger_summary import LedgerSummary

app = typer.Typer(
    name="flower-client",
    help="Take part in a private federation with your own data, under your own budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Directory = Annotated[Path, typer.Option("--dir", help="The tenant's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


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

        say = _logged(place)
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

        finished = participate(place, agreement, examples, key, say, _stop_on_signals(), egress)
    if finished and agreement.tenant.adapters.accept == "not-worse":
        _judge_after_run(place, say)


@app.command()
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


@app.command()
def predict(
    directory: Directory,
    rows: Annotated[Path, typer.Option("--input", help="CSV, JSON Lines or Parquet with the source's columns.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="A .csv or .jsonl file instead of the screen.")
    ] = None,
    review: Annotated[
        Path | None,
        typer.Option("--review", help="A .csv or .jsonl file for what [judgement] leaves to a person."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict with the newest adapter, here, without the server."""
    from fedprofile.client.agreement import read_agreed
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.common.errors import ConfigError, DataError

    place = TenantDirectory(directory)
    tenant, (card, _) = place.read_tenant_file(), read_agreed(place)
    from fedprofile.client.prediction import (
        add_to_table,
        check_output,
        predict_file,
        write_predictions,
        write_review,
    )

    if output is not None:
        check_output(output, place, tenant)
    if review is not None:
        if tenant.judgement is None:
            raise ConfigError(
                f"--review {review}: the tenant file has no [judgement] that leaves anything to a person."
            )
        if output is not None and output.absolute() == review.absolute():
            raise ConfigError(f"--review {review}: is the name of --output as well; give another one.")
        check_output(review, place, tenant, "--review")
    try:
        table = None if tenant.judgement is None or review is not None else tenant.judgement.review
        found = predict_file(place, card, tenant, rows, reasons=review is not None or table is not None)
    except DataError as error:
        # Nothing else names what is not shown.
        raise error.in_full() from None
    if review is not None:
        held = write_review(found, review)
        print(f"{held} of {len(found.users)} records are left to a person, in {review}.", file=sys.stderr)
    elif table is not None:
        held = add_to_table(found, table, place.root)
        print(f"{held} of {len(found.users)} records are left to a person, in table {table.table}.", file=sys.stderr)
    if output is None:
        show(found.as_csv().rstrip("\n"), found.as_rows(), as_json)
        return
    write_predictions(found, output)
    counted = {"round": found.round, "card": found.card_hash, "predictions": len(found.users), "output": str(output)}
    show(f"{len(found.users)} predictions of the adapter after round {found.round} are in {output}.", counted, as_json)


@app.command()
def explain(
    directory: Directory,
    rows: Annotated[Path, typer.Option("--input", help="CSV, JSON Lines or Parquet with the source's columns.")],
    user: Annotated[str | None, typer.Option("--user", help="Only the rows of this user.")] = None,
    method: Annotated[str, typer.Option("--method", help="ablation, or shapley: slower, and its effects add up.")] = (
        "ablation"
    ),
    samples: Annotated[int, typer.Option("--samples", min=1, help="Random orders, of shapley.")] = 25,
    label: Annotated[
        str | None, typer.Option("--label", help="Whose probability; default the second of two, or the likeliest.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="A .html, .txt or .jsonl file instead of the screen.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which events drove each prediction: what the model says with them and without. Stays here."""
    from fedprofile.client.agreement import read_agreed
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.common.errors import DataError

    place = TenantDirectory(directory)
    tenant, (card, _) = place.read_tenant_file(), read_agreed(place)
    from fedprofile.client.explanation_files import ENDINGS, explain_file, write_explanations
    from fedprofile.client.prediction import check_output

    if output is not None:
        check_output(output, place, tenant, endings=ENDINGS)
    try:
        found = explain_file(place, card, tenant, rows, user=user, method=method, samples=samples, label=label)
    except DataError as error:
        raise error.in_full() from None
    if output is None:
        show("\n\n".join(one.as_text() for one in found), [one.as_dict() for one in found], as_json)
        return
    write_explanations(found, output)
    show(f"{len(found)} explanations are in {output}.", {"explanations": len(found), "output": str(output)}, as_json)


@app.command()
def adapters(
    directory: Directory,
    use: Annotated[
        str | None, typer.Option("--use", metavar="ROUND", help="The round to roll back to, or `newest`.")
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Judge what waits, on your own evaluation users; stays here.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The adapters received, with their hashes, and which one is used here; roll back or forward."""
    from fedprofile.client.agreement import read_agreed
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.client.received import AdapterFolder
    from fedprofile.common.errors import ConfigError

    place = TenantDirectory(directory)
    tenant, (card, _) = place.read_tenant_file(), read_agreed(place)
    folder = AdapterFolder(place, card.hash, tenant.adapters)
    if judge:
        from fedprofile.client.acceptance import judge_waiting

        for verdict in judge_waiting(place):
            print(verdict, file=sys.stderr)
    if use is not None:
        if use != "newest" and not use.isdecimal():
            raise ConfigError(f"--use {use}: is not a round's number, and not `newest`.")
        folder.use(None if use == "newest" else int(use))
    used = folder.in_use()
    rows = [{**version.model_dump(mode="json"), "in_use": version == used} for version in folder.versions()]
    lines = [
        f"{'*' if row['in_use'] else ' '} round {row['round']:>4}  {row['arrays_hash'][:16]}  {row['received']}  "
        f"{row['state']}{', the final one' if row['final'] else ''}"
        for row in rows
    ]
    show("\n".join(lines) or "No adapter has come yet.", rows, as_json)


@app.command()
def leave(
    directory: Directory,
    keep_adapters: Annotated[
        bool, typer.Option("--keep-adapters", help="Keep what `predict` and `serve` need.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Leave without being asked.")] = False,
    as_json: AsJson = False,
) -> None:
    """End taking part: delete key, activations, snapshot and replies. The ledger stays, with what was spent."""
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.client.leaving import QUESTION, leave_federation

    place = TenantDirectory(directory)
    place.read_segment()
    _ask("leave", QUESTION, yes, as_json)
    done = leave_federation(place, keep_adapters=keep_adapters)
    show(done.as_text(), done.as_dict(), as_json)


@app.command()
def serve(
    directories: Annotated[
        list[Path], typer.Option("--dir", help="A tenant's directory; several for several federations' adapters.")
    ],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Of gRPC; 0 takes a free one.")] = 8001,
    no_grpc: Annotated[bool, typer.Option("--no-grpc", help="HTTP alone.")] = False,
    expose: Annotated[bool, typer.Option("--expose", help="Listen at a host that others can reach.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Of the models; 0 is one a core.")] = 0,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Records of one batch.")] = 32,
    batch_wait: Annotated[float, typer.Option(min=0, max=50, help="Milliseconds to wait for a fuller batch.")] = 0.0,
    queue: Annotated[int, typer.Option(min=1, max=100_000, help="Records that wait; more are refused.")] = 256,
    max_events: Annotated[int, typer.Option(min=1, max=100_000, help="Events of one request.")] = 1024,
    max_body: Annotated[int, typer.Option(min=1, max=64 * 1024, help="KiB of one request.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds for one request.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Answer your applications with profiles, here: HTTP, gRPC and a page. Nothing is sent to the server."""
    from fedprofile.common.errors import ConfigError

    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together; give both.")
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise ConfigError("--dir is given twice for one directory; give each once.")
    try:
        from fedprofile.client.serving.serve import Listening, TlsFiles, check_place
        from fedprofile.client.serving.serve import serve as listen
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'fedprofile[serve]'.") from None
    tls = None if tls_cert is None or tls_key is None else TlsFiles(tls_cert, tls_key)
    check_place(host, tls, expose=expose)
    from fedprofile.client.directory import TenantDirectory

    _logged(TenantDirectory(directories[0]))

    def say(found: Listening) -> None:
        models = ", ".join(f"{name} (round {number})" for name, number in found.federations.items())
        grpc = "" if found.grpc is None else f", gRPC at {found.grpc}"
        text = f"Serving {models} at {found.http}{grpc}.\nThe token that applications show is in {found.token}."
        show(text, found.as_dict(), as_json)

    listen(
        directories,
        say,
        host=host,
        port=port,
        grpc_port=None if no_grpc else grpc_port,
        tls=tls,
        threads=threads,
        max_batch=max_batch,
        batch_wait=batch_wait / 1000,
        max_waiting=queue,
        max_events=max_events,
        max_body=max_body * 1024,
        timeout=timeout,
    )


@app.command()
def worth(directory: Directory, as_json: AsJson = False) -> None:
    """Was it worth it? The federation beside no model, own data and the columns, on your own users; stays here."""
    from fedprofile.client.directory import TenantDirectory

    place = TenantDirectory(directory)
    from fedprofile.client.worth import find_worth

    found = find_worth(place)
    show(found.as_text(), found.as_dict(), as_json)


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
        _ask("budget --write-off", question, yes, as_json)
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
        _ask("budget --raise", question, yes, as_json)
        budget = ledger.raise_budget(wanted.epsilon, wanted.delta, reason)
    show(
        f"Raised, and kept in the ledger with its reason. Other directories over '{found.population}' must have the "
        "same [budget]. Open runs keep their shares; only new ones can take more.",
        {"population": found.population, "number": budget.number, **wanted.as_dict(), "reason": budget.reason},
        as_json,
    )


def _ask(option: str, question: str, yes: bool, as_json: bool) -> None:
    """Let a person at a terminal agree, unless `--yes` did."""
    from fedprofile.common.errors import ConfigError, PolicyRefusal

    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise ConfigError(f"{option} asks on a terminal; give --yes where there is none.")
    if not typer.confirm(question):
        raise PolicyRefusal("you did not agree; nothing was written.")


def _logged(place: "TenantDirectory") -> Callable[[str], None]:
    """Send this package's log to client.log only, and give a function that says a line there and on the screen."""
    place.log.touch(mode=0o600)
    handler = logging.FileHandler(place.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("fedprofile")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    ours.propagate = False
    # Other people's loggers may put anything into their lines.
    logging.getLogger("flwr").setLevel(logging.CRITICAL)

    def say(line: str) -> None:
        ours.info("%s", line)
        print(line, flush=True)

    return say


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


def _stop_on_signals() -> threading.Event:
    from fedprofile.client.transport import StoppedError

    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        # Raised where the main thread is, once: leaving the federation must not be interrupted again.
        if not stop.is_set():
            stop.set()
            raise StoppedError

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return stop


if __name__ == "__main__":
    main()
