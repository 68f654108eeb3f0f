"""Attacks of an honest-but-curious server: who took part in training?

The server knows the card, the base model, each round's adapter, and each tenant's declared users and settings; and it
has the records of some people, the candidates, of whom it wants to know whether they took part.

From the updates: with SGD and one local step, an update is up to a known factor the noised sum of the clipped mean
gradients of the users who were sampled. The server computes each candidate's own clipped gradient at the round's
adapter and takes its inner product with that sum. What candidates have in common would drown what sets one apart, so
inner products are taken in the metric of ridge regression, which gives each candidate's estimated share of the sum;
where noise is large that is the plain inner product. How much noise there is, is read off the part of the sum that no
candidate explains, so that noise which is claimed and not there is found out. Shares are added up over rounds. With
other optimisers, or more local steps, an update is not that sum, and the attack is weaker for it.

From the final adapter alone: by how much a candidate's loss is lower than under the adapter that the run started from.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fedprofile.client.training import TrainingSettings
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.head import summed_loss
from fedprofile.common.modeling.profile_model import Prefixes, ProfileModel
from fedprofile.simulations.audit.noise_size import Residual, is_readable, residual
from fedprofile.simulations.audit.observed import Observed
from fedprofile.simulations.stacked_adapters import StackedAdapters

RECORDS_AT_ONCE = 64

JITTER = 1e-5
"""Of a kernel's mean diagonal: above its rounding, and where two candidates are alike it could not be solved."""


@dataclass(frozen=True)
class UpdateAttack:
    """What the updates of every round give away.

    Args:
        scores: Of each candidate; the higher, the surer.
        residuals: What no candidate explains, of each round in which it can be read.
    """

    scores: NDArray[np.float64] = field(repr=False)
    residuals: tuple[Residual, ...]


class Attacker:
    """What the server computes with.

    Args:
        model: Of the card.
        cache: Of the model, or None.
    """

    def __init__(self, model: ProfileModel, cache: Prefixes | None) -> None:
        self._model, self._cache = model, cache

    def from_updates(self, observed: Observed, tenant: str, candidates: EncodedRecords) -> UpdateAttack:
        """How much each candidate seems to have taken part, by the updates of every round.

        Args:
            observed: A run.
            tenant: Whose updates.
            candidates: Records of the people in question.

        Returns:
            What the updates give away.
        """
        settings = observed.settings[tenant]
        scores, residuals = np.zeros(len(candidates.users)), list[Residual]()
        steps = self._model.card.training.local_steps
        for number, update in observed.transcript.updates[observed.nodes[tenant]].items():
            gradients = self._user_gradients(observed.transcript.adapters[number], candidates, settings.clip_norm)
            total = released_sum(update, settings)
            scores += shares(total, gradients, settings)
            if is_readable(update, settings, steps) and (left := residual(total, gradients, JITTER)) is not None:
                residuals.append(left)
        return UpdateAttack(scores, tuple(residuals))

    def from_final(self, observed: Observed, candidates: EncodedRecords) -> NDArray[np.float64]:
        """How much better the final adapter knows each candidate than the first one did.

        Args:
            observed: A run.
            candidates: Records of the people in question.

        Returns:
            A score for each of `candidates.users`; the higher, the surer.
        """
        gained = self._losses(self._model.initial_arrays(), candidates) - self._losses(observed.arrays, candidates)
        return np.bincount(candidates.user, gained) / np.bincount(candidates.user)

    def _user_gradients(self, arrays: Arrays, records: EncodedRecords, clip_norm: float) -> NDArray[np.float32]:
        """Each user's clipped mean gradient, [users, size]."""
        stacked = StackedAdapters(self._model, [arrays])
        sums = torch.zeros((len(records.users), stacked.size))
        order = np.argsort([len(tokens) for tokens in records.tokens], kind="stable")
        for start in range(0, len(order), RECORDS_AT_ONCE):
            places = order[start : start + RECORDS_AT_ONCE]
            rows = torch.zeros(len(places), dtype=torch.int64, device=self._model.device)
            gradients = stacked.gradients(functools.partial(self._summed_loss, records, places), rows)
            sums.index_add_(0, torch.from_numpy(records.user[places]), gradients.cpu())
        means: NDArray[np.float32] = (sums / torch.from_numpy(np.bincount(records.user))[:, None]).numpy()
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        means *= clip_norm / np.maximum(norms, clip_norm)
        return means

    def _summed_loss(self, records: EncodedRecords, places: NDArray[np.int64]) -> torch.Tensor:
        tokens = [records.tokens[place] for place in places]
        batch = self._model.batch(tokens, max(map(len, tokens)))
        logits = self._model.logits_of(batch, tokens, records.features[places], self._cache)
        return summed_loss(logits, torch.from_numpy(records.labels[places]), self._model.card.task)

    def _losses(self, arrays: Arrays, records: EncodedRecords) -> NDArray[np.float64]:
        self._model.set_arrays(arrays)
        probabilities = self._model.predict(records, self._cache)
        right = probabilities[np.arange(len(records)), records.labels]
        losses: NDArray[np.float64] = -np.log(np.maximum(right, np.finfo(np.float64).tiny))
        return losses


def released_sum(update: Arrays, settings: TrainingSettings) -> NDArray[np.float64]:
    """The noised sum of gradients behind an update of one step of SGD.

    Args:
        update: As a tenant sent it.
        settings: How the tenant trains.

    Returns:
        [size], in the order of the wire.
    """
    rates = [settings.head_learning_rate if name.startswith("head.") else settings.learning_rate for name in update]
    parts = [np.ravel(array).astype(np.float64) / -rate for array, rate in zip(update.values(), rates, strict=True)]
    found: NDArray[np.float64] = np.concatenate(parts) * settings.denominator
    return found


def shares(
    total: NDArray[np.float64], gradients: NDArray[np.floating], settings: TrainingSettings
) -> NDArray[np.float64]:
    """Ridge regression of a noised sum on the gradients that may be in it.

    Args:
        total: [size].
        gradients: Of each candidate, [n, size].
        settings: How the tenant trains.

    Returns:
        The estimated share of each candidate, [n].
    """
    kernel, products = (gradients @ gradients.T).astype(np.float64), gradients @ total
    count = len(kernel)
    own = float(np.trace(kernel)) / count
    jitter = JITTER * own * np.eye(count)
    left = residual(total, gradients, JITTER)
    variance = (settings.noise_multiplier * settings.clip_norm) ** 2 if left is None else left[0] / left[1]
    # A candidate is in the sum with probability q/2, one half for its coin.
    rate = settings.sample_rate / 2
    ridge = variance / (rate * (1 - rate)) * np.eye(count)
    return np.asarray(np.linalg.solve(kernel + jitter + ridge, products), dtype=np.float64)
