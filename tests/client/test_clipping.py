"""User-level clipping against a loop over users, and every way in which one user could count more than C."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from opacus.grad_sample.utils import prepare_module
from torch import nn

from fedprofile.client.clipping import UserDPOptimizer
from fedprofile.client.noise import GRID
from fedprofile.client.randomness import SecureRandomness
from fedprofile.common.errors import ConfigError


class Silent:
    """No noise, so that sums can be compared."""

    def uniform(self, count: int) -> np.ndarray:
        return np.zeros(count)

    def gaussian(self, count: int) -> np.ndarray:
        return np.zeros(count)


def _network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def _optimizer(network: nn.Module, clip: float, randomness: object = None, denominator: float = 1.0) -> UserDPOptimizer:
    return UserDPOptimizer(
        torch.optim.SGD(network.parameters(), lr=1.0),
        noise_multiplier=1.0,
        clip_norm=clip,
        denominator=denominator,
        randomness=randomness or Silent(),  # type: ignore[arg-type]
    )


def _sum_by_chunks(
    network: nn.Module,
    rows: torch.Tensor,
    labels: torch.Tensor,
    users: list[int],
    chunks: Sequence[Sequence[int]],
    clip: float,
) -> torch.Tensor:
    """The clipped sum as the optimiser forms it, all users in one group."""
    optimizer = _optimizer(network, clip)
    hooks = prepare_module(network, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    optimizer.zero_grad()
    optimizer.open_users([users.count(user) for user in sorted(set(users))])
    for chunk in chunks:
        places = torch.tensor(chunk)
        output = network(rows[places].requires_grad_())
        nn.functional.cross_entropy(output, labels[places], reduction="sum").backward()
        optimizer.accumulate(torch.tensor([users[place] for place in chunk]))
    optimizer.pre_step()
    hooks.cleanup()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


def _sum_by_loop(
    network: nn.Module, rows: torch.Tensor, labels: torch.Tensor, users: list[int], clip: float
) -> torch.Tensor:
    """The independent reference: one user at a time, plain autograd."""
    total = torch.zeros(sum(parameter.numel() for parameter in network.parameters()), dtype=torch.float64)
    for user in sorted(set(users)):
        mine = torch.tensor([place for place, owner in enumerate(users) if owner == user])
        network.zero_grad()
        nn.functional.cross_entropy(network(rows[mine]), labels[mine], reduction="mean").backward()
        mean = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).double()
        total += mean * min(1.0, clip / float(mean.norm()))
    network.zero_grad()
    return total


def _data(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 6, generator=generator) * 3, torch.randint(0, 3, (n,), generator=generator)


@pytest.mark.parametrize("clip", [0.1, 1.0, 100.0])
@pytest.mark.parametrize(
    "chunks",
    [
        [[0, 1, 2, 3, 4, 5, 6, 7, 8]],
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[0, 3], [6, 1, 8, 2], [4, 5, 7]],  # user 0 (records 0, 1, 3, 4) lies in all three chunks
    ],
)
def test_equals_a_loop_over_users_whatever_the_chunks(clip: float, chunks: list[list[int]]) -> None:
    rows, labels = _data(9)
    users = [0, 0, 1, 0, 0, 2, 1, 3, 2]
    got = _sum_by_chunks(_network(), rows, labels, users, chunks, clip)
    expected = _sum_by_loop(_network(), rows, labels, users, clip)
    assert torch.allclose(got.double(), expected, rtol=0, atol=2e-6 * max(1.0, float(expected.norm())))


def test_a_user_over_three_chunks_counts_c_and_not_more() -> None:
    rows, labels = _data(1)
    rows, labels = rows.repeat(6, 1) * 10, labels.repeat(6)
    got = _sum_by_chunks(_network(), rows, labels, [0] * 6, [[0, 1], [2, 3], [4, 5]], clip=0.01)
    assert abs(float(got.norm()) - 0.01) < 1e-8


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_user_that_is_not_finite_adds_nothing_and_hurts_nobody(bad: float) -> None:
    rows, labels = _data(6)
    users = [0, 0, 1, 1, 2, 2]
    poisoned = rows.clone()
    poisoned[2, 0] = bad
    got = _sum_by_chunks(_network(), poisoned, labels, users, [[0, 2, 4], [1, 3, 5]], clip=1.0)
    keep = [0, 1, 4, 5]
    expected = _sum_by_loop(_network(), rows[keep], labels[keep], [users[place] for place in keep], clip=1.0)
    assert torch.allclose(got.double(), expected, atol=2e-6)


def _with_gradients(gradients: torch.Tensor, users: list[int], **options: object) -> torch.Tensor:
    parameter = nn.Parameter(torch.zeros(gradients.shape[1]))
    layer = nn.ParameterList([parameter])
    optimizer = _optimizer(layer, **options)  # type: ignore[arg-type]
    optimizer.zero_grad()
    if users:
        optimizer.open_users([users.count(user) for user in sorted(set(users))])
        parameter.grad_sample = gradients  # type: ignore[attr-defined]
        optimizer.accumulate(torch.tensor(users))
    optimizer.step()
    return -parameter.detach()


def test_1e30_is_clipped_like_any_other() -> None:
    gradients = torch.tensor([[1e30, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert _with_gradients(gradients, [0, 1], clip=1.0).tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


def test_a_mean_that_overflows_adds_nothing() -> None:
    gradients = torch.tensor([[3e38, 0.0], [3e38, 0.0], [0.0, 0.25]])
    assert _with_gradients(gradients, [0, 0, 1], clip=1.0).tolist() == pytest.approx([0.0, 0.25], abs=1e-8)


def test_an_empty_sample_still_releases_noise() -> None:
    released = _with_gradients(torch.zeros(0, 5000), [], clip=0.5, randomness=SecureRandomness())
    assert abs(float(released.std()) - 0.5) < 0.05


def test_the_denominator_is_a_float() -> None:
    """N = 49 users at q = 1/49 * 1.4: Opacus's int(N * q) would divide by 1."""
    gradients = torch.tensor([[0.5]])
    got = _with_gradients(gradients, [0], clip=1.0, denominator=1.4)
    assert got.tolist() == pytest.approx([0.5 / 1.4], rel=1e-6)


