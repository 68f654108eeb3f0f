"""What an audit found, and what it means: an empirical lower bound on epsilon beside what the ledger claims."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.errors import FedprofileError
from fedprofile.simulations.audit.membership import Membership
from fedprofile.simulations.audit.noise_size import NoiseReading
from fedprofile.simulations.audit.one_run import get_eps_audit
from fedprofile.simulations.audit.spec import CanarySpec


class AuditFailed(FedprofileError):
    """A federation leaks more than its ledgers claim."""

    exit_code = 3


@dataclass(frozen=True)
class Guesses:
    """One attack's guesses at canaries.

    Args:
        guesses: r.
        right: v.
        bound: The lower bound on epsilon.
    """

    guesses: int
    right: int
    bound: float


def guess(
    scores: NDArray[np.float64], included: NDArray[np.bool_], spec: CanarySpec, *, error: float, delta: float
) -> Guesses:
    """Guess "in" for the highest scores and "out" for the lowest, and count.

    Args:
        scores: Of each canary.
        included: The coins.
        spec: How many are guessed.
        error: The probability with which the bound may be too large.
        delta: At which epsilon is bounded.

    Returns:
        Guesses and bound.
    """
    order = np.argsort(scores, kind="stable")
    right = int(included[order[-spec.guesses_in :]].sum() + (~included[order[: spec.guesses_out]]).sum())
    guesses = spec.guesses_in + spec.guesses_out
    return Guesses(guesses, right, get_eps_audit(m=len(scores), r=guesses, v=right, p=error, delta=delta))


@dataclass(frozen=True)
class Finding:
    """One tenant in one run.

    Args:
        epsilon: The run's budget; infinite without DP.
        tenant: Who was audited.
        canaries: m.
        included: How many of them were put in.
        confidence: Of each bound.
        delta: At which epsilon is bounded.
        claim: What the ledger says was spent; None without DP.
        noise: How much there is; None without DP, and where it cannot be read.
        updates: Guesses from the updates of every round. They judge.
        final: Guesses from the final adapter alone.
        members_by_updates: The attack from updates, on real people.
        members_by_final: The attack from the final adapter, on real people.
    """

    epsilon: float
    tenant: str
    canaries: int
    included: int
    confidence: float
    delta: float
    claim: PrivacyLoss | None
    noise: NoiseReading | None
    updates: Guesses
    final: Guesses
    members_by_updates: Membership
    members_by_final: Membership

    @property
    def share(self) -> float | None:
        """Bound over claim."""
        return None if self.claim is None else self.updates.bound / self.claim.epsilon

    @property
    def broken(self) -> bool:
        """Whether the bound from the updates exceeds the claim, or there is less noise than it accounts for."""
        if self.claim is None:
            return False
        return self.updates.bound > self.claim.epsilon or (self.noise is not None and self.noise.too_small)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        found["epsilon"] = "inf" if math.isinf(self.epsilon) else self.epsilon
        return found | {"bound_over_claim": self.share, "broken": self.broken}


@dataclass(frozen=True)
class Verdict:
    """What the findings of an audit come to.

    Args:
        outcome: "holds"; "fails" where a bound exceeds a claim; "proves nothing" where the attack is not known to work.
        sentence: For a person.
    """

    outcome: str
    sentence: str


def judge(findings: Sequence[Finding], must_reach: float) -> Verdict:
    """Draw the conclusion.

    Args:
        findings: Of all runs.
        must_reach: The lower bound that the attack must reach without DP.

    Returns:
        The verdict; a broken claim fails whether the attack works without DP or not.
    """
    broken = [finding for finding in findings if finding.broken]
    if broken:
        worst = max(broken, key=lambda finding: finding.share or 0.0)
        if (worst.share or 0.0) <= 1:
            worst = next(finding for finding in broken if finding.noise is not None and finding.noise.too_small)
            assert worst.noise is not None
            return Verdict(
                "fails",
                f"FAILED: the updates of tenant '{worst.tenant}' hold noise of {worst.noise.found:.4g} (at most "
                f"{worst.noise.high:.4g} at {worst.confidence:.3g} confidence), and its ledger accounts for "
                f"{worst.noise.claimed:.4g} in its claim of {worst.claim}; the lower bound on epsilon is "
                f"{worst.updates.bound:.3g}. The noise is not what it says; stop using it.",
            )
        return Verdict(
            "fails",
            f"FAILED: tenant '{worst.tenant}' leaks epsilon of at least {worst.updates.bound:.3g} (delta="
            f"{worst.delta:g}, {worst.confidence:.3g} confidence: {worst.updates.right} of {worst.updates.guesses} "
            f"guesses right), and its ledger claims {worst.claim}. The noise, the clipping or the accounting is "
            "not what it says; stop using it.",
        )
    without = [finding for finding in findings if finding.claim is None]
    if not without:
        return Verdict(
            "proves nothing",
            "No claim is broken, and that proves nothing: the attack was not tried without DP; add inf to epsilons.",
        )
    weakest = min(without, key=lambda finding: finding.updates.bound)
    if weakest.updates.bound < must_reach:
        return Verdict(
            "proves nothing",
            f"No claim is broken, and that proves nothing: without DP the attack on tenant '{weakest.tenant}' "
            f"reaches epsilon {weakest.updates.bound:.3g} and not {must_reach:g}. Give the canaries more columns or "
            "rounds.",
        )
    return Verdict(
        "holds",
        f"No bound exceeds its claim, and the attack works: without DP it reaches epsilon {weakest.updates.bound:.3g}.",
    )
