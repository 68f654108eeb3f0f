"""The model card of an export: README.md in Hugging Face's format, from what the server has and nothing else.

    front matter   what Hugging Face's site reads; only constants, and names that have been checked to be such
    text           task, use, data, training, privacy, evaluation, fairness, limits, how to load it, licence

Figures are those of the newest evaluation in the server's history, each with its interval; there is none in the front
matter, where it would stand without. An epsilon stands with delta, unit, adjacency, model and accountant. What a card
or a tenant calls something is somebody else's text: it stands in code spans in which nothing is markup (`quoted`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.estimates import Metrics
from fedprofile.common.feature_specs import CategoricalFeature, NumericFeature, VectorFeature
from fedprofile.common.tasks import BinaryTask, LabelsTask, MultilabelTask, RankingTask, RegressionTask, TaskSpec

TOO_FEW = "too few users to say"
NOT_MEASURED = "not measured"

LISTED = 200
"""Labels or candidates that are named; of a catalogue the first ones."""


@dataclass(frozen=True)
class TenantPrivacy:
    """A tenant's line in the model card.

    Args:
        tenant: Its name in the federation.
        promise: What it promised its users.
        declared_users: As it declared them; None where that is not known.
        rounds: In how many rounds up to this adapter its update counted; None where that is not known.
    """

    tenant: str
    promise: PrivacyLoss
    declared_users: int | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of the server's history.

    Args:
        round: After which training round.
        tenants: How many tenants' noised tables were summed.
        metrics: What the sum says.
    """

    round: int
    tenants: int
    metrics: Metrics = field(default_factory=dict)


def quoted(text: str) -> str:
    r"""Somebody else's text as a code span on one line, also within a table; nothing in it is markup.

    >>> print(quoted("a_b"), quoted("a|b"), quoted("<b>\n## c`"))
    `a_b` <code>a&#124;b</code> <code>&#60;b&#62;\n&#35;&#35; c&#96;</code>
    """
    shown = "".join(part if part.isprintable() else part.encode("unicode_escape").decode("ascii") for part in text)
    if shown.strip() and not re.search(r"[`|\\<>]", shown):
        return f"`{shown}`"
    # A character by its number is never markup.
    escaped = "".join(part if part.isalnum() or part in " ,\\" else f"&#{ord(part)};" for part in shown)
    return f"<code>{escaped}</code>"


def front_matter(card: FederationCard, *, adapter: bool, licence: str | None) -> ModelCardData:
    """What Hugging Face's site reads of a model card.

    Args:
        card: The federation card.
        adapter: Whether there is a PEFT adapter, and not a head alone.
        licence: Hugging Face's name of the licence; None where none is stated.

    Returns:
        The data; the base's name only where it can be one on the hub.
    """
    try:
        validate_repo_id(card.base.id)
        base: str | None = card.base.id
    except HFValidationError:
        base = None
    return ModelCardData(
        base_model=base,
        library_name="peft" if adapter else None,
        license=licence or "other",
        license_name=None if licence else "not-stated",
        pipeline_tag="text-classification" if isinstance(card.task, LabelsTask) else None,
        tags=["fedprofile", "federated-learning", "differential-privacy", card.task.kind],
    )


