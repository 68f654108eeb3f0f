"""Whether `start` has anything left to do, told before the seconds that the model and the data take."""

from collections.abc import Callable

from fedprofile.client.agreement import Agreement
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.journal import Journal
from fedprofile.client.registry import Registry
from fedprofile.common.errors import BudgetRefusal
from fedprofile.common.messages import Kind


def is_over(
    directory: TenantDirectory, agreement: Agreement, registry: Registry | None, say: Callable[[str], None]
) -> bool:
    """Tell a tenant whose run is over, or whose share is spent, that it is.

    A request in flight is always answered first: the server may wait for the reply to the final adapter itself. And a
    spent share alone ends nothing, because replies that were kept, and the final adapter, cost nothing.

    Args:
        directory: The tenant's; held by this process.
        agreement: What was agreed to.
        registry: Of the account; see `Agreement.open_ledger`.
        say: Takes plain lines for the tenant.

    Returns:
        True where the final adapter has come and nothing is in flight.

    Raises:
        BudgetRefusal: The share is spent, nothing is in flight, and the tenant's policy takes no final adapter.
        ConfigError: The ledger cannot be opened.
        LedgerBehindError: The ledger is older than the directory's marks.
    """
    in_flight = Journal(directory.journal).load() is not None
    latest = directory.read_latest_adapter()
    if latest is not None and latest.card_hash == agreement.card.hash and latest.final and not in_flight:
        say(
            f"the run is over after round {latest.round}, and its adapter is stored for `flower-client predict`; "
            "nothing is left to do."
        )
        return True
    if _is_spent(directory, agreement, registry):
        if "deliver" not in agreement.tenant.policy.kinds and not in_flight:
            raise BudgetRefusal(
                f"nothing is left of this run's share ({agreement.cap}), and policy.kinds takes no final adapter; "
                'add "deliver" to it to wait for one.'
            )
        say(
            "note: nothing is left of this run's share; what can still come is the final adapter, and questions that "
            "were answered before."
        )
    return False


def _is_spent(directory: TenantDirectory, agreement: Agreement, registry: Registry | None) -> bool:
    with agreement.open_ledger(directory, registry) as ledger:
        segment = ledger.segment_of(agreement.segment.plan)
        if segment is None:
            return False  # Opening the site says what to do about it.
        for kind in (Kind.TRAIN, Kind.EVALUATE):
            try:
                ledger.check_cap(segment, kind, 0)
            except BudgetRefusal:
                continue
            return False
    return True
