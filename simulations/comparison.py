"""What else was possible with the same data and the same budget: no noise, alone, and the cheap alternatives.

Every one runs through the same server app, client logic and accountant; what differs is the card, the tenants, or
that the noise is zero.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.simulations.federation import SimulatedTenant, exact_auc, run_in_process

NO_TEXT = 1e-9
"""A text scale at which the text has no part in a prediction or a gradient: the head is a regression on columns."""


class Comparison:
    """The alternatives on one split, all judged by exact AUC over all tenants' evaluation users.

    Args:
        card: The federation's; the alternatives' cards are made from it.
        base: The loaded base model.
        tokenizer: Its tokenizer.
        tenants: Data, split and budget of everyone.
        seed: Of all sampling and noise.
    """

    def __init__(
        self,
        card: FederationCard,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tenants: Sequence[SimulatedTenant],
        *,
        seed: int,
    ) -> None:
        self._card, self._base, self._tokenizer = card, base, tokenizer
        self._tenants, self._seed = list(tenants), seed
        self._caches: dict[str, PrefixCache] = {}

    def all(self) -> dict[str, float]:
        """Every alternative by name."""
        return {
            "no_noise": self.federation(noise=False),
            "alone_mean": self.alone_mean(),
            "dp_linear_probe": self.linear_probe(),
            "dp_logistic_regression": self.logistic_regression(),
        }

    def federation(self, noise: bool = True) -> float:
        """The federation itself, with or without noise."""
        return self._run(self._card, self._tenants, noise)

    def alone_mean(self) -> float:
        """Each tenant alone at the same budget, judged on everybody's evaluation users; the mean over tenants."""
        card = _changed(self._card, rounds={"min_tenants": 1})
        return float(np.mean([self._run(card, [tenant]) for tenant in self._tenants]))

    def linear_probe(self) -> float:
        """The head alone, on the frozen text and the same columns."""
        return self._run(_changed(self._card, adapter={"method": "head"}), self._tenants)

    def logistic_regression(self) -> float:
        """A regression on the same columns as the federation's head, without any text."""
        return self._run(_changed(self._card, adapter={"method": "head", "text_scale": NO_TEXT}), self._tenants)

    def _run(self, card: FederationCard, tenants: Sequence[SimulatedTenant], noise: bool = True) -> float:
        model = ProfileModel(card, self._base, self._tokenizer)
        cache = self._caches.setdefault(model.prefix_space, PrefixCache(model))
        result = run_in_process(card, model, cache, tenants, seed=self._seed, noise=noise)
        evaluation = [tenant.records.evaluation for tenant in self._tenants]
        return exact_auc(model, cache, result.arrays, evaluation)


def _changed(card: FederationCard, **sections: dict[str, Any]) -> FederationCard:
    data = card.model_dump(mode="json")
    for name, section in sections.items():
        data[name] |= section
    return validate(data, FederationCard, "comparison")