def model_card(
    card: FederationCard,
    *,
    adapter: bool,
    rounds: int,
    tenants: Sequence[TenantPrivacy],
    evaluated: Evaluated | None = None,
    licence: str | None = None,
) -> str:
    """The content of README.md.

    Args:
        card: The federation card.
        adapter: Whether there is a PEFT adapter, and not a head alone.
        rounds: Training rounds done.
        tenants: Everybody who was enrolled.
        evaluated: The newest evaluation up to this round.
        licence: See `front_matter`.

    Returns:
        YAML front matter and Markdown.
    """
    what = "LoRA adapter and a linear head" if adapter else "linear head"
    outputs = _listed(card.task)
    sections = {
        "Task": _task(card),
        "Intended use": _INTENDED,
        "Out of scope": _OUT_OF_SCOPE,
        "Data": _data(card, tenants),
        "Training": _training(card, rounds),
        "Privacy": _privacy(tenants),
        "Evaluation": _evaluation(rounds, evaluated),
        "Fairness": _fairness(card, evaluated),
        "Limits": _LIMITS,
        "How to load it": _LOADING.format(
            imported="from peft import PeftModel\n" if adapter else "",
            loaded='model = PeftModel.from_pretrained(model, ".")\n' if adapter else "",
        ),
        "Licence": _licence(licence),
    }
    parts = [
        f"---\n{front_matter(card, adapter=adapter, licence=licence).to_yaml()}\n---",
        f"# {quoted(card.name)}",
        f"A {what} over {quoted(card.base.id)} (revision {quoted(card.base.revision)}), trained in {rounds} rounds of "
        f"private federated learning to predict {outputs}. Federation card `{card.hash}`.",
        *(f"## {title}\n\n{text}" for title, text in sections.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _task(card: FederationCard) -> str:
    task = card.task
    if isinstance(task, RegressionTask):
        return f"Regression: {quoted(task.target)}, a number from {task.low:g} to {task.high:g}, clipped to that range."
    labels = _listed(task)
    if isinstance(task, RankingTask):
        return f"Ranking of {len(task.candidates):,} candidates: {labels}."
    if isinstance(task, MultilabelTask):
        return f"Any of {len(task.labels)} labels, which do not exclude one another: {labels}."
    if isinstance(task, BinaryTask):
        return f"One of two labels, of which the second is the positive one: {labels}."
    return f"One of {len(task.outputs)} labels: {labels}."


def _listed(task: TaskSpec) -> str:
    """The outputs, or the first of many."""
    few = ", ".join(map(quoted, task.outputs[:LISTED]))
    return few if len(task.outputs) <= LISTED else f"{few} and {len(task.outputs) - LISTED:,} more"


def _data(card: FederationCard, tenants: Sequence[TenantPrivacy]) -> str:
    declared = [tenant.declared_users for tenant in tenants if tenant.declared_users is not None]
    users = f", which declare {sum(declared):,} users in all" if declared and len(declared) == len(tenants) else ""
    rows = [[quoted(feature.name), _range(feature)] for feature in card.features.all]
    rows += [[quoted(cross.numeric), f"times {quoted(cross.categorical)}"] for cross in card.features.crosses]
    group = card.task.group
    lines = [
        f"Events and labels of the users of {len(tenants)} tenants{users}. They have stayed where they were: no record "
        "and no example is in this folder, and the server has seen none. What is said here of columns is what the "
        "federation card asks for, not what was found in the data. A declared number is a round one that the tenant "
        "gave, not a count.",
        f"Text of the labelled row: {_template(card.history.record)}; of each earlier event, newest kept, at most "
        f"{card.history.max_events}: {_template(card.history.event)}; {card.history.max_tokens} tokens in all.",
        _table(["column", "public range"], rows) if rows else "No column enters beside the text.",
        "No group attribute is audited."
        if group is None
        else f"For audits alone, and never an input: {quoted(group.attribute)}, one of "
        f"{', '.join(map(quoted, group.all_values))}.",
    ]
    return "\n\n".join(lines)


def _range(feature: NumericFeature | CategoricalFeature | VectorFeature) -> str:
    match feature:
        case NumericFeature():
            return f"{feature.low:g} to {feature.high:g}, {feature.scale}"
        case CategoricalFeature():
            return ", ".join(map(quoted, feature.values))
        case VectorFeature():
            bound = f"norm {feature.norm:g}" if feature.norm is not None else f"{feature.low:g} to {feature.high:g}"
            return f"{feature.width} values, {bound}"


def _template(template: str) -> str:
    return quoted(template) if template else "none"


def _training(card: FederationCard, rounds: int) -> str:
    plan, adapter = card.training, card.adapter
    trained = (
        "the head alone"
        if adapter.method == "head"
        else f"LoRA of rank {adapter.rank} ({'both factors' if adapter.train == 'AB' else 'B alone'}) in the top "
        f"{adapter.top_layers} layers at {', '.join(map(quoted, adapter.targets))}, and the head"
    )
    rows = [
        ["rounds", f"{rounds} of {plan.rounds}"],
        ["noised steps of a tenant in a round", str(plan.local_steps)],
        ["trained", trained],
        ["optimiser at the tenant", f"{plan.optimizer}, learning rates {plan.learning_rate:g} (LoRA) and "
         f"{plan.head_learning_rate:g} (head), {plan.schedule}"],
        ["aggregation", f"{card.aggregation.strategy}, mean of the adapters after the last "
         f"{card.aggregation.average_last} rounds"],
        ["largest update (L2 norm)", f"{card.max_update_norm:g}"],
        ["mechanism", "DP-SGD at each tenant: users enter a step at random, a user's mean gradient is clipped once, "
         "Gaussian noise is added to the sum"],
    ]  # fmt: skip
    return (
        _table(["setting", "value"], rows)
        + "\n\nSampling rate, clip norm and noise are each tenant's own and not known here; what they come to is its "
        "promise."
    )


def _privacy(tenants: Sequence[TenantPrivacy]) -> str:
    rows = [
        [
            quoted(tenant.tenant),
            "not stated" if tenant.declared_users is None else f"{tenant.declared_users:,}",
            "not stated" if tenant.rounds is None else str(tenant.rounds),
            str(tenant.promise),
        ]
        for tenant in tenants
    ]
    header = ["tenant", "declared users", "rounds with its update", "promise for each user, training and evaluation"]
    text = (
        "Each tenant added the noise itself, before anything left it, and keeps a ledger of what it spent; what is "
        "promised holds against the server and against whoever has this folder. The server cannot verify a promise.\n\n"
        + (_table(header, rows) if rows else "No tenant is enrolled.")
    )
    if len(tenants) > 1:
        losses = [tenant.promise for tenant in tenants]
        everywhere = PrivacyLoss(
            sum(loss.epsilon for loss in losses), sum(loss.delta for loss in losses), accountant="sum of the promises"
        )
        text += (
            "\n\nThese are promises for one tenant's data. The loss of a person who is at several tenants is not the "
            "largest of theirs but their composition, for which their sum is a bound; for somebody at all of them: "
            f"{everywhere}."
        )
    return text + (
        "\n\nNot covered: that a tenant exists and takes part, and the number of users that it declares. A tenant "
        "whose users are in other federations as well spends more on them than stands here."
    )


def _evaluation(rounds: int, evaluated: Evaluated | None) -> str:
    if evaluated is None or not evaluated.metrics:
        return f"{NOT_MEASURED.capitalize()}: the server has no evaluation of this federation."
    plain = {name for name in evaluated.metrics if ":" not in name}
    rows = [
        [quoted(name), TOO_FEW if interval is None else str(interval)]
        for name, interval in evaluated.metrics.items()
        if name in plain or name.partition(":")[0] not in plain
    ]
    this = evaluated.round == rounds
    when = "of this adapter" if this else f"not of this adapter but of the one after round {evaluated.round}"
    return (
        f"On evaluation users, who were not trained on, of {evaluated.tenants} tenants: the sum of their noised "
        f"tables, {when}. Intervals are 95 % and hold both the noise and the sampling of users.\n\n"
        + _table(["metric", "value [95 % interval]"], rows)
    )


def _fairness(card: FederationCard, evaluated: Evaluated | None) -> str:
    group = card.task.group
    if group is None:
        return f"{NOT_MEASURED.capitalize()}: the federation card names no group attribute."
    metrics = {} if evaluated is None else evaluated.metrics
    names = [name for name in metrics if ":" not in name]
    if not names:
        by = quoted(group.attribute)
        return f"{NOT_MEASURED.capitalize()} by {by}: the server has no evaluation of this federation."
    rows = [[quoted(value), *(_of_group(metrics, f"{name}:{value}") for name in names)] for value in group.all_values]
    return (
        f"By {quoted(group.attribute)}, from the same tables; a tenant may have declined it, whose users are then in "
        "`other`. Overlapping intervals do not show that groups are served alike.\n\n"
        + _table(["group", *map(quoted, names)], rows)
    )


def _of_group(metrics: Metrics, name: str) -> str:
    if name not in metrics:
        return NOT_MEASURED
    interval = metrics[name]
    return TOO_FEW if interval is None else str(interval)


def _licence(licence: str | None) -> str:
    stated = f"{quoted(licence)}." if licence else "Not stated by whoever exported it; ask before you use it."
    return f"{stated} The base model has a licence of its own."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


_INTENDED = (
    "To predict the above for users of the kind of application that the tenants run, from events in the form that the "
    "section on data gives, with a person or a rule of the application's own deciding what follows. Check it on your "
    "own evaluation users first: it is worth something to you only where it is better there than what you have."
)
_OUT_OF_SCOPE = (
    "Decisions with legal or similarly serious effects on a person without a human review; other populations, "
    "languages or events than those of the data; telling who somebody is; any claim that an event caused a prediction."
)
_LIMITS = (
    "- Noise costs accuracy, and costs it most in small groups; an interval says how much of a figure is uncertain.\n"
    "- Figures come from tables of few cells: noise aside, they are not exact.\n"
    "- It learned what was so while it was trained, and nothing tells it that this has changed.\n"
    "- Probabilities are not calibrated."
)
_LOADING = """\
`load_adapter.py` in this folder predicts with transformers, peft, safetensors and numpy alone:

    python load_adapter.py FOLDER BASE < rows

where each row is `{{"text": "", "columns": {{}}}}` and BASE is the base model's folder or name; `head.json` describes
the inputs of the head. Its steps begin with

```python
import json
{imported}from transformers import AutoModel, AutoTokenizer

base = json.load(open("head.json"))["base"]
tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModel.from_pretrained(base["id"], revision=base["revision"])
{loaded}```

and the rest of that file pools the text, adds the columns and applies `head.safetensors`."""
