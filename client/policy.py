"""What a request may ask for, whatever the budget would allow."""

from dataclasses import dataclass
from datetime import date

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import PolicyRefusal, RefusalCode
from fedprofile.common.messages import Kind, Request
from fedprofile.common.tenant import PolicySpec

_NAMES = {Kind.TRAIN: "train", Kind.EVALUATE: "evaluate", Kind.DELIVER: "deliver"}


@dataclass(frozen=True)
class Policy:
    """The tenant's own bounds. None of them depends on the data.

    Args:
        kinds: Which kinds are answered: "train", "evaluate", "deliver".
        max_rounds_a_day: How many trainings a day (UTC) at most.
        until: The last day on which anything is answered; None for no end.
    """

    kinds: frozenset[str]
    max_rounds_a_day: int
    until: date | None = None

    @classmethod
    def of(cls, spec: PolicySpec) -> "Policy":
        """From the tenant file's section."""
        return cls(frozenset(spec.kinds), spec.max_rounds_a_day, spec.until)

    def check(self, request: Request, card: FederationCard, today: date) -> None:
        """Refuse what is never answered.

        Args:
            request: As decoded.
            card: The card that the tenant has agreed to.
            today: In UTC.

        Raises:
            PolicyRefusal: The card is another one (code `card`), or kind, round or date are out of bounds.
        """
        if request.card_hash != card.hash:
            raise PolicyRefusal(
                f"the request is for card {request.card_hash[:12]}, and the agreed one is {card.hash[:12]}; ask the "
                f"operator for a new invite and join again if you agree to it.",
                RefusalCode.CARD,
            )
        kind = _NAMES[request.kind]
        if kind not in self.kinds:
            raise PolicyRefusal(f"policy.kinds does not allow '{kind}'; add it to the tenant file to take part in it.")
        if self.until is not None and today > self.until:
            raise PolicyRefusal(f"policy.until={self.until} is over; set a later day in the tenant file to go on.")
        first = 1 if request.kind is Kind.TRAIN else 0
        if not first <= request.round <= card.training.rounds:
            raise PolicyRefusal(
                f"round {request.round} is not one of the card's: '{kind}' has rounds {first} to "
                f"{card.training.rounds}."
            )

    def check_rounds(self, request: Request, rounds_today: int) -> None:
        """Refuse a training beyond the day's bound; what was answered before is not counted again.

        Args:
            request: About to be reserved.
            rounds_today: Trainings that were reserved today.

        Raises:
            PolicyRefusal: The bound is reached.
        """
        if request.kind is Kind.TRAIN and rounds_today >= self.max_rounds_a_day:
            raise PolicyRefusal(
                f"policy.max_rounds_a_day={self.max_rounds_a_day} is reached; training goes on tomorrow (UTC)."
            )
