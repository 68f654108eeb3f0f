"""What an audit is: one TOML file.

name = "audit"
epsilons       budgets of the runs; inf is the run without DP, in which the attack must succeed
tenants        who holds canaries
[data]         as in an experiment
[canaries]     how many, what they look like, and how many are guessed
[card], [tenant], [engine]     as in an experiment
"""

import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fedprofile.common.config import Frozen, load_toml
from fedprofile.simulations.experiment import DataSpec, EngineSpec

Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=True)]


class CanarySpec(Frozen):
    """The canaries of each audited tenant. How many are guessed is part of the audit, not chosen by its result."""

    count: int = Field(default=1000, ge=10)
    """m."""
    columns: int = Field(default=4, ge=0, le=16)
    """Public columns in which each has a value of its own; 0 for canaries of text and the card's own columns."""
    records: int = Field(default=1, ge=1, le=64)
    """Of each. With as many as a tenant takes of one user in a step, clipping by record instead of by user is found."""
    words: int = Field(default=6, ge=1)
    """Tokens of each one's text."""
    guesses_in: int = Field(default=100, ge=1)
    """k+: so many with the highest scores are guessed to have taken part."""
    guesses_out: int = Field(default=100, ge=1)
    """k-: so many with the lowest scores are guessed not to have."""

    @model_validator(mode="after")
    def _guesses_fit(self) -> Self:
        if self.guesses_in + self.guesses_out > self.count:
            raise ValueError(
                f"guesses_in + guesses_out = {self.guesses_in + self.guesses_out} is above count = {self.count}"
            )
        return self


class Audit(Frozen, ser_json_inf_nan="constants"):
    """An audit, whole. See the module's docstring."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    epsilons: tuple[Epsilon, ...] = Field(default=(1.0, 3.0, 8.0, math.inf), min_length=1)
    seed: int = 0
    """Of sampling, noise, canaries, coins and evaluation users."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the lower bounds of one run, over all audited tenants together."""
    tenants: tuple[str, ...] = Field(min_length=1)
    clip_norm_without_dp: float = Field(default=1e4, gt=0)
    """Instead of the tenants', at epsilon = inf: so large that nothing is clipped."""
    must_reach: float = Field(default=3.0, gt=0)
    """The lower bound that the attack must reach without DP, or the audit proves nothing."""
    data: DataSpec = DataSpec()
    canaries: CanarySpec = CanarySpec()
    card: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tenant: dict[str, dict[str, Any]] = Field(default_factory=dict)
    engine: EngineSpec = EngineSpec()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, values in (("epsilons", self.epsilons), ("tenants", self.tenants)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names the same value twice")
        if self.engine.kind != "in-process":
            raise ValueError("an audit sees what passes an in-process grid; leave engine.kind out")
        return self


def load_audit(path: Path) -> Audit:
    """Read an audit.

    Args:
        path: Its TOML file.

    Returns:
        The audit.

    Raises:
        ConfigError: See `fedprofile.common.config.load_toml`.
    """
    return load_toml(path, Audit)
