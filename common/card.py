"""The federation card: everything about a federation that is public, and the hash that is its identity.

A tenant agrees to exactly one card. Its hash is the SHA-256 of a canonical JSON form (sorted keys, no spaces,
UTF-8), so that comments, order and layout of `federation.toml` do not change it and every value does.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedprofile.common.config import Frozen, load_toml, validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.feature_specs import FeaturesSpec
from fedprofile.common.tasks import LabelsTask, RankingTask, Task

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


CANDIDATE = "candidate"
"""In the record template of a ranking task: the text of the candidate, which no source has a column for."""


class HistorySpec(Frozen):
    """How one user's events become text.

    `record` is rendered from the labelled row itself (what is known when the prediction is asked for), `event`
    from each of the user's earlier events, newest kept when `max_tokens` cuts. Both are literals and column
    names with an optional format, `{price:.0f}`; nothing is evaluated.
    """

    record: str = ""
    event: str = ""
    separator: str = "; "
    max_events: int = Field(default=64, ge=0, le=4096)
    max_tokens: int = Field(default=64, ge=8, le=4096)

    @model_validator(mode="after")
    def _templates_are_plain(self) -> Self:
        for template in (self.record, self.event):
            template_columns(template)
        if not (self.record or self.event):
            raise ValueError("give a template for 'record', for 'event', or for both")
        return self

    @property
    def columns(self) -> frozenset[str]:
        """Every column that the templates name."""
        return template_columns(self.record) | template_columns(self.event)

    @property
    def numbers(self) -> frozenset[str]:
        """The columns that a template formats as numbers."""
        return template_numbers(self.record) | template_numbers(self.event)


def template_columns(template: str) -> frozenset[str]:
    """The columns that a template names.

    Args:
        template: Literals and `{column}` or `{column:format}`.

    Returns:
        The names.

    Raises:
        ValueError: The template is more than that: an attribute, an index, a conversion, a nested field.
    """
    return frozenset(name for name, _ in _template_fields(template))


def template_numbers(template: str) -> frozenset[str]:
    """The columns that a template formats, which therefore hold numbers.

    Args:
        template: Literals and `{column}` or `{column:format}`.

    Returns:
        The names of those with a format.
    """
    return frozenset(name for name, specification in _template_fields(template) if specification)


def _template_fields(template: str) -> list[tuple[str, str]]:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r} is not valid: {error}") from error
    fields = []
    for _, name, specification, conversion in parts:
        if name is None:
            continue
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or conversion or "{" in (specification or ""):
            raise ValueError(
                f"template field {{{name}}} is not a plain column name; use letters, digits and underscores"
            )
        try:
            width = len(format(1.5, specification or ""))
        except ValueError:
            raise ValueError(f"template field {{{name}:{specification}}} is not a number's format") from None
        if width > 64:
            raise ValueError(f"template field {{{name}:{specification}}} is wider than 64 characters")
        fields.append((name, specification or ""))
    return fields


class BaseSpec(Frozen):
    """The frozen pretrained model, pinned by content."""

    id: str
    """Public id on the model hub; what the exported adapter names."""
    revision: str = "main"
    weights_sha256: Sha256
    config_sha256: Sha256
    tokenizer_sha256: Sha256


_BARE = (
    "its weights belong to no linear layer, and only of those are per-record gradients formed here: they would get no "
    "gradient that can be clipped user by user"
)
_ONCE = (
    "PEFT computes its virtual tokens once for a whole batch, so that their gradient is one for all records together "
    "and cannot be clipped user by user"
)
NOT_PRIVATE = {
    "adalora": (
        f"{_BARE}; and it drops ranks by scores of the gradients, which taken from records would be released without "
        "noise, and taken from noised gradients would leave every tenant other ranks, of which there is no average"
    ),
    "dora": (
        "its layer calls the LoRA factors a second time, on a unit matrix and without a gradient, after which Opacus "
        "forms no per-record gradients of them; and its magnitudes belong to no linear layer"
    ),
    "ia3": _BARE,
    "p-tuning": _ONCE,
    "prefix": (
        "it changes keys and values in every layer, so that nothing below the top layers is frozen and can be computed "
        "once for each record, and its embeddings belong to no linear layer"
    ),
    "prompt": _ONCE,
}
"""Methods that a card may name in vain, and why; the names without `-tuning` and `_tuning` count as well.
`tests/common/modeling/test_methods.py` holds each reason against the installed libraries."""


class AdapterSpec(Frozen):
    """What is trained."""

    method: Literal["lora", "head"] = "lora"
    rank: int = Field(default=8, ge=1, le=256)
    alpha: float = Field(default=16.0, gt=0)
    scaling: Literal["lora", "rslora"] = "lora"
    """The factors' product is multiplied by alpha / rank (LoRA), or by alpha / sqrt(rank) (rsLoRA,
    https://arxiv.org/abs/2312.03732), with which updates keep their size where ranks are high."""
    targets: tuple[str, ...] = ("query", "value")
    top_layers: int = Field(default=1, ge=1, le=256)
    train: Literal["AB", "B"] = "B"
    dtype: Literal["float32"] = "float32"
    pooling: Literal["mean", "last"] = "mean"
    text_scale: float = Field(default=1.0, gt=0, le=100)
    """Constant factor on the pooled text before the head. The head's gradient grows with it and shares the clip
    norm with LoRA's, so it decides how much of the clipped update each of the two gets. It is bounded because whoever
    writes the card is not trusted: beside a large factor the bound on an adapter's values would mean nothing, and
    rounding errors of the text would become logits."""
    label_head: float = Field(default=0.0, ge=0, le=100)
    """Above 0 the head starts from the base's embeddings of the label names, which are public, as
    the classifier that takes the nearest: a text that is a label's name has about this much more for it than for
    another. At 0 the head starts at zero."""
    a_of: Sha256 | None = None
    """Hash of the card whose frozen A matrices are used instead of this card's own. A B that was trained elsewhere
    means nothing beside another A, so an `initial_adapter` where B alone is trained needs it."""

    @field_validator("method", mode="before")
    @classmethod
    def _method_can_be_private(cls, method: object) -> object:
        plain = str(method).lower().replace("_", "-").replace("ptuning", "p-tuning")
        reason = NOT_PRIVATE.get(plain) or NOT_PRIVATE.get(plain.removesuffix("-tuning"))
        if reason is not None:
            raise ValueError(f"cannot be trained privately here: {reason}; use 'lora' (with scaling) or 'head'")
        return method


