"""User-level clipping and noise on Opacus's per-sample gradients.

Why it is private: adding or removing one user changes the float64 sum of a step by at most C in L2, because the mean
over ALL of the user's sampled records, over however many physical chunks, is clipped once (clipping each chunk lets
one user count 2 C). Gaussian noise of standard deviation sigma * C goes on that sum, also when nobody was sampled.
Everything after it, the division by the float q * declared_users included, is post-processing.

Head and LoRA factors may be clipped apart, to C_head and C_lora with C_head^2 + C_lora^2 = C^2. Then a user's clipped
mean has a squared norm of at most C_head^2 + C_lora^2, so it is at most C as a whole, and the sum with one noise is ONE
release of sensitivity C, no more and no less (McMahan et al. 2018, https://arxiv.org/abs/1710.06963, section 3).

A user's mean has the same bits whoever else is sampled: per-sample gradients have (see
`fedprofile.common.modeling.invariance`), and they are added record by record, in the user's own order. From there on
only float64 roundings, of norms and of the sum, depend on the group; nothing amplifies them, and `check_grid` leaves
room for them.

Guarantees, each with a test:
    - equals a loop over users, whatever the chunks;
    - a user whose mean is not finite contributes zero and still counts as sampled; 1e30 is clipped like any other;
    - an empty sample releases noise;
    - with clip groups each part is at most its own share of C, and the whole at most C;
    - sum and noise lie on the grid of `fedprofile.client.noise`;
    - a gradient is used once: a second `step` without new users raises.
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from fedprofile.client.noise import check_grid, noised_sum
from fedprofile.client.randomness import Randomness
from fedprofile.common.errors import ConfigError


class UserDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's `DPOptimizer` whose unit is the user.

    A step goes: for each group of users `open_users`, then for each physical chunk of their records a backward pass of
    the SUMMED loss and `accumulate`, then `close_users`; at the end one `step`.

    Args:
        optimizer: The inner optimiser, over the trainables.
        noise_multiplier: sigma.
        clip_norm: C.
        denominator: The float q * declared_users.
        randomness: Of this reservation.
        clip_shares: Of C, for each of the inner optimiser's parameter groups, which are then clipped apart; None clips
            all of them together.

    Raises:
        ConfigError: The denominator is not positive, the accounting would not cover the rounding, or there is not one
            positive share for each group, their squares adding up to 1.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip_norm: float,
        denominator: float,
        randomness: Randomness,
        clip_shares: Sequence[float] | None = None,
    ) -> None:
        if not denominator > 0:
            raise ConfigError(f"denominator={denominator} must be positive; it is sample_rate * declared_users.")
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        # Opacus hangs per-sample gradients on the parameters, which no type says.
        self._trainables: list[Any] = self.params
        self._sizes = [parameter.numel() for parameter in self._trainables]
        check_grid(noise_multiplier, sum(self._sizes))
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if clip_shares is None:
            sizes, clip_shares = [sum(sizes)], (1.0,)
        if len(clip_shares) != len(sizes) or min(clip_shares) <= 0 or abs(math.hypot(*clip_shares) - 1) > 1e-12:
            raise ConfigError(
                f"clip_shares={list(clip_shares)} must be one positive part of the clip norm for each of the "
                f"{len(sizes)} parameter groups, and their squares must add up to 1: the noise covers no more."
            )
        self._clip_groups = [(size, share * clip_norm) for size, share in zip(sizes, clip_shares, strict=True)]
        self._denominator = denominator
        self._randomness = randomness
        self._counts: torch.Tensor | None = None
        self._sums: list[torch.Tensor] = []
        self._total = self._zero_total()

    def open_users(self, counts: Sequence[int]) -> None:
        """Begin a group of users.

        Args:
            counts: How many sampled records each of them has in this step; all of them come before `close_users`.
        """
        if self._counts is not None:
            raise RuntimeError("close_users before the next group of users")
        device = self._trainables[0].device
        self._counts = torch.as_tensor(list(counts), dtype=torch.float32, device=device)
        self._sums = [torch.zeros(len(self._counts), size, device=device) for size in self._sizes]

    def accumulate(self, users: torch.Tensor) -> None:
        """Take the per-sample gradients of one physical chunk.

        Args:
            users: Place in the group of each of the chunk's records, int64.
        """
        if self._counts is None:
            raise RuntimeError("open_users before accumulate")
        for parameter, sums in zip(self._trainables, self._sums, strict=True):
            _check_processed_flag(parameter.grad_sample)
            gradients = self._get_flat_grad_sample(parameter)
            # Adding rows one after the other, never a matrix product over users: that would sum in an order that
            # depends on everyone, and 0 * inf would make every user's sum nan.
            sums.index_add_(0, users, gradients.reshape(len(users), -1).to(torch.float32))
            parameter.grad_sample = None
            parameter.grad = None

    def close_users(self) -> None:
        """Clip each of the group's users once and add them up in float64."""
        self.clip_and_accumulate()

    def clip_and_accumulate(self) -> None:
        """As Opacus's, over the open group of users instead of one batch of records."""
        if self._counts is None:
            return
        counts, sums = self._counts, self._sums
        self._counts, self._sums = None, []
        means = [part.div_(counts[:, None]).double() for part in sums]
        squares = iter([part.square().sum(dim=1) for part in means])
        norms = [torch.stack(list(islice(squares, size))).sum(dim=0).sqrt() for size, _ in self._clip_groups]
        finite = torch.isfinite(torch.stack(norms)).all(dim=0)
        factors: list[torch.Tensor] = []
        for norm, (size, bound) in zip(norms, self._clip_groups, strict=True):
            factors += [torch.where(finite, bound / norm.clamp(min=bound), 0.0)] * size
        if not bool(finite.all()):
            for part in means:
                part[~finite] = 0.0
        self._total += torch.cat([factor @ part for factor, part in zip(factors, means, strict=True)]).cpu()

    def add_noise(self) -> None:
        """Secure Gaussian noise on the sum, both on one grid; the result goes to `p.grad` as float32."""
        _check_processed_flag(self._total)
        deviation = self.noise_multiplier * self.max_grad_norm
        noised = torch.from_numpy(noised_sum(self._total.numpy(), deviation, self._randomness))
        _mark_as_processed(self._total)
        parts = torch.split(noised / self._denominator, self._sizes)
        for parameter, part in zip(self._trainables, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter)

    def pre_step(self, closure: object = None) -> bool:
        """Noise, then the step's hook; there are no skipped steps here."""
        self.close_users()
        self.add_noise()
        if self.step_hook:
            self.step_hook(self)
        return True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Begin a step: forget sums, per-sample gradients and gradients."""
        self._counts, self._sums = None, []
        self._total = self._zero_total()
        for parameter in self._trainables:
            parameter.grad_sample = None
            parameter.grad = None

    def _zero_total(self) -> torch.Tensor:
        return torch.zeros(sum(self._sizes), dtype=torch.float64)
