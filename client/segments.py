"""A segment: one run's fixed mechanism and the largest cost that it can ever have.

A segment's settings never change once it is opened. Inside it PRV composition is valid whatever adapters, rounds and
stopping the server chooses, because each step's cost is known before the run and only WHICH steps happen adapts;
anything edited is another segment, and segments add (PRIVACY.md, "Budget").
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from fedprofile.common.accounting import ACCOUNTED_SHARE, MechanismEvent, solve_noise_multiplier
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, PolicyRefusal
from fedprofile.common.evaluation_tables import evaluation_noise
from fedprofile.common.tenant import TenantFile


@dataclass(frozen=True)
class SegmentPlan:
    """Everything that the guarantee of one run depends on.

    Args:
        card_hash: The federation's identity.
        epsilon: The cap, charged in full when the segment is opened.
        delta: The cap.
        sample_rate: q.
        noise_multiplier: sigma as drawn; `ACCOUNTED_SHARE` of it is accounted.
        clip_norm: C.
        records_per_user: m.
        local_steps: Steps of one `train` request.
        cap_steps: Steps of all `train` requests together.
        evaluation_noise_multiplier: sigma of one table, as drawn.
        cap_tables: How many tables at most.
    """

    card_hash: str
    epsilon: float
    delta: float
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    records_per_user: int
    local_steps: int
    cap_steps: int
    evaluation_noise_multiplier: float
    cap_tables: int

    def __post_init__(self) -> None:
        numbers = (self.epsilon, self.delta, self.noise_multiplier, self.clip_norm, self.evaluation_noise_multiplier)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ConfigError("a segment's epsilon, delta, noise and clip norm must be positive and finite.")

    @property
    def train_event(self) -> MechanismEvent:
        """What one `train` request costs."""
        return MechanismEvent(self.sample_rate, ACCOUNTED_SHARE * self.noise_multiplier, self.local_steps)

    @property
    def table_event(self) -> MechanismEvent:
        """What one table costs: all evaluation users, once, at sensitivity 1."""
        return MechanismEvent(1.0, ACCOUNTED_SHARE * self.evaluation_noise_multiplier, 1)

    @property
    def settings(self) -> tuple[object, ...]:
        """What makes two plans the same segment: all but the solved noise, which the opened segment keeps.

        Another machine's solver may differ in the fourth digit; that must not open, and charge, a new segment.
        """
        fields = asdict(self)
        return tuple(value for name, value in fields.items() if not name.endswith("noise_multiplier"))

    @property
    def digest(self) -> str:
        """SHA-256 of the settings: a segment's name outside of its ledger."""
        return hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()


def plan_segment(card: FederationCard, tenant: TenantFile) -> SegmentPlan:
    """Solve the noise of a run.

    Training and evaluation each have the whole share: their users are disjoint, so the larger of the two counts.

    Args:
        card: The federation's card.
        tenant: The tenant's file.

    Returns:
        The plan; the same for the same input.

    Raises:
        PolicyRefusal: The share is a weaker promise than the card allows.
        BudgetRefusal: No reasonable noise reaches the share.
    """
    epsilon, delta = tenant.run.epsilon, tenant.run_delta
    if epsilon > card.max_epsilon:
        raise PolicyRefusal(
            f"run.epsilon={epsilon:g} (delta={delta:g}) is above max_epsilon={card.max_epsilon:g} of federation "
            f"'{card.name}'; lower run.epsilon in the tenant file, or ask the operator for another card."
        )
    rounds = card.training.rounds + tenant.run.spare_rounds
    cap_steps = rounds * card.training.local_steps
    privacy = tenant.privacy
    return SegmentPlan(
        card_hash=card.hash,
        epsilon=epsilon,
        delta=delta,
        sample_rate=privacy.sample_rate,
        noise_multiplier=solve_noise_multiplier(epsilon, delta, privacy.sample_rate, cap_steps),
        clip_norm=privacy.clip_norm,
        records_per_user=privacy.records_per_user,
        local_steps=card.training.local_steps,
        cap_steps=cap_steps,
        evaluation_noise_multiplier=evaluation_noise(card, epsilon, delta),
        cap_tables=len(card.evaluation.rounds(card.training.rounds)),
    )
