"""The learning rates over a whole run: a function of the step's place in it, which the card and the request tell.

It is public, and what it multiplies is noised already, so it costs no privacy. The round comes from the server, which
nobody trusts; whatever it says, a step's learning rates are at most the card's.
"""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """What the learning rates are multiplied by, step by step.

    Args:
        kind: How they fall after the warm-up, to 0 at the run's end: not at all, in a line, or as half a cosine.
        warmup: Part of the run's steps over which they rise to the card's, at least 0 and below 1.
        rounds: Of the run.
    """

    kind: Kind = "constant"
    warmup: float = 0.0
    rounds: int = 1

    def factor(self, round_number: int, step: int, steps: int) -> float:
        """Of one step.

        Args:
            round_number: From 1 on; one beyond the run counts as its last, one before it as its first.
            step: Within the round, from 0 on.
            steps: Of a round.

        Returns:
            At least 0 and at most 1.

        >>> schedule = Schedule("linear", warmup=0.2, rounds=5)
        >>> [round(schedule.factor(1 + step // 2, step % 2, 2), 3) for step in range(10)]
        [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
        """
        total = self.rounds * steps
        place = min(max((round_number - 1) * steps + step, 0), total - 1)
        rising = self.warmup * total
        if place < rising:
            return min(1.0, (place + 1) / rising)
        left = (total - place) / (total - rising)
        if self.kind == "linear":
            return left
        return (1 - math.cos(math.pi * left)) / 2 if self.kind == "cosine" else 1.0


CONSTANT = Schedule()
"""The card's learning rates throughout."""
