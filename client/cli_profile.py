"""The commands of `flower-client` for what has come: predictions, explanations, `serve`, adapters, and the end.

Nothing of it leaves the site.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedprofile.client.cli_common import AsJson, Directory, ask, logged
from fedprofile.common.cli import show
from fedprofile.common.errors import printable


def predict(
    directory: Directory,
    rows: Annotated[Path, typer.Option("--input", help="CSV, JSON Lines or Parquet with the source's columns.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="A .csv or .jsonl file instead of the screen.")
    ] = None,
    review: Annotated[
        Path | None,
        typer.Option("--review", help="A .csv or .jsonl file for what is left to a person by your judgement settings."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict with the adapter in use, here, without the server."""
    from fedprofile.client.agreement import read_agreed
    from fedprofile.client.directory import TenantDirectory
    from fedprofile.common.errors import ConfigError, DataError

    place = TenantDirectory(directory)
    tenant, (card, _) = place.read_tenant_file(), read_agreed(place)
    from fedprofile.client.prediction import (
        add_to_table,
        check_output,
        check_table,
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
        if table is not None:
            check_table(table, place, tenant)
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
        text = found.as_csv().rstrip("\n")
        # A label or an id must not drive the terminal; what goes into a pipe is left as it is.
        show(printable(text) if sys.stdout.isatty() else text, found.as_rows(), as_json)
        return
    write_predictions(found, output)
    counted = {"round": found.round, "card": found.card_hash, "predictions": len(found.users), "output": str(output)}
    show(f"{len(found.users)} predictions of the adapter after round {found.round} are in {output}.", counted, as_json)


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

    logged(TenantDirectory(directories[0]))

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


def worth(directory: Directory, as_json: AsJson = False) -> None:
    """Was it worth it? The federation beside no model, own data and the columns, on your own users; stays here."""
    from fedprofile.client.directory import TenantDirectory

    place = TenantDirectory(directory)
    from fedprofile.client.worth import find_worth

    found = find_worth(place)
    show(found.as_text(), found.as_dict(), as_json)


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
    ask("leave", QUESTION, yes, as_json)
    done = leave_federation(place, keep_adapters=keep_adapters)
    show(done.as_text(), done.as_dict(), as_json)
