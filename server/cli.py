"""`flower-server`: what the operator types. Flower and torch are imported late, so that `--help` is immediate."""

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from fedprofile.common.cli import line_printer, run_command, show

app = typer.Typer(
    help="Run a private federation: invite tenants, aggregate their adapters, export the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Dir = Annotated[Path, typer.Option("--dir", help="The server's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that is empty or does not exist.")],
    host: Annotated[str, typer.Option(help="Name or address that tenants connect to.")] = "localhost",
    listen: Annotated[str | None, typer.Option(help="Address to bind to; by default all of them.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="For tenants.")] = 8443,
    admin_port: Annotated[int, typer.Option(min=1, max=65535, help="For the operator, loopback only.")] = 8444,
    health_port: Annotated[int, typer.Option(min=1, max=65535, help="For gRPC health checks.")] = 8445,
    name: Annotated[str, typer.Option(help="The federation's name.")] = "example",
    base: Annotated[Path | None, typer.Option(help="A base model's folder instead of the embedded one.")] = None,
    base_id: Annotated[str | None, typer.Option(help="Its public id on the model hub.")] = None,
) -> None:
    """Make a server's directory: CA, certificate, operator token, federation.toml and server.toml to edit."""
    from fedprofile.server.setup import make_directory

    made = make_directory(
        directory,
        host=host,
        listen=listen,
        port=port,
        admin_port=admin_port,
        health_port=health_port,
        name=name,
        base=base,
        base_id=base_id,
    )
    print(f"{made.root} is ready: edit {made.federation} and {made.settings_file},")
    print(f"then `flower-server invite TENANT --dir {made.root}` for every tenant.")


@app.command()
def invite(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    directory: Dir,
    out: Annotated[Path | None, typer.Option(help="Where to write it; by default DIR/TENANT.invite.")] = None,
    as_json: Json = False,
) -> None:
    """Write TENANT.invite: address, CA certificate, federation card and its hash. It holds no secret."""
    from fedprofile.server.directory import ServerDirectory
    from fedprofile.server.enrolment import invite_tenant, write_invite

    paths = ServerDirectory(directory)
    card, settings = paths.card(), paths.settings()
    made = invite_tenant(paths.tenants, tenant, card, settings.address, paths.read(paths.ca))
    path = out or paths.root / f"{made.tenant}.invite"
    write_invite(made, path)
    data = {"tenant": made.tenant, "file": str(path), "card_hash": made.card_hash}
    show(f"wrote {path}; send it to the tenant. Card {made.card_hash}.", data, as_json)


@app.command()
def enroll(
    file: Annotated[Path, typer.Argument(metavar="FILE.enroll", help="What the tenant sent.")],
    directory: Dir,
    as_json: Json = False,
) -> None:
    """Accept a tenant: its key, the card hash it agreed to, its declared users and its promise."""
    from fedprofile.server.directory import ServerDirectory
    from fedprofile.server.enrolment import check_promise, enroll_tenant, read_enrolment

    paths = ServerDirectory(directory)
    card, enrolment = paths.card(), read_enrolment(file)
    check_promise(enrolment, card)
    from fedprofile.common.evaluation_tables import evaluation_noise

    noise = evaluation_noise(card, enrolment.promise.epsilon, enrolment.promise.delta)
    outcome = enroll_tenant(paths.tenants, enrolment, card, noise)
    promise = enrolment.promise
    said = (
        f"declared_users={enrolment.declared_users}, epsilon={promise.epsilon:g} (delta={promise.delta:g}, "
        f"unit={promise.unit}, adjacency={promise.adjacency}, model={promise.model}, accountant={promise.accountant})"
    )
    verb = "enrolled" if outcome.changed else "was enrolled already"
    data = {"tenant": enrolment.tenant, "changed": outcome.changed, "declared_users": enrolment.declared_users}
    show(f"tenant '{enrolment.tenant}' {verb}: {said}.", data | {"promise": promise.model_dump()}, as_json)


@app.command()
def revoke(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")], directory: Dir, as_json: Json = False
) -> None:
    """Take a tenant's enrolment back; a running server refuses it within a second."""
    from fedprofile.server.directory import ServerDirectory
    from fedprofile.server.enrolment import revoke_tenant

    paths = ServerDirectory(directory)
    paths.require()
    entry = revoke_tenant(paths.tenants, tenant)
    data = {"tenant": entry.name, "revoked_at": entry.revoked_at}
    show(f"tenant '{entry.name}' is revoked since {entry.revoked_at}.", data, as_json)


@app.command()
def start(directory: Dir) -> None:
    """Run the card's rounds; goes on by itself where it was after a stop or a crash. Ends when the run is over."""
    from fedprofile.server.directory import ServerDirectory
    from fedprofile.server.initial import initial_adapter
    from fedprofile.server.runs import serve
    from fedprofile.server.stopping import ServerStopped
    from fedprofile.server.trackers import usable

    paths, say = ServerDirectory(directory), line_printer()
    paths.card()
    # What is wrong is said before the initial adapter is computed, which takes a while; what is worth a line, later.
    usable(paths.settings().tracking, lambda line: None)
    paths.state.mkdir(mode=0o700, exist_ok=True)
    stopped = threading.Event()
    with paths.exclusive():
        _log_to(paths.state / "server.log")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        initial = None if paths.checkpoint.exists() else initial_adapter(paths)
        try:
            result = serve(paths, initial, stopped, say)
        except ServerStopped as error:
            say(str(error))
            return
    say(f"the run is over after round {result.rounds} ({result.reason}); `flower-server export` writes the adapter.")


@app.command()
def status(directory: Dir, as_json: Json = False) -> None:
    """Tenants, round and noised metrics, of a server that runs or ran here."""
    from fedprofile.server.status import read_status, status_text

    found: dict[str, Any] = read_status(directory)
    show(status_text(found), found, as_json)


@app.command()
def export(
    directory: Dir,
    out: Annotated[Path, typer.Option(help="A folder that is empty or does not exist.")],
    base: Annotated[Path | None, typer.Option(help="The base model's folder, where it is not found by itself.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="For the model card, such as apache-2.0.")] = None,
    as_json: Json = False,
) -> None:
    """Write the adapter folder with its model card, load it in a fresh process, and compare."""
    from fedprofile.server.export import export_adapter

    summary = export_adapter(directory, out, base, licence)
    show(
        f"wrote {out} (round {summary['round']}); a fresh process that loads it differs by at most "
        f"{summary['difference']:g}.",
        summary,
        as_json,
    )


def _log_to(path: Path) -> None:
    """Flower's and uvicorn's lines go to a file; the terminal is for the run."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    # Flower adds a handler of its own when it is imported.
    import flwr.supercore.logger  # noqa: F401

    for name in ("flwr", "uvicorn", "fedprofile"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def main() -> None:
    """Entry point of `flower-server`."""
    run_command(app, "flower-server")
