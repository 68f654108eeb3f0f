"""Which records a number is about: everybody, each group, each intersection of two group columns, each tenant.

A split puts every record into exactly one slice. Slices with too few users to say anything, or to stay unrecognised,
are left out of everything: they have no numbers of their own and do not enter a gap or a spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedprofile.simulations.predictions import Records

SplitScope = Literal["overall", "group", "intersection", "tenant", "client"]
"""The results' scopes; "client" is each tenant's own groups, of which only the gaps are reported."""

JOINER = " & "


@dataclass(frozen=True)
class Limits:
    """Below these a number is suppressed.

    Args:
        min_cell: Distinct users of a slice.
        min_label: Of these, distinct users with a record of a label that a rate divides by; for rates among positives
            or negatives, and AUC, which needs both.
    """

    min_cell: int = 20
    min_label: int = 10


@dataclass(frozen=True, eq=False)
class Split:
    """Every record in one of K slices.

    Args:
        scope: What kind of slices.
        column: Group column(s); "" where there is none.
        names: Of the slices, [K].
        tenants: Whose slices they are, [K]; "" where they are nobody's own.
        codes: Slice of each record, int64 [n].
        users: Distinct users, int64 [K].
        label_users: Distinct users with a record of label 0 and of label 1, int64 [2, K]; for binary tasks.
    """

    scope: SplitScope
    column: str
    names: tuple[str, ...]
    tenants: tuple[str, ...]
    codes: NDArray[np.int64]
    users: NDArray[np.int64]
    label_users: NDArray[np.int64]

    def enough(self, needs: Sequence[int], limits: Limits) -> NDArray[np.bool_]:
        """Which slices are large enough.

        Args:
            needs: Labels that there must be enough of.
            limits: How many that is.

        Returns:
            [K].
        """
        found = self.users >= limits.min_cell
        for label in needs:
            found &= self.label_users[label] >= limits.min_label
        return found

    def users_in(self, chosen: NDArray[np.bool_], user: NDArray[np.int64]) -> int:
        """Distinct users in some of the slices together.

        Args:
            chosen: Which slices, [K].
            user: Of each record, [n].
        """
        return len(np.unique(user[chosen[self.codes]]))


def splits_of(records: Records) -> list[Split]:
    """All splits of some records, in the order of the results.

    Args:
        records: Of one cell.

    Returns:
        Overall, each group column, each pair of them, tenants, and each tenant's own groups by column.
    """
    everybody = np.zeros(len(records.user), dtype=np.int64)
    found = [_split(records, "overall", "", everybody, ("",), ("",))]
    coded = {column: np.unique(values, return_inverse=True) for column, values in records.groups.items()}
    for column, (names, codes) in coded.items():
        found.append(_split(records, "group", column, codes, tuple(map(str, names)), ("",) * len(names)))
    for first, second in combinations(coded, 2):
        (names, codes), (more_names, more_codes) = coded[first], coded[second]
        joined = tuple(f"{name}{JOINER}{more}" for name in names for more in more_names)
        crossed = codes * len(more_names) + more_codes
        found.append(_split(records, "intersection", f"{first}{JOINER}{second}", crossed, joined, ("",) * len(joined)))
    tenants, tenant_codes = np.unique(records.tenant, return_inverse=True)
    names_of_tenants = tuple(map(str, tenants))
    found.append(_split(records, "tenant", "", tenant_codes, names_of_tenants, names_of_tenants))
    if records.kind == "binary":
        for column, (names, codes) in coded.items():
            owners = tuple(tenant for tenant in names_of_tenants for _ in names)
            own = tuple(str(name) for _ in tenants for name in names)
            found.append(_split(records, "client", column, tenant_codes * len(names) + codes, own, owners))
    return found


def _split(
    records: Records,
    scope: SplitScope,
    column: str,
    codes: NDArray[np.int64],
    names: tuple[str, ...],
    tenants: tuple[str, ...],
) -> Split:
    label_users = [_distinct(codes, records.user, len(names), records.truth == label) for label in (0, 1)]
    return Split(
        scope,
        column,
        names,
        tenants,
        codes,
        _distinct(codes, records.user, len(names), np.ones(len(codes), dtype=np.bool_)),
        np.stack(label_users),
    )


def _distinct(
    codes: NDArray[np.int64], user: NDArray[np.int64], slices: int, chosen: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Distinct users of each slice among chosen records."""
    pairs = np.unique(np.stack([codes[chosen], user[chosen]]), axis=1)
    return np.bincount(pairs[0], minlength=slices).astype(np.int64)