def test_a_denominator_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="denominator"):
        _optimizer(_network(), 1.0, denominator=0.0)


def test_the_noised_sum_lies_on_the_grid() -> None:
    parameter = nn.Parameter(torch.zeros(200, dtype=torch.float64))
    layer = nn.ParameterList([parameter])
    optimizer = _optimizer(layer, 0.5, SecureRandomness())
    optimizer.zero_grad()
    optimizer.open_users([1])
    parameter.grad_sample = torch.randn(1, 200)  # type: ignore[attr-defined]
    optimizer.accumulate(torch.tensor([0]))
    optimizer.step()
    whole = parameter.detach().numpy() / (0.5 * GRID)
    assert np.array_equal(whole, np.rint(whole)) and np.any(whole)


def test_two_steps_never_use_one_gradient_twice() -> None:
    layer = nn.ParameterList([nn.Parameter(torch.zeros(3))])
    optimizer = _optimizer(layer, 1.0)
    optimizer.zero_grad()
    optimizer.step()
    with pytest.raises(ValueError, match="cleared"):
        optimizer.step()


def test_groups_must_be_closed_in_order() -> None:
    optimizer = _optimizer(_network(), 1.0)
    with pytest.raises(RuntimeError):
        optimizer.accumulate(torch.tensor([0]))
    optimizer.open_users([1])
    with pytest.raises(RuntimeError):
        optimizer.open_users([1])


