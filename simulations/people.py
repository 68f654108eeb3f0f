"""What a person who is at several tenants has lost in all.

Each tenant's promise is about its own users. Where one person is at several tenants, taking them out of the world
changes what all of these release, so that the person's loss is the composition of all their releases. The mechanisms
are composed, not the epsilons: the same accountant that a ledger uses takes all events together, which is tighter than
the sum (basic composition; Dwork et al. 2006). It holds although the tenants' rounds depend on each other, because
composition is adaptive.

A person is a training or an evaluation user at each tenant, never both there, and pays only for releases that their
records were in. A tenant's own split may differ from another's.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fedprofile.client.ledger_schema import EVALUATE, TRAIN, Entry
from fedprofile.common.accounting import MechanismEvent, PrivacyLoss, compose
from fedprofile.common.errors import DataError

Part = Literal["train", "evaluate"]
"""Which users of a tenant: those that it trains on, or those that it only evaluates on."""


@dataclass(frozen=True)
class TenantEvents:
    """What a tenant has released.

    Args:
        train: About its training users.
        evaluate: About its evaluation users.
    """

    train: tuple[MechanismEvent, ...]
    evaluate: tuple[MechanismEvent, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "TenantEvents":
        """Read from a ledger's entries, such as `LedgerSummary.releases`."""
        events: dict[str, list[MechanismEvent]] = {TRAIN: [], EVALUATE: []}
        for entry in entries:
            events[entry.kind].append(entry.event)
        return cls(tuple(events[TRAIN]), tuple(events[EVALUATE]))

    def about(self, part: Part) -> tuple[MechanismEvent, ...]:
        """The releases that a part's records are in."""
        return self.train if part == "train" else self.evaluate


@dataclass(frozen=True)
class PersonalLoss:
    """What everybody with the same tenants has lost.

    Args:
        tenants: Where they are, and in which part.
        people: How many they are.
        loss: All releases composed, at the stated delta.
        largest: The largest epsilon that one of these tenants alone would state, at the same delta.
        added: The sum of what each of these tenants would state, at the same delta; it would hold at their number
            times that delta.
    """

    tenants: tuple[tuple[str, Part], ...]
    people: int
    loss: PrivacyLoss
    largest: float
    added: float


def personal_losses(
    events: Mapping[str, TenantEvents], people: Mapping[int, Mapping[str, Part]], delta: float
) -> list[PersonalLoss]:
    """Compose what each person has lost over all their tenants.

    Args:
        events: Tenant -> what it has released.
        people: Person -> tenant -> part.
        delta: For which epsilon is asked.

    Returns:
        One for each set of tenants and parts that occurs, the largest epsilon first.

    Raises:
        DataError: A person is at a tenant whose events are not given.
        ConfigError: `delta` is not between 0 and 1.
    """
    counts = Counter(tuple(sorted(places.items())) for places in people.values() if places)
    unknown = {tenant for places in counts for tenant, _ in places} - events.keys()
    if unknown:
        raise DataError(f"people: are at tenant(s) {', '.join(sorted(unknown))}, whose events are not given.")
    found = []
    for places, number in counts.items():
        own = [events[tenant].about(part) for tenant, part in places]
        alone = [compose(released, delta).epsilon for released in own]
        together = compose([event for released in own for event in released], delta)
        found.append(PersonalLoss(places, number, replace(together, unit="person"), max(alone), sum(alone)))
    return sorted(found, key=lambda loss: (-loss.loss.epsilon, loss.tenants))
