"""Canaries: made-up users who are put into a tenant's training users by a fair coin each.

What a canary must have is a gradient that nobody else has and that clipping cannot make small beside the others. Where
`columns` is 0 it has random text, numbers at the ends of their ranges, and a label that contradicts them. That alone is
hard to tell from other people. With `columns`, the audited card has so many public categorical columns of rare values
more, in each of which every canary has a value of its own, as people have in a deployed card with a post code or a
product number. It is the nearest that a record comes to a gradient canary, which has one coordinate for itself
(Nasr et al. 2023, https://arxiv.org/abs/2302.07956), and goes through the whole client like any other record.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.sampling import TenantRecords
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.features import encode_features
from fedprofile.common.interactions import EncodedRecords, Value
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tasks import BinaryTask, MulticlassTask
from fedprofile.simulations.federation import SimulatedTenant
from fedprofile.simulations.randomness import derived_seed
from fedprofile.simulations.scenarios import changed

COLUMN = "canary-{}"


def audited_card(card: FederationCard, columns: int, count: int) -> FederationCard:
    """A card with columns of rare values.

    Args:
        card: Of the scenario.
        columns: How many are added.
        count: Values in each, one for every canary.

    Returns:
        The card; nobody but a canary has one of these values.
    """
    if not columns:
        return card
    values = [f"{number}" for number in range(count)]
    added = [{"name": COLUMN.format(number), "values": values} for number in range(columns)]
    categorical: list[Any] = [feature.model_dump() for feature in card.features.categorical]
    return changed(card, features={"categorical": [*categorical, *added]})


def make_canaries(
    model: ProfileModel, count: int, columns: int, words: int, seed: int, records: int = 1
) -> EncodedRecords:
    """The canaries.

    Args:
        model: Of the audited card.
        count: How many.
        columns: As for `audited_card`.
        words: Tokens of each one's text, drawn from the whole vocabulary.
        seed: Of their text, features and labels.
        records: Of each, all the same: what they have in common is not averaged away.

    Returns:
        Their records.

    Raises:
        ConfigError: The text or the canaries' labels do not fit the card.
    """
    tokenizer, card = model.tokenizer, model.card
    if not isinstance(card.task, BinaryTask | MulticlassTask):
        raise ConfigError(f"an audit needs a task with one right label a record; this card's is a {card.task.kind}.")
    if words + 2 > card.history.max_tokens:
        raise ConfigError(
            f"canaries.words={words} does not fit history.max_tokens={card.history.max_tokens}, of which 2 are taken."
        )
    draw = np.random.Generator(np.random.Philox(derived_seed(seed, "canaries")))
    vocabulary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    ends = [[token] if token is not None else [] for token in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
    tokens = [np.array([*ends[0], *draw.choice(vocabulary, words), *ends[1]], dtype=np.int32) for _ in range(count)]
    high = draw.random(count) < 0.5
    rows = [_row(card, number, bool(high[number]), columns, draw) for number in range(count)]
    owners = np.repeat(np.arange(count, dtype=np.int64), records)
    return EncodedRecords(
        users=tuple(f"canary-{number}" for number in range(count)),
        user=owners,
        tokens=[tokens[owner] for owner in owners],
        features=encode_features(rows, card.features)[owners],
        # Much of everything is what the last label looks like.
        labels=np.where(high, 0, len(card.task.outputs) - 1).astype(np.int64)[owners],
        groups=np.zeros(len(owners), np.int64),
    )


def _row(card: FederationCard, number: int, high: bool, columns: int, draw: np.random.Generator) -> dict[str, Value]:
    if columns:
        # What is missing has no gradient, so that all of it goes to the canary's own values.
        return {COLUMN.format(column): f"{number}" for column in range(columns)}
    row: dict[str, Value] = {feature.name: feature.high if high else feature.low for feature in card.features.numeric}
    for vector in card.features.vectors:
        end = (vector.high if high else vector.low) if vector.norm is None else (vector.norm if high else -vector.norm)
        row[vector.name] = (float(end or 0.0),) * vector.width
    return row | {feature.name: str(draw.choice(feature.values)) for feature in card.features.categorical}


def fair_coins(count: int, *names: str | int) -> NDArray[np.bool_]:
    """Which canaries are put in.

    Args:
        count: How many canaries.
        names: Of the coins' stream, such as seed and tenant.

    Returns:
        Independent and fair.
    """
    return np.random.Generator(np.random.Philox(derived_seed(*names, "coins"))).random(count) < 0.5


def planted(tenant: SimulatedTenant, canaries: EncodedRecords, included: NDArray[np.bool_]) -> SimulatedTenant:
    """A tenant with some canaries among its training users."""
    training = joined(tenant.records.training, canaries.of_users(included))
    return SimulatedTenant(tenant.name, tenant.settings, TenantRecords(training, tenant.records.evaluation))


def joined(*parts: EncodedRecords) -> EncodedRecords:
    """Records of different users, one part after another."""
    before = np.cumsum([0, *(len(part.users) for part in parts)])
    return EncodedRecords(
        users=tuple(user for part in parts for user in part.users),
        user=np.concatenate([part.user + first for part, first in zip(parts, before[:-1], strict=True)]),
        tokens=[tokens for part in parts for tokens in part.tokens],
        features=np.concatenate([part.features for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
    )