class TrainingSpec(Frozen):
    """How a tenant trains within a round."""

    rounds: int = Field(ge=1, le=10_000)
    local_steps: int = Field(ge=1, le=10_000)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(gt=0)
    head_learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """For `sgd`."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """For `adamw`: a step shrinks what is trained by the learning rate times this."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rates fall over the whole run; see `fedprofile.common.schedule`."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Part of the run's steps over which the learning rates rise."""
    proximal: float = Field(default=0.0, ge=0)
    """FedProx's mu; the term is added after the noise."""
    head_clip: float | None = Field(default=None, gt=0, lt=1)
    """Clip head and LoRA factors apart: the head to this part of the tenant's clip norm C, the factors to
    sqrt(1 - head_clip^2) of it, so that both together are at most C; None clips them together. Not read where the head
    alone is trained."""
    views: int = Field(default=1, ge=1, le=8)
    """Of each record, averaged before clipping; see `fedprofile.common.interactions.record_views`."""
    adversarial: float = Field(default=0.0, ge=0, le=1)
    """Above 0 each record is trained at activations moved by this part of their norm to where its own loss is higher;
    see `fedprofile.common.modeling.adversarial`."""

    @model_validator(mode="after")
    def _decay_has_its_optimizer(self) -> Self:
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError("weight_decay is for optimizer = 'adamw'; other optimizers do not read it")
        return self


class AggregationSpec(Frozen):
    """How the server combines updates."""

    strategy: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    learning_rate: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """FedAvgM's momentum, FedAdam's beta_1."""
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)
    weight_cap: int = Field(default=1_000_000, ge=1)
    """No tenant weighs more than this many declared users."""
    fairness: Literal["none", "q", "worst-tenants"] = "none"
    """Whether tenants that the noised evaluation tables show to be served badly weigh more: in proportion to their
    error to the power of `fairness_q`, or the worse half of them four times. See `fedprofile.server.fair_weights`."""
    fairness_q: float = Field(default=1.0, gt=0, le=5)
    average_last: int = Field(default=1, ge=1, le=100)
    """What is evaluated, delivered and exported is the mean of the adapters after the last so many rounds; training
    goes on from the last one itself. Averages of what is released cost nothing."""


class RoundsSpec(Frozen):
    """When a round starts, ends and is aggregated."""

    min_tenants: int = Field(default=2, ge=1)
    start_after: float = Field(default=0.0, ge=0)
    """Seconds to wait for more tenants once `min_tenants` are there."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds after which a round goes on without those who have not answered."""


