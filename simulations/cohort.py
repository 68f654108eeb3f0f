"""The cohort trainer: all tenants of a round train at once, and each comes out as its own client would have made it.

Why it may stand for deployment: every tenant has its own source of randomness, which is asked for the same draws in
the same order as in `fedprofile.client.training` (users, records, noise, step by step); a user's mean gradient over
ALL of the user's sampled records is clipped once; sums are float64; noise and grid are `noised_sum`'s; the inner
optimiser and the released update's bound are the tenant's `TrainingSettings`. What is shared is arithmetic alone: the
records of all tenants are sorted by length and cut into chunks, whoever's they are. At noise ~0 an update agrees with
the deployed trainer's to 1e-5 (relative L2) and better; a test holds it to that.

What it does not give is the proof against a hostile adapter that deployment needs: here a record's last bits may
depend on the chunk that it is in. It is for simulations only, and the floors keep it out of the client.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedprofile.client.noise import check_grid, noised_sum
from fedprofile.client.randomness import Randomness, SecureRandomness
from fedprofile.client.sampling import choose_records, sample_users, take_records
from fedprofile.client.selftest import check_export, check_training
from fedprofile.client.training import TrainingSettings
from fedprofile.common.interactions import EncodedRecords, joined
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.adversarial import moved
from fedprofile.common.modeling.head import summed_loss
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import Prefixes, ProfileModel
from fedprofile.simulations.stacked_adapters import StackedAdapters

_log = logging.getLogger(__name__)

TOKENS_AT_ONCE = 2048
"""Padded tokens of a chunk. On a CPU larger chunks fall out of its caches."""

GROUP_BYTES = 1 << 26
"""Of the user gradients that are held at once."""


@dataclass(frozen=True)
class TrainingJob:
    """One tenant's part of a round.

    Args:
        settings: How it trains, and how privately.
        arrays: The adapter that it starts from, by wire name.
        records: Of its training users.
        steps: T.
        randomness: Made for this reservation alone.
        round_number: As the request says.
    """

    settings: TrainingSettings
    arrays: Arrays = field(repr=False)
    records: EncodedRecords = field(repr=False)
    steps: int
    randomness: Randomness = field(repr=False)
    round_number: int = 1


@dataclass(frozen=True)
class _Sample:
    """One step's sampled records of all jobs.

    Args:
        job: Of each record.
        records: Their views; users are distinct over all jobs, and records of one user stand together.
        adversarial: How far they are moved.
    """

    job: NDArray[np.int64]
    records: EncodedRecords
    adversarial: float


class CohortTrainer:
    """Trains any number of tenants of one federation at once.

    Args:
        model: Of the card, on its device.
        cache: The frozen layers' activations; None runs the model whole.
        tokens_at_once: Padded tokens of a chunk; halved by itself where the device's memory runs out.
    """

    def __init__(self, model: ProfileModel, cache: Prefixes | None, tokens_at_once: int = TOKENS_AT_ONCE) -> None:
        self._model, self._cache = model, cache
        self._tokens_at_once = tokens_at_once
        self._tested = False

    def self_test(self, settings: TrainingSettings) -> None:
        """What a client tests before its first reservation, of this trainer; done once.

        Args:
            settings: Of any tenant.

        Raises:
            SelfTestError: See `check_training` and `check_export`.
        """
        if self._tested:
            return

        def step(arrays: Arrays, records: EncodedRecords) -> Arrays:
            cache = None if self._cache is None else PrefixCache(self._model)
            plain = CohortTrainer(self._model, cache, self._tokens_at_once)
            job = TrainingJob(settings.plain(len(records.users)), arrays, records, 1, SecureRandomness())
            return plain.train([job])[0]

        check_training(self._model, step)
        check_export(self._model)
        self._tested = True

    def train(self, jobs: Sequence[TrainingJob]) -> list[Arrays]:
        """The noised update of every job.

        Args:
            jobs: Of one federation: they may differ in all but what its card says of optimiser, learning rates, clip
                groups and views.

        Returns:
            As `PrivateTrainer.train` gives for each by itself, in their order.

        Raises:
            ConfigError: The accounting would not cover the rounding.
            ValueError: The jobs differ in what they must share.
        """
        updates: list[Arrays] = [{}] * len(jobs)
        for steps, number in sorted({(job.steps, job.round_number) for job in jobs}):
            places = [place for place, job in enumerate(jobs) if (job.steps, job.round_number) == (steps, number)]
            some = self._train([jobs[place] for place in places], steps, number)
            for place, update in zip(places, some, strict=True):
                updates[place] = update
        return updates

    def _train(self, jobs: Sequence[TrainingJob], steps: int, round_number: int) -> list[Arrays]:
        settings = _shared(jobs)
        stacked = StackedAdapters(self._model, [job.arrays for job in jobs])
        for job in jobs:
            check_grid(job.settings.noise_multiplier, stacked.size)
        parts = [part for part in (stacked.factors, stacked.heads) if part.shape[1]]
        start = [part.clone() for part in parts]
        optimizer = settings.inner_optimizer([stacked.factors] if len(parts) > 1 else [], [stacked.heads])
        schedule = settings.scheduled(optimizer, round_number, steps)
        for _ in range(steps):
            noised = self._noised(jobs, self._sums(stacked, jobs))
            for part, gradient, before in zip(
                parts, noised.split([part.shape[1] for part in parts], dim=1), start, strict=True
            ):
                part.grad = gradient.contiguous()
                if settings.proximal:
                    part.grad.add_(part - before, alpha=settings.proximal)
            optimizer.step()
            schedule.step()
        return [self._released(stacked, row, job) for row, job in enumerate(jobs)]

    def _released(self, stacked: StackedAdapters, row: int, job: TrainingJob) -> Arrays:
        moved = {name: value - job.arrays[name] for name, value in stacked.arrays(row).items()}
        return job.settings.bounded(moved)

    def _sums(self, stacked: StackedAdapters, jobs: Sequence[TrainingJob]) -> torch.Tensor:
        """Of each job the sum of its sampled users' clipped gradients, float64 [K, size]."""
        sample = _draw(jobs, self._model.card.task.rows_per_record)
        clip = torch.tensor([job.settings.clip_norm for job in jobs], dtype=torch.float64, device=self._model.device)
        total = torch.zeros((len(jobs), stacked.size), dtype=torch.float64, device=self._model.device)
        user = sample.records.user
        lengths = np.array([max(1, len(record)) for record in sample.records.tokens], dtype=np.int64)
        for group in _groups(user, lengths, GROUP_BYTES // (4 * stacked.size)):
            users, inside, counts = np.unique(user[group], return_inverse=True, return_counts=True)
            sums = torch.zeros((len(users), stacked.size), device=self._model.device)
            owners = torch.zeros(len(users), dtype=torch.int64, device=self._model.device)
            for whole in _chunks(lengths[group], self._tokens_at_once):
                for chunk, gradients in self._passes(stacked, sample, group, whole):
                    places = torch.from_numpy(inside[chunk]).to(self._model.device)
                    sums.index_add_(0, places, gradients)
                    owners[places] = torch.from_numpy(sample.job[group[chunk]]).to(self._model.device)
            sums /= torch.from_numpy(counts).to(sums)[:, None]
            _add_clipped(total, sums, owners, clip[owners], jobs[0].settings.clip_shares, stacked.factors.shape[1])
        return total

    def _passes(
        self,
        stacked: StackedAdapters,
        sample: _Sample,
        group: NDArray[np.int64],
        chunk: NDArray[np.int64],
    ) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """A chunk with its records' gradients; in halves, and smaller ones from then on, where memory runs out."""
        try:
            gradients = self._gradients(stacked, sample, group[chunk])
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            self._tokens_at_once = max(1, self._tokens_at_once // 2)
            _log.warning("the device's memory is full; passes hold %d tokens from here on", self._tokens_at_once)
        else:
            yield chunk, gradients
            return
        # Outside of the handler, whose traceback holds on to what the pass had allocated.
        stacked.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for half in np.array_split(chunk, 2):
            yield from self._passes(stacked, sample, group, half)

    def _gradients(self, stacked: StackedAdapters, sample: _Sample, chunk: NDArray[np.int64]) -> torch.Tensor:
        """Each record's gradient, [n, size]."""
        tokens = [sample.records.tokens[place] for place in chunk]
        features, labels = sample.records.features[chunk], torch.from_numpy(sample.records.labels[chunk])
        part, task = sample.adversarial, self._model.card.task
        # To the longest record and no further: no proof rests on the shape here.
        batch = self._model.batch(tokens, max(1, *map(len, tokens)))

        def summed() -> torch.Tensor:
            if not part:
                return summed_loss(self._model.logits_of(batch, tokens, features, self._cache), labels, task)
            start = self._model.entry(batch, tokens, self._cache)
            near = moved(self._model, batch, features, start, labels, part)
            return summed_loss(self._model.logits(batch, features, near), labels, task)

        rows = torch.from_numpy(sample.job[chunk]).to(self._model.device)
        with self._model.short_cuts():
            return stacked.gradients(summed, rows)

    def _noised(self, jobs: Sequence[TrainingJob], sums: torch.Tensor) -> torch.Tensor:
        """What each job's inner optimiser sees, float32 [K, size]."""
        found = np.empty(sums.shape, dtype=np.float32)
        for row, job, values in zip(found, jobs, sums.cpu().numpy(), strict=True):
            settings = job.settings
            deviation = settings.noise_multiplier * settings.clip_norm
            row[:] = noised_sum(values, deviation, job.randomness) / settings.denominator
        return torch.from_numpy(found).to(self._model.device)


class CohortMember:
    """One tenant's trainer, for its `TenantApp`: its own settings, and a trainer that it has in common with others.

    Args:
        trainer: Of the federation.
        settings: The tenant's.
    """

    def __init__(self, trainer: CohortTrainer, settings: TrainingSettings) -> None:
        self._trainer, self._settings = trainer, settings

    def self_test(self) -> None:
        """See `CohortTrainer.self_test`."""
        self._trainer.self_test(self._settings)

    def train(
        self,
        arrays: Arrays,
        records: EncodedRecords,
        *,
        steps: int,
        randomness: Randomness,
        round_number: int = 1,
    ) -> Arrays:
        """See `PrivateTrainer.train`."""
        return self._trainer.train([TrainingJob(self._settings, arrays, records, steps, randomness, round_number)])[0]


def _shared(jobs: Sequence[TrainingJob]) -> TrainingSettings:
    """Settings of which what the card decides is the same for all jobs."""
    names = (
        "optimizer",
        "learning_rate",
        "head_learning_rate",
        "momentum",
        "proximal",
        "weight_decay",
        "schedule",
        "head_clip",
        "views",
        "adversarial",
    )
    first = jobs[0].settings
    for job in jobs:
        for name in names:
            if getattr(job.settings, name) != getattr(first, name):
                raise ValueError(f"the jobs of a cohort must have one {name}")
    return first


def _draw(jobs: Sequence[TrainingJob], rows: int) -> _Sample:
    """Who enters a step with which records, of so many rows each: the draws of `PrivateTrainer`, of each job's own."""
    taken: list[EncodedRecords] = []
    users_before = 0
    for job in jobs:
        records, settings = job.records, job.settings
        sampled = sample_users(len(records.users), settings.rates(records), job.randomness)
        places = choose_records(records.user, sampled, settings.records_per_user, job.randomness, rows)
        some = take_records(records, places).with_views(settings.views)
        taken.append(replace(some, user=some.user + users_before))
        users_before += len(records.users)
    owners = np.repeat(np.arange(len(jobs)), list(map(len, taken)))
    return _Sample(owners, joined(taken), jobs[0].settings.adversarial)


def _groups(user: NDArray[np.int64], lengths: NDArray[np.int64], limit: int) -> Iterator[NDArray[np.int64]]:
    """Records cut into groups of whole users, those with short records first.

    Args:
        user: Of each record; records of one user together.
        lengths: Of each record.
        limit: Users in a group; at least one is in it.

    Yields:
        Places of records; each place once.
    """
    if not len(user):
        return
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    counts = np.diff(np.r_[first, len(user)])
    longest = np.maximum.reduceat(lengths, first)
    order = np.argsort(longest, kind="stable")
    for start in range(0, len(order), max(1, limit)):
        yield np.concatenate([np.arange(first[u], first[u] + counts[u]) for u in order[start : start + max(1, limit)]])


def _chunks(lengths: NDArray[np.int64], tokens_at_once: int) -> Iterator[NDArray[np.int64]]:
    """Records in chunks of similar length.

    Args:
        lengths: Of each record.
        tokens_at_once: Bound on records times the longest length of a chunk, unless it is one record.

    Yields:
        Places, shortest records first; each place once.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= tokens_at_once:
            end += 1
        yield order[start:end]
        start = end


def _add_clipped(
    total: torch.Tensor,
    means: torch.Tensor,
    rows: torch.Tensor,
    clip: torch.Tensor,
    shares: tuple[float, float] | None,
    border: int,
) -> None:
    """Clip each user's mean once and add it to its tenant's sum; a mean that is not finite counts zero.

    Args:
        total: float64 [K, size].
        means: float32 [users, size].
        rows: Each user's tenant.
        clip: C of each user's tenant, float64.
        shares: Of C, for the LoRA factors and for the head, which are then clipped apart.
        border: Where the head begins.
    """
    sizes = [border, means.shape[1] - border]
    for part, row, bound in zip(means.split(64), rows.split(64), clip.split(64), strict=True):
        wide = part.double()
        groups = [(wide, bound)]
        if shares is not None:
            groups = [(some, share * bound) for some, share in zip(wide.split(sizes, dim=1), shares, strict=True)]
        norms = [group.square().sum(dim=1).sqrt() for group, _ in groups]
        finite = torch.isfinite(torch.stack(norms)).all(dim=0)
        wide[~finite] = 0.0
        for norm, (group, limit) in zip(norms, groups, strict=True):
            group.mul_(torch.where(finite, limit / torch.maximum(norm, limit), 0.0)[:, None])
        total.index_add_(0, row, wide)
