"""Private training at the tenant: a pure function of adapter, records, settings and randomness.

Why it is private: everything that touches a record goes through `UserDPOptimizer`; what is released is the adapter
after T noised steps minus the adapter before, scaled to the card's largest norm (post-processing, so that an honest
tenant is never dropped). The optimiser starts afresh each time, so nothing computed from data without noise, and no
state of an earlier round, can reach a release. No loss is kept, logged or returned.

Records of a group of users are put into physical chunks by padded length, so that one long history costs its own
padding and not everyone's; a user's records may lie in several chunks and are clipped together all the same. A chunk's
length and number of records are of those that the model was tried with (`fedprofile.common.modeling.invariance`): in
all of them a record's gradient has the same bits, so that a user's mean is a function of that user's records alone.
They are added up in an order of their own, by padded length and place.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample.utils import prepare_module
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fedprofile.client.clipping import UserDPOptimizer
from fedprofile.client.noise import check_grid
from fedprofile.client.randomness import Randomness, SecureRandomness
from fedprofile.client.sampling import choose_records, sample_users, take_records
from fedprofile.client.segments import SegmentPlan
from fedprofile.client.selftest import check_export, check_training
from fedprofile.common.adapters import scale_to_norm
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.adversarial import moved, without
from fedprofile.common.modeling.batches import equal_chunks, padded_lengths
from fedprofile.common.modeling.head import summed_loss
from fedprofile.common.modeling.invariance import Pass
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import Prefixes, ProfileModel
from fedprofile.common.schedule import CONSTANT, Schedule

GROUP_USERS = 64
"""How many users' gradients are held at once."""


@dataclass(frozen=True)
class Chunk:
    """One forward pass.

    Args:
        places: Of its records.
        users: Place in the group of each record's user.
    """

    places: NDArray[np.int64]
    users: NDArray[np.int64]


def user_groups(
    owner: NDArray[np.int64], places: NDArray[np.int64], lengths: NDArray[np.int64], tokens_at_once: int
) -> Iterator[tuple[list[int], list[Chunk]]]:
    """Cut a step's records into groups of whole users, and each group into chunks of one padded length.

    Args:
        owner: User of each record, ascending.
        places: The records.
        lengths: Padded length of each.
        tokens_at_once: See `equal_chunks`.

    Yields:
        For each group the number of records of each of its users, and its chunks.
    """
    users, inverse, counts = np.unique(owner, return_inverse=True, return_counts=True)
    for first in range(0, len(users), GROUP_USERS):
        inside = np.flatnonzero((inverse >= first) & (inverse < first + GROUP_USERS))
        parts = (inside[chunk] for chunk in equal_chunks(lengths[inside], tokens_at_once))
        chunks = [Chunk(places[part], inverse[part] - first) for part in parts]
        yield [int(count) for count in counts[first : first + GROUP_USERS]], chunks


