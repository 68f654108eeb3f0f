"""Counts of people that may be kept and shown: no small ones, and none from which a small one would follow.

A count under 20 is left out. Where it is the only one of its tenant that is, the tenant's smallest other count is left
out as well: the tenant's total is known from elsewhere, and what is missing would follow from it.
"""

from collections.abc import Mapping

SMALLEST_COUNT = 20
"""A count of fewer people is left out."""

Counts = dict[str, dict[str, int | None]]
"""Tenant -> part -> users; None where it is left out."""


def safe_counts(counts: Mapping[str, Mapping[str, int | None]]) -> Counts:
    """Counts that may be kept.

    Args:
        counts: Tenant -> part -> users; None where one is left out already.

    Returns:
        The same with None for a count that is small, and for one from which it would follow. A part that a tenant does
        not have counts as 0, which is small. Counts that came from here come out unchanged.
    """
    parts = dict.fromkeys(part for found in counts.values() for part in found)
    safe: Counts = {}
    for tenant, found in counts.items():
        shown = {part: safe_count(found.get(part)) for part in parts}
        known = [(count, part) for part, count in shown.items() if count is not None]
        if len(shown) - len(known) == 1 and known:
            shown[min(known)[1]] = None
        safe[tenant] = shown
    return safe


def safe_count(count: int | None) -> int | None:
    """A count that stands for itself, or None where it is small."""
    return None if count is None or count < SMALLEST_COUNT else count
