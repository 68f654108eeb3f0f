"""Which events drove a prediction: what the model says with an event in the history, and without it.

The features are the user's events as the model would see them, and one more: what the record itself says (its own text
and columns). An event is taken out of the history before the text is made, so that what is compared are two histories
and never a text with a hole. The record's part is taken out by leaving all its values unknown.

    ablation    the score with everything minus the score without this one part (captum's FeatureAblation)
    shapley     a part's mean effect over random orders in which parts are added (captum's ShapleyValueSampling); the
                effects add up to the score minus the score of a history with nothing in it

Either says how the MODEL reacts. Neither says what made a person do anything, and an event that shares its meaning
with another one may have no effect by ablation though both are used (Kumar et al. 2020,
https://arxiv.org/abs/2002.11097). All of it is computed and stays at the tenant.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fedprofile.client.profiler import Profiler
from fedprofile.common.errors import ConfigError, printable
from fedprofile.common.interactions import Example, render
from fedprofile.common.tasks import BinaryTask, RegressionTask

Method = Literal["ablation", "shapley"]
METHODS: tuple[Method, ...] = get_args(Method)

SAMPLES = 25
"""Random orders of the parts, of `shapley`."""
AT_ONCE = 64
"""Histories in one call of the model."""
RECORD = "the record itself"
SAYS = "Effects on this model's score, not causes of what a person did or will do."


@dataclass(frozen=True)
class Part:
    """One part of what the model saw.

    Args:
        text: The event as text, or the record's own; personal data.
        effect: On the score, in its unit.
        is_event: False for the record itself.
    """

    text: str = field(repr=False)
    effect: float
    is_event: bool = True


@dataclass(frozen=True)
class Explanation:
    """Of one prediction.

    Args:
        user: Whose.
        output: What the score is of.
        score: With everything.
        base: With nothing.
        parts: Events, oldest first, and the record itself last.
        method: See the module's docstring.
        round: After which round the adapter was.
    """

    user: str
    output: str
    score: float
    base: float
    parts: tuple[Part, ...]
    method: Method
    round: int

    def strongest(self, count: int) -> tuple[Part, ...]:
        """The parts with the largest effects either way, the largest first; those without an effect never."""
        moving = [part for part in self.parts if part.effect != 0]
        return tuple(sorted(moving, key=lambda part: -abs(part.effect))[:count])

    def as_dict(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "user": self.user,
            "output": self.output,
            "score": self.score,
            "score_of_nothing": self.base,
            "method": self.method,
            "round": self.round,
            "parts": [
                {"text": part.text, "effect": part.effect, "kind": "event" if part.is_event else "record"}
                for part in self.parts
            ],
            "note": SAYS,
        }

    def as_text(self) -> str:
        """For a person."""
        title = f"{printable(self.user)}: {printable(self.output)} {self.score:.3f}"
        lines = [f"{title} (with nothing known: {self.base:.3f}); {self.method}, adapter after round {self.round}"]
        lines += [f"  {part.effect:+.3f}  {printable(part.text)}" for part in self.parts]
        return "\n".join([*lines, f"  {SAYS}"])


def explain(
    profiler: Profiler,
    example: Example,
    *,
    method: Method = "ablation",
    samples: int = SAMPLES,
    output: int | None = None,
) -> Explanation:
    """Explain one prediction.

    Args:
        profiler: With the adapter in use.
        example: What is predicted for; its label is not looked at.
        method: See the module's docstring.
        samples: Of `shapley`.
        output: Which of the task's outputs; None is a binary task's second label, and otherwise the one that scores
            highest.

    Returns:
        The explanation; the same each time that it is asked for.

    Raises:
        ConfigError: captum is not installed.
    """
    try:
        from captum.attr import FeatureAblation, ShapleyValueSampling
    except ImportError as error:
        raise ConfigError("explanations need captum: pip install 'fedprofile[explain]'.") from error
    card = profiler.card
    kept = example.events[max(0, len(example.events) - card.history.max_events) :] if card.history.event else ()
    example = replace(example, events=kept)
    place = _output(profiler, example) if output is None else output
    whole, nothing = profiler.scores_of([example, _without(example, np.zeros(len(kept) + 1, np.bool_))], place)

    def forward(present: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(profiler.scores_of([_without(example, row) for row in present.numpy() > 0], place))

    everything = torch.ones(1, len(kept) + 1)
    if method == "ablation":
        found = FeatureAblation(forward).attribute(everything, perturbations_per_eval=AT_ONCE)
    else:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            found = ShapleyValueSampling(forward).attribute(
                everything, n_samples=samples, perturbations_per_eval=AT_ONCE
            )
    unit = card.task.width if isinstance(card.task, RegressionTask) else 1.0
    start = card.task.low if isinstance(card.task, RegressionTask) else 0.0
    effects = (unit * found[0]).tolist()
    texts = [render(card.history.event, event) for event in kept]
    parts = [Part(text, effect) for text, effect in zip(texts, effects[:-1], strict=True)]
    parts.append(Part(_own_text(example, profiler), effects[-1], is_event=False))
    score, base = (start + unit * float(value) for value in (whole, nothing))
    name = card.task.outputs[place]
    return Explanation(example.user, name, score, base, tuple(parts), method, profiler.round)


def because(explanation: Explanation, count: int = 3) -> str:
    """The strongest parts in one cell of text.

    Args:
        explanation: Of one prediction.
        count: How many parts at most.

    Returns:
        Such as "viewed shoes (+0.210); the record itself (-0.043)".
    """
    return "; ".join(
        f"{part.text if part.is_event else RECORD} ({part.effect:+.3f})" for part in explanation.strongest(count)
    )


def _output(profiler: Profiler, example: Example) -> int:
    return 1 if isinstance(profiler.card.task, BinaryTask) else int(profiler.scores([example]).argmax())


def _without(example: Example, present: NDArray[np.bool_]) -> Example:
    """The example with some of its parts only."""
    events = tuple(event for event, kept in zip(example.events, present[:-1], strict=True) if kept)
    return replace(example, events=events, row=example.row if present[-1] else dict.fromkeys(example.row))


def _own_text(example: Example, profiler: Profiler) -> str:
    """What the record itself says, without a ranking's candidate."""
    names: Sequence[str] = sorted(profiler.card.record_columns)
    values = [f"{name} {example.row[name]}" for name in names if isinstance(example.row.get(name), str | float)]
    return ", ".join(values) or RECORD
