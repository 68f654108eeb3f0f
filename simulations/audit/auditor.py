"""An audit, run by run: plant canaries, run the federation, attack it with what its server saw, and count."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.simulations.audit.attack import Attacker
from fedprofile.simulations.audit.canaries import audited_card, fair_coins, joined, make_canaries, planted
from fedprofile.simulations.audit.findings import Finding, guess
from fedprofile.simulations.audit.membership import membership
from fedprofile.simulations.audit.noise_size import read_noise
from fedprofile.simulations.audit.observed import Observed, run_observed
from fedprofile.simulations.audit.spec import Audit
from fedprofile.simulations.cells import fewer, read_scenario, usable_device
from fedprofile.simulations.federation import SimulatedTenant
from fedprofile.simulations.scenarios import changed
from fedprofile.simulations.shared_base import CacheSpec, SharedBase
from fedprofile.simulations.tenants import TenantExamples, read_tenants


@dataclass(frozen=True)
class _Planted:
    """An audited tenant's canaries and their coins."""

    canaries: EncodedRecords = field(repr=False)
    included: NDArray[np.bool_] = field(repr=False)


class Auditor:
    """The federation that an audit is of.

    Args:
        audit: What is asked.

    Raises:
        ConfigError: The audit does not fit card or data.
    """

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        scenario = read_scenario(audit.data)
        card = changed(scenario.card, **audit.card)
        card = changed(card, rounds={"min_tenants": min(card.rounds.min_tenants, len(scenario.tenants))})
        self.card: FederationCard = audited_card(card, audit.canaries.columns, audit.canaries.count)
        known = [tenant.name for tenant in scenario.tenants]
        for name in audit.tenants:
            if name not in known:
                raise ConfigError(f"tenants: '{name}' is not a tenant of this data; it has {', '.join(known)}.")
        everyone = read_tenants(scenario, split_seed=audit.seed)
        limit = audit.data.limit
        self._tenants = everyone if limit is None else [fewer(each, limit, audit.data.seed) for each in everyone]
        engine = audit.engine
        mib = engine.cache_mib
        spec = CacheSpec("none" if engine.cache == "none" else "lazy", None, None if mib is None else mib << 20)
        self._base = SharedBase.load(self.card.base, spec, folder=engine.base, device=usable_device(engine.device))
        self._model, self._cache = self._base.model(self.card)

    def findings(self, epsilon: float) -> Iterator[Finding]:
        """Run a federation and attack it.

        Args:
            epsilon: Budget of every tenant; infinite for no noise and no clipping.

        Yields:
            What was found at each audited tenant.

        Raises:
            DataError: A tenant has nobody of whom the attack could be tried.
        """
        spec, seed = self._audit.canaries, self._audit.seed
        tenants = [self._prepared(tenant, epsilon) for tenant in self._tenants]
        plants = {
            name: _Planted(
                make_canaries(self._model, spec.count, spec.columns, spec.words, seed, spec.records),
                fair_coins(spec.count, seed, name, str(epsilon)),
            )
            for name in self._audit.tenants
        }
        observed = run_observed(
            self.card,
            self._model,
            self._cache,
            [
                planted(tenant, plants[tenant.name].canaries, plants[tenant.name].included)
                if tenant.name in plants
                else tenant
                for tenant in tenants
            ],
            seed=seed,
            noise=not math.isinf(epsilon),
            tokens_at_once=self._audit.engine.tokens_at_once,
        )
        for tenant in tenants:
            if tenant.name in plants:
                yield self._attacked(epsilon, observed, tenant, plants[tenant.name])

    def _prepared(self, tenant: TenantExamples, epsilon: float) -> SimulatedTenant:
        found = tenant.with_settings(self._audit.tenant)
        if math.isinf(epsilon):
            found = found.with_settings({"privacy": {"clip_norm": self._audit.clip_norm_without_dp}})
        else:
            found = found.at_budget(epsilon)
        return found.split_by(self._audit.seed).encoded(self.card, self._base.tokenizer)

    def _attacked(self, epsilon: float, observed: Observed, tenant: SimulatedTenant, plant: _Planted) -> Finding:
        spec, seed = self._audit.canaries, self._audit.seed
        members, others = tenant.records.training, tenant.records.evaluation
        if not len(members) or not len(others):
            raise DataError(f"tenant '{tenant.name}' has no training or no evaluation users; give it more users.")
        candidates = joined(plant.canaries, members, others)
        attacker = Attacker(self._model, self._cache)
        by_updates = attacker.from_updates(observed, tenant.name, candidates)
        by_final = attacker.from_final(observed, candidates)
        last = spec.count + len(members.users)
        claim = observed.claims[tenant.name]
        error = (1 - self._audit.confidence) / len(self._audit.tenants)
        guesses = [
            guess(scores[: spec.count], plant.included, spec, error=error, delta=claim.delta)
            for scores in (by_updates.scores, by_final)
        ]
        people = [
            membership(scores[spec.count : last], scores[last:], seed) for scores in (by_updates.scores, by_final)
        ]
        private = not math.isinf(epsilon)
        noise = read_noise(by_updates.residuals, observed.deviations[tenant.name], 1 - error) if private else None
        return Finding(
            epsilon=epsilon,
            tenant=tenant.name,
            canaries=spec.count,
            included=int(plant.included.sum()),
            confidence=1 - error,
            delta=claim.delta,
            claim=claim if private else None,
            noise=noise,
            updates=guesses[0],
            final=guesses[1],
            members_by_updates=people[0],
            members_by_final=people[1],
        )
