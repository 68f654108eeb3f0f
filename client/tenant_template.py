"""The tenant.toml that `join` writes for a person to edit, fitted to the federation card.

The card is the operator's, who is not trusted: whatever of it is written down here is escaped, so that no line break in
a label can become a key of the tenant's own file. And the population has no name to begin with: the operator chooses
the invite's names, and a tenant that took one over would have a second budget for the same users at the second invite.
"""

import json

from fedprofile.client.directory import populations_folder
from fedprofile.common.card import FederationCard
from fedprofile.common.tasks import MultilabelTask, RankingTask, RegressionTask

DEFAULT_EPSILON = 3.0


def tenant_template(card: FederationCard) -> str:
    """A complete tenant file with every key explained.

    Args:
        card: The federation's card; its columns, labels and largest epsilon are listed.

    Returns:
        TOML that needs the person's own source, columns and numbers, and a name for the population.
    """
    task, history = card.task, card.history
    epsilon = min(DEFAULT_EPSILON, card.max_epsilon)
    group = "# group = ...   not used: the card has no group attribute"
    if task.group is not None:
        values = _listed(task.group.values)
        group = (
            f"# group = {_text(task.group.attribute)}   # for fairness tables; values: {values}; leave out to decline"
        )
    time = 'time = "time"                # ISO 8601; histories are what lies strictly before it'
    return "\n".join(
        [
            f"# Tenant file for federation {_text(card.name)}. It stays on this machine.",
            "# Edit it, run `flower-client check`, then `flower-client join`, each with --dir and this directory.",
            "format = 1",
            "",
            "# The labelled rows: one prediction each. csv, jsonl or parquet with a path (relative to this file),",
            '# or kind = "sql" with url and query:',
            '#   kind = "sql"',
            '#   url = "postgresql+psycopg://reader@localhost/shop"',
            '#   query = "SELECT * FROM labelled"',
            '#   password_file = "password"   # mode 0600; or password_env = "SHOP_PASSWORD"',
            '# (a relative path in "sqlite:///shop.db" counts from this file as well)',
            "[source]",
            'kind = "csv"',
            'path = "data.csv"',
            "",
            "# Earlier events, where they are not the labelled rows themselves; same keys as [source].",
            "# [events]",
            '# kind = "csv"',
            '# path = "events.csv"',
            "",
            "# What the card needs, by the card's names:",
            *_needed(card),
            "[columns]",
            'user = "user"                # whose row it is: text or whole numbers, the same for life; protected',
            f'label = "label"              # {_label(card)}',
            time if history.event else f"# {time}",
            '# event_time = "time"         # of [events], where it differs from time',
            group,
            '# rename = { card_name = "your_column" }',
            '# protected = ["name"]        # columns that no template and no feature may name',
            "",
            '# Each round sees the source as it is or, with "run", as it was first, without users who left it.',
            "# [reading]",
            '# snapshot = "round"',
            "",
            "[population]",
            "# Type a name for the users in this data: letters, digits, '.', '_', '-'. It is theirs for life: give the",
            "# same one in every directory and federation over the same users, because their one budget goes by it.",
            'name = ""',
            "# Populations in the same database, where nobody is in both them and this one: your word, for life.",
            '# apart_from = ["other-name"]',
            "# A round number that you type; public. Never computed from the data, and it need not follow its growth.",
            "declared_users = 1000",
            "# Where their ledger lies; frozen at join. It must outlive this directory, so it cannot lie inside.",
            f"# By default it is NAME.sqlite in {_text(str(populations_folder()))}.",
            "# XDG_STATE_HOME moves that folder: never change it, as under another nothing of this ledger is known.",
            '# ledger = "/srv/fedprofile/NAME.sqlite"',
            "",
            "# For the population's whole life, over every federation.",
            "# delta: 1e-6, or 1/(10 * declared_users) where that is smaller.",
            "[budget]",
            f"epsilon = {epsilon}",
            "# delta = 1e-6",
            "",
            "# This federation's share, charged in full when you join.",
            f"# epsilon: the card allows at most {card.max_epsilon:g}.",
            "# delta: a quarter of the life's.",
            "[run]",
            f"epsilon = {epsilon}",
            "# delta = 2.5e-7",
            "# spare_rounds = 0            # rounds beyond the card's that a crash may cost",
            "",
            "[privacy]",
            "clip_norm = 1.0               # largest norm of one user's part in a step",
            "sample_rate = 0.1             # probability with which a user enters a step",
            "records_per_user = 4          # most records of a user in a step",
            "evaluation_users = 0.2        # share of users who are only evaluated; frozen in the ledger",
            "",
            "[policy]",
            'kinds = ["train", "evaluate", "deliver"]',
            "max_rounds_a_day = 10000",
            "# until = 2030-12-31          # the last day on which anything is answered",
            "reply_every = 30.0            # seconds; replies leave on this grid, so that their timing tells nothing",
            "",
            "# What becomes of a prediction here: where a person decides, and what is answered. Nothing of it leaves.",
            "# [judgement]",
            "# band = [0.4, 0.6]           # binary: probabilities of the second label that are left to a person",
            "# confidence = 0.5            # of the most likely label, below which a person decides",
            '# replies = "replies.csv"     # label,reply: what is answered',
            "# thresholds = { north = 0.4 }  # binary: from where the second label is decided, by group; else 0.5",
            '# review = { url = "sqlite:///review.db", table = "todo" }  # where what is left to a person is added',
            "",
            "# A line of each prediction, without any text of your data.",
            "# [decisions]",
            '# log = "decisions.jsonl"',
            "",
            "# Which of the adapters that come are used here.",
            "# [adapters]",
            '# accept = "not-worse"        # only once judged on your own evaluation users; or "always"',
            "# keep = 5                    # how many of the newest are kept",
            "",
            f"# Where the base model {_text(card.base.id)} lies, when it is not found by itself.",
            "# [base]",
            '# path = "model"',
            "",
        ]
    )


def _label(card: FederationCard) -> str:
    """What the label's column holds."""
    task = card.task
    if isinstance(task, RegressionTask):
        return f"{_listed(task.outputs)}, a number; below {task.low:g} and above {task.high:g} it is clipped"
    if isinstance(task, RankingTask):
        return f"what was chosen, one of the {len(task.candidates)} candidates, such as {_listed(task.candidates[:3])}"
    if isinstance(task, MultilabelTask):
        return f"any of these, with {_text(task.separator)} between them, or empty: {_listed(task.labels)}"
    return f"one of: {_listed(task.outputs)}"


def _needed(card: FederationCard) -> list[str]:
    lines = []
    if card.history.record:
        lines.append(f"#   text of a labelled row    {_text(card.history.record)}")
    if card.history.event:
        lines.append(f"#   text of an earlier event  {_text(card.history.event)}")
    lines += [f"#   number {_text(one.name)} from {one.low:g} to {one.high:g}" for one in card.features.numeric]
    lines += [f"#   category {_text(one.name)}: {_listed(one.values)}" for one in card.features.categorical]
    lines += [
        f"#   vector {_text(one.name)} of {one.width} numbers, a list such as [0.5, -1.25]"
        for one in card.features.vectors
    ]
    return lines


def _listed(values: tuple[str, ...]) -> str:
    """Values for a comment, as they stand inside of TOML strings."""
    return ", ".join(_text(value)[1:-1] for value in values)


def _text(value: str) -> str:
    """A TOML string; JSON's escapes are TOML's, and what does not print is escaped as well."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in text)