class EvaluationSpec(Frozen):
    """When the noised evaluation tables are asked for, and early stopping on them."""

    when: Literal["never", "end", "start-middle-end", "every-round"] = "start-middle-end"
    patience: int = Field(default=0, ge=0)
    """Stop after this many evaluations without a gain beyond the interval; 0 never stops. Needs `every-round`."""

    def rounds(self, total: int) -> tuple[int, ...]:
        """After which rounds tables are asked for; 0 is before the first.

        Args:
            total: The card's number of rounds.

        Returns:
            Ascending, distinct.

        >>> EvaluationSpec().rounds(10)
        (0, 5, 10)
        """
        if self.when == "never":
            return ()
        if self.when == "end":
            return (total,)
        if self.when == "every-round":
            return tuple(range(total + 1))
        return tuple(sorted({0, total // 2, total}))


class FederationCard(Frozen):
    """A federation, whole. See the module's docstring."""

    format: Literal[1] = 1
    name: Name
    task: Task
    history: HistorySpec
    features: FeaturesSpec = FeaturesSpec()
    base: BaseSpec
    adapter: AdapterSpec = AdapterSpec()
    training: TrainingSpec
    aggregation: AggregationSpec = AggregationSpec()
    rounds: RoundsSpec = RoundsSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    max_epsilon: float = Field(default=10.0, gt=0, le=50)
    """The weakest promise that a tenant may make here. The server cannot verify it."""
    max_update_norm: float = Field(gt=0)
    """L2 norm of the largest update; the client scales to it, the server drops what is above."""
    initial_adapter: Sha256 | None = None
    """SHA-256 of the safetensors file that the federation starts from, where it does not start afresh."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        group = self.task.group
        if group is not None and group.attribute in self.history.columns | self.features.columns:
            raise ValueError(
                f"the group attribute '{group.attribute}' is for audits only; take it out of templates and features"
            )
        if self.adapter.label_head and not isinstance(self.task, LabelsTask):
            raise ValueError(f"adapter.label_head starts from the labels' names; a {self.task.kind} task has none")
        if isinstance(self.task, RankingTask):
            if CANDIDATE not in template_columns(self.history.record):
                raise ValueError(
                    f"a ranking task needs {{{CANDIDATE}}} in history.record, or all candidates look alike"
                )
            if self.features.all:
                raise ValueError("features are the same for all candidates and cannot rank them; leave [features] out")
        if spoken := sorted(self.history.columns & {vector.name for vector in self.features.vectors}):
            raise ValueError(f"column '{spoken[0]}' holds a vector, which is no text; take it out of the templates")
        if self.evaluation.patience and self.evaluation.when != "every-round":
            raise ValueError("evaluation.patience needs evaluation.when = 'every-round'")
        if self.initial_adapter and self.adapter.method == "lora" and self.adapter.train == "B":
            if self.adapter.a_of is None:
                raise ValueError(
                    "initial_adapter with adapter.train = 'B' needs adapter.a_of, the hash of the card that it was "
                    "trained under: B was trained beside that card's A"
                )
        elif self.adapter.a_of is not None:
            raise ValueError("adapter.a_of is for an initial_adapter where B alone is trained")
        if not math.isfinite(self.max_update_norm):
            raise ValueError("max_update_norm must be finite")
        return self

    @property
    def record_columns(self) -> frozenset[str]:
        """Every column of a labelled row that its text or its features need, but for the candidate of a ranking."""
        given = {CANDIDATE} if isinstance(self.task, RankingTask) else set()
        return (template_columns(self.history.record) - given) | self.features.columns

    @property
    def total_steps(self) -> int:
        """Training steps over the whole run."""
        return self.training.rounds * self.training.local_steps

    def canonical(self) -> bytes:
        """The canonical JSON form, which is what is hashed, sent in an invite and stored at a tenant."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    @property
    def hash(self) -> str:
        """SHA-256 of `canonical()`, 64 hexadecimal digits: the federation's identity."""
        return hashlib.sha256(self.canonical()).hexdigest()


def load_card(path: Path) -> FederationCard:
    """Read `federation.toml`.

    Args:
        path: The file.

    Returns:
        The card.

    Raises:
        ConfigError: See `fedprofile.common.config.load_toml`.
    """
    return load_toml(path, FederationCard)


def card_from_canonical(data: bytes, name: str) -> FederationCard:
    """Read a card back from its canonical form.

    Args:
        data: What `FederationCard.canonical` gave.
        name: What to call it in errors.

    Returns:
        The card.

    Raises:
        ConfigError: It is not a card, or not in canonical form.
    """
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: the federation card is not JSON; ask the operator for a new invite.") from error
    card = validate(parsed, FederationCard, name)
    if card.canonical() != data:
        raise ConfigError(f"{name}: the federation card is not in canonical form; ask for a new invite.")
    return card