@dataclass(frozen=True)
class TrainingSettings:
    """How a tenant trains, and how privately.

    Args:
        sample_rate: q.
        noise_multiplier: sigma.
        clip_norm: C.
        records_per_user: m.
        declared_users: What the tenant typed; never a count.
        optimizer: "adam", "adamw" or "sgd".
        learning_rate: Of the adapter.
        head_learning_rate: Of what is named `head.*`.
        momentum: For "sgd".
        proximal: FedProx's mu.
        max_update_norm: The released update is scaled to it.
        group_shares: Of q, at which the users of each group enter a step, by the group's index; of all, where there are
            none. They are public constants of at most 1. A user's group is that of the user's own first record, so
            that nobody's rate depends on anyone else, and each user's privacy loss is that of q times the own share:
            q covers everybody (Poisson sampling at a lower rate costs less).
        weight_decay: For "adamw". It depends on what is trained and on nothing else, as the noised gradients do.
        schedule: Of the learning rates.
        head_clip: The head is clipped to this part of C and the LoRA factors to the rest; None clips both together.
        views: Of each record; see `fedprofile.common.interactions.record_views`.
        adversarial: How far records are moved; see `fedprofile.common.modeling.adversarial`.
    """

    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    records_per_user: int
    declared_users: int
    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: float
    head_learning_rate: float
    momentum: float
    proximal: float
    max_update_norm: float
    group_shares: tuple[float, ...] = ()
    weight_decay: float = 0.0
    schedule: Schedule = CONSTANT
    head_clip: float | None = None
    views: int = 1
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 < share <= 1 for share in self.group_shares):
            raise ValueError("a group's share of the sampling rate must be above 0 and at most 1")

    @classmethod
    def of(cls, card: FederationCard, plan: SegmentPlan, declared_users: int) -> "TrainingSettings":
        """The settings of a run: the card says how, the segment how privately."""
        training = card.training
        return cls(
            sample_rate=plan.sample_rate,
            noise_multiplier=plan.noise_multiplier,
            clip_norm=plan.clip_norm,
            records_per_user=plan.records_per_user,
            declared_users=declared_users,
            optimizer=training.optimizer,
            learning_rate=training.learning_rate,
            head_learning_rate=training.head_learning_rate,
            momentum=training.momentum,
            proximal=training.proximal,
            max_update_norm=card.max_update_norm,
            weight_decay=training.weight_decay,
            schedule=Schedule(training.schedule, training.warmup, training.rounds),
            head_clip=training.head_clip if card.adapter.method == "lora" else None,
            views=training.views,
            adversarial=training.adversarial,
        )

    @property
    def denominator(self) -> float:
        """What a step's noised sum is divided by: the number of users expected in it, as far as it is public."""
        return self.sample_rate * self.declared_users

    def rates(self, records: EncodedRecords) -> float | NDArray[np.float64]:
        """At which rate each of the users enters a step; see `group_shares`.

        Args:
            records: Of the training users.

        Returns:
            One for all, or [users].
        """
        if not self.group_shares:
            return self.sample_rate
        rates = np.full(len(records.users), self.sample_rate)
        users, first = np.unique(records.user, return_index=True)
        rates[users] *= np.asarray(self.group_shares)[records.groups[first]]
        return rates

    def plain(self, users: int) -> "TrainingSettings":
        """For the self-test: every user in the sample, next to no noise, no clipping, and SGD at learning rate 1."""
        return replace(
            self,
            sample_rate=1.0,
            declared_users=users,
            noise_multiplier=1e-14,
            clip_norm=1e4,
            optimizer="sgd",
            learning_rate=1.0,
            head_learning_rate=1.0,
            momentum=0.0,
            proximal=0.0,
            max_update_norm=float("inf"),
            group_shares=(),
            weight_decay=0.0,
            schedule=CONSTANT,
            head_clip=None,
            views=1,
            adversarial=0.0,
        )

    def inner_optimizer(self, adapter: Sequence[torch.Tensor], head: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
        """The optimiser below the noise, with a learning rate for each of the two groups.

        Args:
            adapter: LoRA factors; none where the head alone is trained.
            head: Weight and bias.

        Returns:
            A fresh one, over all of them.
        """
        groups = [
            {"params": list(adapter), "lr": self.learning_rate},
            {"params": list(head), "lr": self.head_learning_rate},
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adam":
            return torch.optim.Adam(groups)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)

    def scheduled(self, optimizer: torch.optim.Optimizer, round_number: int, steps: int) -> LambdaLR:
        """Puts the learning rates of a round's first step into an optimiser; its own `step` goes to the next.

        Args:
            optimizer: From `inner_optimizer`.
            round_number: As the server says.
            steps: Of the round.
        """
        return LambdaLR(optimizer, lambda step: self.schedule.factor(round_number, step, steps))

    @property
    def clip_shares(self) -> tuple[float, float] | None:
        """Parts of C to which LoRA factors and head are clipped; their squares add up to 1. None: both together."""
        return None if self.head_clip is None else (math.sqrt(1 - self.head_clip**2), self.head_clip)

    def bounded(self, moved: dict[str, NDArray[np.float32]]) -> Arrays:
        """An update as it is released: of at most `max_update_norm`; zeros where it is not finite."""
        if not all(bool(np.isfinite(value).all()) for value in moved.values()):
            return {name: np.zeros_like(value) for name, value in moved.items()}
        return scale_to_norm(dict(moved), self.max_update_norm)


class PrivateTrainer:
    """Answers `train`.

    Args:
        model: Its trainables are what is released.
        cache: The frozen layers' activations; None runs the model whole.
        settings: How, and how privately.

    Raises:
        ConfigError: The accounting would not cover the rounding.
    """

    def __init__(self, *, model: ProfileModel, cache: Prefixes | None, settings: TrainingSettings) -> None:
        check_grid(settings.noise_multiplier, sum(parameter.numel() for parameter in model.trainables().values()))
        self._model = model
        self._cache = cache
        self._passes: tuple[Pass, ...] = ("whole",) if cache is None else ("frozen", "adapted")
        self._settings = settings
        self._tested = False

    def self_test(self) -> None:
        """To be called before the first reservation; done once.

        Raises:
            SelfTestError: See `check_training`, `check_export` and `ProfileModel.tokens_at_once`.
        """
        if self._tested:
            return
        for kind in self._passes:
            self._model.tokens_at_once(kind)
        check_training(self._model, self._plain_step)
        check_export(self._model)
        self._tested = True

    def _plain_step(self, arrays: Arrays, records: EncodedRecords) -> Arrays:
        """See `fedprofile.client.selftest.Step`; on the self-test's synthetic records, which are in no sample."""
        settings = self._settings.plain(len(records.users))
        cache = None if self._cache is None else PrefixCache(self._model)
        plain = PrivateTrainer(model=self._model, cache=cache, settings=settings)
        return plain.train(arrays, records, steps=1, randomness=SecureRandomness())

    def train(
        self,
        arrays: Arrays,
        records: EncodedRecords,
        *,
        steps: int,
        randomness: Randomness,
        round_number: int = 1,
    ) -> Arrays:
        """One release.

        Args:
            arrays: The global adapter, by wire name.
            records: Of the training users.
            steps: T.
            randomness: Made for this reservation alone.
            round_number: As the request says; the schedule of the learning rates depends on it.

        Returns:
            New minus old adapter, float32, of at most `max_update_norm`; zeros where it is not finite.
        """
        tokens_at_once = self._model.tokens_at_once(self._passes[-1])
        self._model.set_arrays(arrays)
        trainables = self._model.trainables()
        start = {name: parameter.detach().clone() for name, parameter in trainables.items()}
        head = [parameter for name, parameter in trainables.items() if name.startswith("head.")]
        rest = [parameter for name, parameter in trainables.items() if not name.startswith("head.")]
        inner = self._settings.inner_optimizer(rest, head)
        optimizer = UserDPOptimizer(
            inner,
            noise_multiplier=self._settings.noise_multiplier,
            clip_norm=self._settings.clip_norm,
            denominator=self._settings.denominator,
            randomness=randomness,
            clip_shares=self._settings.clip_shares,
        )
        schedule = self._settings.scheduled(inner, round_number, steps)
        if self._settings.proximal:
            optimizer.attach_step_hook(lambda _: self._pull_back(trainables, start))
        hooks = prepare_module(self._model, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
        try:
            with warnings.catch_warnings():
                # The lowest adapter's input is cached, so it has no gradient; its weights have one all the same.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                for _ in range(steps):
                    self._step(optimizer, records, tokens_at_once, randomness, hooks)
                    schedule.step()
        finally:
            optimizer.zero_grad()
            hooks.cleanup()
        moved = {name: (parameter.detach() - start[name]).cpu().numpy() for name, parameter in trainables.items()}
        return self._settings.bounded(moved)

    def _step(
        self,
        optimizer: UserDPOptimizer,
        records: EncodedRecords,
        tokens_at_once: int,
        randomness: Randomness,
        hooks: Any,
    ) -> None:
        sampled = sample_users(len(records.users), self._settings.rates(records), randomness)
        rows = self._model.card.task.rows_per_record
        places = choose_records(records.user, sampled, self._settings.records_per_user, randomness, rows)
        taken = take_records(records, places).with_views(self._settings.views)
        lengths = padded_lengths(taken.tokens, self._model.card.history.max_tokens)
        optimizer.zero_grad()
        for counts, chunks in user_groups(taken.user, np.arange(len(taken)), lengths, tokens_at_once):
            optimizer.open_users(counts)
            for chunk in chunks:
                self._backward(taken, chunk.places, hooks)
                optimizer.accumulate(torch.from_numpy(chunk.users))
            optimizer.close_users()
        optimizer.step()

    def _backward(self, records: EncodedRecords, places: NDArray[np.int64], hooks: Any) -> None:
        model, part = self._model, self._settings.adversarial
        tokens, features = [records.tokens[place] for place in places], records.features[places]
        labels = torch.from_numpy(records.labels[places])
        batch = model.batch(tokens)
        prefix = model.entry(batch, tokens, self._cache) if part or self._cache is not None else None
        if prefix is not None and part:
            with without(hooks):
                prefix = moved(model, batch, features, prefix, labels, part)
        summed_loss(model.logits(batch, features, prefix), labels, model.card.task).backward()

    def _pull_back(self, trainables: dict[str, nn.Parameter], start: dict[str, torch.Tensor]) -> None:
        """FedProx's term, on what is noised already."""
        for name, parameter in trainables.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start[name], alpha=self._settings.proximal)
