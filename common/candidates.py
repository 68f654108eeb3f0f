"""A ranking's candidates beside each user's history: what makes one labelled row several rows of the model's.

Why it is private: which other candidates stand beside the chosen one comes from the card, the user's id and what the
record itself holds, so a record stays a function of one user's rows and of what is public. The order in which rows come
has no part in it: a query's is not the user's own. Of a user's records that are alike in all of this each has another
draw, and which has which makes no difference. The draw is the same each time that the source is read, so that stored
activations stay of use. A user's whole record is chosen or not and m counts records, so the rows of one record never
count as several records.

The draw is uniform over the catalogue without the chosen candidate (Krichene and Rendle 2020,
https://doi.org/10.1145/3394486.3403226, on what such sampled ranks say: they compare models at the same number of
candidates, and are no ranks in the whole catalogue).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedprofile.common.card import CANDIDATE, FederationCard
from fedprofile.common.interactions import EncodedRecords, Example, Tokenizer, canonical, encode
from fedprofile.common.tasks import RankingTask, TaskSpec


def encode_records(examples: Sequence[Example], card: FederationCard, tokenizer: Tokenizer) -> EncodedRecords:
    """Labelled rows as the model takes them: see `encode`; of a ranking, each with the candidates beside it.

    Args:
        examples: Of one tenant.
        card: The federation's.
        tokenizer: Of the card's base model.

    Returns:
        `TaskSpec.rows_per_record` rows for each example, which stand together.

    Raises:
        TextError: The tokenizer fails at a text.
        ConfigError: The tokenizer cannot be used at all.
    """
    if isinstance(card.task, RankingTask):
        examples = _beside_others(examples, card.task, card.hash)
    return encode(examples, card, tokenizer)


def as_questions(examples: Sequence[Example], task: TaskSpec) -> list[Example]:
    """What to ask the model about each example: of a ranking, about each candidate of the catalogue.

    Args:
        examples: Labels are not looked at.
        task: The card's.

    Returns:
        One row for each example, or one for each candidate in the card's order, those of an example together.
    """
    if not isinstance(task, RankingTask):
        return list(examples)
    return [with_candidate(example, name) for example in examples for name in task.candidates]


def _beside_others(examples: Sequence[Example], task: RankingTask, card_hash: str) -> list[Example]:
    """The rows of each example, the chosen candidate at a place that is drawn too: equal scores give every rank."""
    found: list[Example] = []
    before: Counter[str] = Counter()
    for example in examples:
        rows = [canonical(row) for row in (example.row, *example.events)]
        content = json.dumps([card_hash, example.user, example.label, example.group, rows])
        key = f"candidates {before[content]} {content}".encode()
        before[content] += 1
        draw = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key).digest(), "big")))
        if example.label < 0:
            found += [
                with_candidate(example, name) for name in draw.choice(task.candidates, task.rows_per_record, False)
            ]
            continue
        chosen = int(example.label)
        others = draw.choice(len(task.candidates) - 1, task.negatives, replace=False)
        others += others >= chosen
        places = np.insert(others, draw.integers(task.rows_per_record), chosen)
        found += [with_candidate(example, task.candidates[place], int(place == chosen)) for place in places]
    return found


def with_candidate(example: Example, candidate: str, label: int = -1) -> Example:
    """One row of a ranking.

    Args:
        example: The user's.
        candidate: Its text.
        label: 1 where it was chosen, 0 where it was not.

    Returns:
        The example with the candidate as a column of its row.
    """
    return replace(example, row={**example.row, CANDIDATE: candidate}, label=label)
