"""Who enters a step, with which records, and who is only ever evaluated.

Why it is private: every training user enters a step independently with probability q (Poisson sampling, which is
what the accountant assumes); q never depends on the data. The choice of a user's records looks at that user alone.
Training and evaluation users are disjoint by a keyed hash of the user's id, so that one user's removal changes
releases of one of the two kinds and the larger of their costs is the user's.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.randomness import Randomness
from fedprofile.common.interactions import EncodedRecords


@dataclass(frozen=True)
class TenantRecords:
    """What a tenant's source holds at one moment, split by user.

    Args:
        training: Records of users who only train.
        evaluation: Records of users who are only evaluated.
    """

    training: EncodedRecords = field(repr=False)
    evaluation: EncodedRecords = field(repr=False)


def take_records(records: EncodedRecords, places: NDArray[np.int64]) -> EncodedRecords:
    """Some of the records, over the same users.

    Args:
        records: All of them.
        places: Which, in the order wanted.

    Returns:
        The chosen records; `users` and their numbers stay.
    """
    return replace(
        records,
        user=records.user[places],
        tokens=[records.tokens[place] for place in places],
        features=records.features[places],
        labels=records.labels[places],
        groups=records.groups[places],
    )


def is_evaluation_user(user: str, key: bytes, share: float) -> bool:
    """Whether a user is only ever evaluated; independent of every other user.

    Args:
        user: The user's id, any string; stable for life, since another id is another user.
        key: Of the population's ledger.
        share: Fraction of users who are only evaluated.

    Returns:
        The same answer for the same id, key and share.
    """
    # Half a surrogate pair is no reason to fail: the failure would be about that one user.
    name = user.encode("utf-8", "surrogatepass")
    digest = hmac.digest(key, b"evaluation\0" + name, hashlib.sha256)
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_records(records: EncodedRecords, evaluation_user: Callable[[str], bool]) -> TenantRecords:
    """Split records into the two disjoint sets of users.

    Args:
        records: Of the whole source; those without a label are left out.
        evaluation_user: `Ledger.evaluation_user`.

    Returns:
        Both sets.
    """
    labelled = take_records(records, np.flatnonzero(records.labelled))
    chosen = np.array([evaluation_user(user) for user in records.users], dtype=np.bool_)
    return TenantRecords(training=labelled.of_users(~chosen), evaluation=labelled.of_users(chosen))


def sample_users(users: int, sample_rate: float | NDArray[np.float64], randomness: Randomness) -> NDArray[np.int64]:
    """Poisson sampling of users.

    Args:
        users: How many there are.
        sample_rate: Probability with which each one enters, independently: one for all, or [users].
        randomness: The step's source.

    Returns:
        The numbers of those who entered, ascending; possibly none.
    """
    return np.flatnonzero(randomness.uniform(users) < sample_rate).astype(np.int64)


def choose_records(
    user: NDArray[np.int64], sampled: NDArray[np.int64], limit: int, randomness: Randomness, rows: int = 1
) -> NDArray[np.int64]:
    """At most `limit` records of each sampled user, uniformly without replacement.

    Args:
        user: The user of every row.
        sampled: The users in question.
        limit: m, records a user at most.
        randomness: The step's source.
        rows: Of each record, which stand together; see `TaskSpec.rows_per_record`. A record is chosen whole.

    Returns:
        Places of the chosen records' rows, all of one user's together, users ascending.
    """
    if rows > 1:
        records = choose_records(user[::rows], sampled, limit, randomness)
        return (records[:, None] * rows + np.arange(rows)).ravel()
    places = np.flatnonzero(np.isin(user, sampled))
    owner = user[places]
    order = np.lexsort((randomness.uniform(len(places)), owner))
    places, owner = places[order], owner[order]
    _, first, counts = np.unique(owner, return_index=True, return_counts=True)
    rank = np.arange(len(owner)) - np.repeat(first, counts)
    return places[rank < limit].astype(np.int64)
