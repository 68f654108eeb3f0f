"""Poisson sampling of users and the choice of a user's records."""

import numpy as np

from fedprofile.client.randomness import SecureRandomness
from fedprofile.client.sampling import choose_records, is_evaluation_user, sample_users, split_records
from fedprofile.common.interactions import EncodedRecords


def _records(user: list[int], labels: list[int] | None = None) -> EncodedRecords:
    n = len(user)
    return EncodedRecords(
        users=tuple(f"u{number}" for number in range(max(user, default=-1) + 1)),
        user=np.array(user, np.int64),
        tokens=[np.array([place], np.int32) for place in range(n)],
        features=np.zeros((n, 0), np.float32),
        labels=np.array(labels if labels is not None else [0] * n, np.int64),
        groups=np.zeros(n, np.int64),
    )


def test_each_user_enters_independently_at_the_rate() -> None:
    users, rate, steps = 50, 0.3, 4000
    source = SecureRandomness()
    entered = np.zeros((steps, users))
    for step in range(steps):
        entered[step, sample_users(users, rate, source)] = 1
    sd = np.sqrt(rate * (1 - rate) / steps)
    assert np.abs(entered.mean(axis=0) - rate).max() < 5 * sd
    # A fixed-size sample would have no spread at all; Poisson sampling has the binomial's.
    assert abs(entered.sum(axis=1).var() / (users * rate * (1 - rate)) - 1) < 0.15
    assert np.abs(np.corrcoef(entered.T) - np.eye(users)).max() < 6 / np.sqrt(steps)


def test_nobody_and_everybody() -> None:
    assert sample_users(0, 0.5, SecureRandomness()).tolist() == []
    assert sample_users(5, 1.0, SecureRandomness()).tolist() == [0, 1, 2, 3, 4]


def test_at_most_m_records_of_each_sampled_user_and_of_nobody_else() -> None:
    user = np.array([2, 0, 1, 0, 0, 2, 0, 3], np.int64)
    chosen = choose_records(user, np.array([0, 2]), 2, SecureRandomness())
    assert user[chosen].tolist() == [0, 0, 2, 2]
    assert len(set(chosen.tolist())) == 4


def test_a_users_records_are_chosen_uniformly_without_replacement() -> None:
    user = np.array([0] * 5 + [1], np.int64)
    source = SecureRandomness()
    counts = np.zeros(6)
    for _ in range(5000):
        counts[choose_records(user, np.array([0, 1]), 2, source)] += 1
    assert counts[5] == 5000
    assert np.abs(counts[:5] / 5000 - 0.4).max() < 5 * np.sqrt(0.24 / 5000)


def test_a_record_of_several_rows_is_chosen_whole_and_counts_once() -> None:
    user = np.repeat(np.array([1, 0, 0, 2, 0], np.int64), 3)
    source, seen = SecureRandomness(), set()
    for _ in range(200):
        chosen = choose_records(user, np.array([0, 2]), 2, source, rows=3)
        records = chosen.reshape(-1, 3)
        assert (records % 3 == [0, 1, 2]).all() and (records // 3 == records[:, :1] // 3).all()
        assert user[records[:, 0]].tolist() == [0, 0, 2] and len(set(chosen.tolist())) == 9
        seen |= set((records[:2, 0] // 3).tolist())
    assert seen == {1, 2, 4}


def test_an_empty_sample_has_no_records() -> None:
    assert choose_records(np.array([0, 1], np.int64), np.zeros(0, np.int64), 3, SecureRandomness()).tolist() == []


def test_the_split_is_by_user_and_leaves_unlabelled_records_out() -> None:
    records = _records([0, 1, 0, 2, 1], labels=[0, 1, -1, 1, 0])
    split = split_records(records, lambda user: user == "u1")
    assert split.evaluation.users == ("u1",) and split.evaluation.labels.tolist() == [1, 0]
    assert split.training.users == ("u0", "u2") and split.training.user.tolist() == [0, 1]
    assert [token.tolist() for token in split.training.tokens] == [[0], [3]]


def test_the_split_is_defined_for_every_id() -> None:
    """A failure would be about one user, and there is none."""
    for user in ("ann", "", "\ud800", "\x00", "Jos\u00e9"):
        assert is_evaluation_user(user, b"k" * 32, 1.0)
        assert not is_evaluation_user(user, b"k" * 32, 0.0)
    chosen = sum(is_evaluation_user(f"user-{number}", b"k" * 32, 0.2) for number in range(2000))
    assert abs(chosen / 2000 - 0.2) < 5 * np.sqrt(0.16 / 2000)
