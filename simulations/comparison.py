"""What else was possible with the same data and the same budget: no noise, alone, and the cheap alternatives.

Every one runs through the same server app, client logic and accountant; what differs is the card, the tenants, or
that the noise is zero. All are judged by the exact AUC over all tenants' evaluation users, which only a rehearsal has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedprofile.common.card import FederationCard
from fedprofile.simulations.federation import exact_auc, run_in_process
from fedprofile.simulations.scenarios import changed
from fedprofile.simulations.shared_base import SharedBase
from fedprofile.simulations.tenants import TenantExamples

NO_TEXT = 1e-9
"""A text scale at which the text has no part in a prediction or a gradient: the head is a regression on columns."""


class Comparison:
    """The alternatives on one split and one budget.

    Args:
        card: The federation's; the alternatives' cards are made from it.
        base: The loaded base model.
        tenants: Data, split and budget of everyone.
        seed: Of all sampling and noise.
    """

    def __init__(
        self,
        card: FederationCard,
        base: SharedBase,
        tenants: Sequence[TenantExamples],
        *,
        seed: int,
    ) -> None:
        self._card, self._base = card, base
        self._tenants, self._seed = list(tenants), seed

    def ways(self, **logistic: Any) -> dict[str, Callable[[], float]]:
        """Everything that can be compared, by name; each call runs it and gives its exact AUC.

        Args:
            logistic: See `logistic_regression`.
        """
        return {
            "federation": self.federation,
            "no_noise": lambda: self.federation(noise=False),
            "other_factors": self.other_factors,
            "alone_mean": self.alone_mean,
            "dp_linear_probe": self.linear_probe,
            "dp_logistic_regression": lambda: self.logistic_regression(**logistic),
            "dp_spline_regression": self.spline_regression,
        }

    def federation(self, noise: bool = True) -> float:
        """The federation itself, with or without noise."""
        return self._run(self._card, noise=noise)

    def other_factors(self) -> float:
        """The federation with A and B trained where its card trains B alone, and the other way round."""
        return self._run(changed(self._card, adapter={"train": "AB" if self._card.adapter.train == "B" else "B"}))

    def alone_mean(self) -> float:
        """Each tenant alone at the same budget, judged on everybody's evaluation users; the mean over tenants."""
        card = changed(self._card, rounds={"min_tenants": 1})
        return float(np.mean([self._run(card, only=tenant.name) for tenant in self._tenants]))

    def linear_probe(self) -> float:
        """The head alone, on the frozen text and the same columns."""
        return self._run(changed(self._card, adapter={"method": "head"}))

    def spline_regression(self) -> float:
        """A regression on exactly the federation's columns, knots and crosses, without any text."""
        return self._run(changed(self._card, adapter={"method": "head", "text_scale": NO_TEXT}))

    def logistic_regression(self, **training: Any) -> float:
        """A logistic regression on the columns as they are: scaled to their public ranges, one input a category.

        Args:
            training: Settings of the card's `[training]` to use instead.
        """
        features = self._card.features.model_dump(mode="json")
        for numeric in features["numeric"]:
            numeric["knots"] = []
        features["crosses"] = []
        adapter = {"method": "head", "text_scale": NO_TEXT}
        return self._run(changed(self._card, features=features, adapter=adapter, training=training))

    def _run(self, card: FederationCard, *, noise: bool = True, only: str | None = None) -> float:
        model, cache = self._base.model(card)
        everyone = [tenant.encoded(card, self._base.tokenizer) for tenant in self._tenants]
        training = [tenant for tenant in everyone if only in (None, tenant.name)]
        result = run_in_process(card, model, cache, training, seed=self._seed, noise=noise)
        return exact_auc(model, cache, result.arrays, [tenant.records.evaluation for tenant in everyone])