def _grouped(network: nn.Sequential, clip: float, shares: Sequence[float] | None) -> UserDPOptimizer:
    """One parameter group for each of the two layers."""
    groups = [{"params": list(network[place].parameters())} for place in (0, 2)]
    return UserDPOptimizer(
        torch.optim.SGD(groups, lr=1.0),
        noise_multiplier=1.0,
        clip_norm=clip,
        denominator=1.0,
        randomness=Silent(),
        clip_shares=shares,
    )


def _grouped_sum(network: nn.Sequential, users: Sequence[int], shares: Sequence[float] | None) -> list[torch.Tensor]:
    """The clipped sum of users of one record each, for each of the two layers; clip norm 0.5."""
    rows, labels = _data(12)
    optimizer = _grouped(network, 0.5, shares)
    hooks = prepare_module(network, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    optimizer.zero_grad()
    optimizer.open_users([1] * len(users))
    output = network((rows[list(users)] * 10).requires_grad_())
    nn.functional.cross_entropy(output, labels[list(users)], reduction="sum").backward()
    optimizer.accumulate(torch.arange(len(users)))
    optimizer.pre_step()
    hooks.cleanup()
    return [
        torch.cat([p.grad.flatten() for p in network[place].parameters() if p.grad is not None]).double()
        for place in (0, 2)
    ]


def test_clip_groups_are_one_release_of_the_whole_clip_norm() -> None:
    """Neighbouring data sets: each user moves each part by at most its share, and both together by at most C."""
    shares, network = (0.6, 0.8), _network()
    everyone = list(range(12))
    whole = _grouped_sum(network, everyone, shares)
    reached = []
    for user in everyone:
        without = _grouped_sum(network, [other for other in everyone if other != user], shares)
        parts = [float((one - other).norm()) for one, other in zip(whole, without, strict=True)]
        assert parts[0] <= 0.3 * (1 + 1e-5)
        assert parts[1] <= 0.4 * (1 + 1e-5)
        reached.append(float(np.linalg.norm(parts)))
    assert max(reached) == pytest.approx(0.5, rel=1e-5), "no user reaches the bound, so this proves nothing"
    assert max(reached) <= 0.5 * (1 + 1e-5)


def test_clip_groups_equal_a_loop_over_users_and_layers() -> None:
    rows, labels = _data(12)
    network = _network()
    expected = [torch.zeros(()), torch.zeros(())]
    for user in range(12):
        network.zero_grad()
        nn.functional.cross_entropy(network(rows[[user]] * 10), labels[[user]]).backward()
        for place, layer in enumerate((0, 2)):
            flat = torch.cat([p.grad.flatten() for p in network[layer].parameters() if p.grad is not None]).double()
            bound = 0.5 * (0.6, 0.8)[place]
            expected[place] = expected[place] + flat * min(1.0, bound / float(flat.norm()))
    network.zero_grad()
    for found, wanted in zip(_grouped_sum(network, range(12), (0.6, 0.8)), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_one_part_that_is_not_finite_leaves_out_the_whole_user() -> None:
    network = _network()
    optimizer = _grouped(network, 0.5, (0.6, 0.8))
    optimizer.zero_grad()
    optimizer.open_users([1, 1])
    for parameter in network.parameters():
        sample = torch.ones((2, *parameter.shape))
        if parameter is network[2].bias:
            sample[0] = torch.inf
        parameter.grad_sample = sample  # type: ignore[attr-defined]
    optimizer.accumulate(torch.arange(2))
    optimizer.pre_step()
    parts = [
        torch.cat([p.grad.flatten() for p in network[place].parameters() if p.grad is not None]) for place in (0, 2)
    ]
    assert [float(part.norm()) for part in parts] == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize("shares", [(0.6,), (0.6, 0.9), (0.8, 0.8), (-0.6, 0.8), (0.0, 1.0), (0.5, 0.5, 0.7)])
def test_clip_shares_that_the_noise_does_not_cover_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="clip_shares"):
        _grouped(_network(), 0.5, shares)
