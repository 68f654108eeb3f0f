"""`start`: from a directory to a finished run."""

import threading
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from fedprofile.client.agreement import Agreement
from fedprofile.client.connection import Connection
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.egress import EgressFile
from fedprofile.client.journal import Journal
from fedprofile.client.ledger_summary import summary
from fedprofile.client.records import ExampleSource
from fedprofile.client.registry import Registry
from fedprofile.client.site import open_site
from fedprofile.client.transport import MessageLimits, StoppedError
from fedprofile.common.adapters import Layout


def participate(
    directory: TenantDirectory,
    agreement: Agreement,
    examples: ExampleSource,
    key: ec.EllipticCurvePrivateKey,
    say: Callable[[str], None],
    stop: threading.Event,
    egress: EgressFile | None = None,
) -> bool:
    """Load everything, connect, and answer until the run is over or the process is asked to end.

    Args:
        directory: The tenant's; held by this process.
        agreement: What was agreed to.
        examples: Reads the source.
        key: The tenant's.
        say: Takes plain lines for the tenant.
        stop: Set, with a `StoppedError` in this thread, when the process is to end.
        egress: Records every request before it is sent.

    Returns:
        Whether the run is over.

    Raises:
        LedgerBehindError: The server has seen more of the ledger than there is.
        ConfigError: Something of the directory cannot be used.
        DataError: The source cannot be used.
    """
    try:
        site = open_site(directory, agreement, examples, say, Registry.of_user())
        try:
            Connection(
                address=agreement.invite.address,
                ca=agreement.invite.ca,
                key=key,
                node_file=directory.node,
                journal=Journal(directory.journal),
                limits=MessageLimits.of_adapter(adapter_bytes(site.model.layout())),
                reply_every=agreement.tenant.policy.reply_every,
                stop=stop,
                say=say,
                over=lambda: site.over,
                egress=egress,
            ).serve(site)
        finally:
            site.close()
    except StoppedError:
        say("stopped; start again to go on.")
        return False
    examples.end_run()
    spent = summary(site.ledger.path)
    say(f"finished: spent {spent.spent}, of {spent.cap} for life.")
    return True


def adapter_bytes(layout: Layout) -> int:
    """How many bytes the arrays of a layout take."""
    total = 0
    for shape, dtype in layout.values():
        size = 8 if dtype == "float64" else 4
        for length in shape:
            size *= length
        total += size
    return total
