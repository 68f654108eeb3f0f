"""From events to records: what a model sees of one user at one moment, strictly before the label's time.

A record is a function of ONE user's rows, the federation card and public constants. Nothing is fitted to the data:
no vocabulary, scaler or class weight, and no other user's rows (PRIVACY.md, "Sampling, clipping, noise").
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.card import FederationCard, HistorySpec
from fedprofile.common.errors import ConfigError
from fedprofile.common.features import encode_features
from fedprofile.common.tasks import Label, Labels

Value = str | float | tuple[float, ...] | None
"""Of a column: text, a number, a vector, or nothing."""
Row = Mapping[str, Value]


def canonical(row: Row) -> str:
    """A row as text that is the same for the same values, however they came; a function of the row alone.

    >>> canonical({"b": None, "a": 1.5}) == canonical({"a": 1.5, "b": None})
    True
    """
    return json.dumps(row, sort_keys=True)


class TextError(ConfigError):
    """The tokenizer fails at a text. The message is constant: whose text it is, and what stands there, is private."""

    def __init__(self) -> None:
        super().__init__("the base model's tokenizer fails at a text of the data; use another base model.")


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    def __call__(self, text: list[str], /, *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]: ...


@dataclass(frozen=True)
class Example:
    """One labelled row with the user's earlier events, before tokenisation.

    Args:
        user: Pseudonym of the user at this tenant.
        row: The labelled row by card names; what is known when the prediction is asked for.
        events: The user's earlier rows, oldest first, strictly before the row's time.
        label: See `fedprofile.common.tasks`; -1 where it is not known.
        group: Index in the group's values, the last being `other`.
    """

    user: str
    row: Row = field(repr=False)
    events: tuple[Row, ...] = field(default=(), repr=False)
    label: Label = -1
    group: int = 0


@dataclass(frozen=True)
class EncodedRecords:
    """Records as the model takes them.

    Args:
        users: Distinct users, in order of first appearance.
        user: Index in `users` of each record, int64 [n].
        tokens: Token ids of each record with special tokens, int32 arrays of at most `max_tokens`.
        features: Fused columns, float32 [n, width].
        labels: Of `TaskSpec.as_array`, [n]; -1 where not known.
        groups: int64 [n].
    """

    users: tuple[str, ...] = field(repr=False)
    user: NDArray[np.int64] = field(repr=False)
    tokens: list[NDArray[np.int32]] = field(repr=False)
    features: NDArray[np.float32] = field(repr=False)
    labels: Labels = field(repr=False)
    groups: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Whose label is known, [n]."""
        known: NDArray[np.bool_] = np.all(self.labels >= 0, axis=tuple(range(1, self.labels.ndim)))
        return known

    def of_users(self, keep: NDArray[np.bool_]) -> "EncodedRecords":
        """The records of some users.

        Args:
            keep: For each of `users`, whether to keep it.

        Returns:
            Records with users numbered anew.
        """
        chosen = np.flatnonzero(keep[self.user]) if len(self) else np.zeros(0, np.int64)
        number = np.cumsum(keep) - 1
        return replace(
            self,
            users=tuple(user for user, kept in zip(self.users, keep, strict=True) if kept),
            user=number[self.user[chosen]].astype(np.int64),
            tokens=[self.tokens[place] for place in chosen],
            features=self.features[chosen],
            labels=self.labels[chosen],
            groups=self.groups[chosen],
        )

    def with_views(self, views: int) -> "EncodedRecords":
        """Each record replaced by its views, which stand together.

        Args:
            views: Of each record; see `record_views`.

        Returns:
            `views` times as many records of the same users.
        """
        if views == 1:
            return self
        return replace(
            self,
            user=np.repeat(self.user, views),
            tokens=[view for record in self.tokens for view in record_views(record, views)],
            features=np.repeat(self.features, views, axis=0),
            labels=np.repeat(self.labels, views),
            groups=np.repeat(self.groups, views),
        )


def joined(parts: Sequence[EncodedRecords]) -> EncodedRecords:
    """Records of several tenants, one after another; the numbers of users mean nothing."""
    return EncodedRecords(
        users=(),
        user=np.concatenate([part.user for part in parts]),
        tokens=[tokens for part in parts for tokens in part.tokens],
        features=np.concatenate([part.features for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
    )


def record_views(tokens: NDArray[np.int32], views: int) -> list[NDArray[np.int32]]:
    """A record whole, and without one part of its text after the other.

    Trained together, a record's views do the work of augmentation without a cost in privacy: their mean is a function
    of one user's records, which is clipped once (De et al. 2022, https://arxiv.org/abs/2204.13650). Which parts are
    left out is public and always the same, so that activations of views are stored as those of records are.

    Args:
        tokens: With special tokens.
        views: k. The tokens between the first and the last are cut into k parts that are as equal as can be; view i is
            without part i, and the last part, the newest, is left out of none.

    Returns:
        k arrays, the first of them the record itself.

    >>> [view.tolist() for view in record_views(np.array([101, 1, 2, 3, 4, 5, 102], np.int32), 3)]
    [[101, 1, 2, 3, 4, 5, 102], [101, 2, 3, 4, 5, 102], [101, 1, 4, 5, 102]]
    """
    ends = [1 + max(0, len(tokens) - 2) * part // views for part in range(views)]
    return [tokens, *(np.delete(tokens, slice(*part)) for part in pairwise(ends))]


def render(template: str, row: Row) -> str:
    """Fill a template with one row; a missing value renders as "unknown".

    Args:
        template: Literals and `{column}` or `{column:format}`, checked by the card.
        row: Values by card name.

    Returns:
        The text.

    >>> render("{visits:.0f} visits in {month}", {"visits": 3.0, "month": None})
    '3 visits in unknown'
    """
    return template.format_map(_Fields(row))


class _Missing:
    """Stands for a value that is not there and accepts every format."""

    def __format__(self, specification: str) -> str:
        return "unknown"


class _Number(float):
    """A number that renders without needless digits where the template gives no format."""

    def __format__(self, specification: str) -> str:
        return format(float(self), specification or "g")


class _Fields(dict[str, object]):
    def __init__(self, row: Row) -> None:
        super().__init__({name: _field(value) for name, value in row.items()})


def _field(value: Value) -> object:
    if value is None:
        return _Missing()
    return _Number(value) if isinstance(value, float) else value


def encode(examples: Sequence[Example], card: FederationCard, tokenizer: Tokenizer) -> EncodedRecords:
    """Render, tokenise and cut to the card's `max_tokens`.

    Events come first, oldest to newest, and the labelled row's own text last. What does not fit is cut at the old
    end: whole events first, then the oldest tokens, so that the newest events and the row itself are kept.

    Args:
        examples: Of one tenant, or of one request for a prediction.
        card: Template, lengths, features.
        tokenizer: Of the card's base model.

    Returns:
        The records, in the order of `examples`.

    Raises:
        TextError: The tokenizer fails at a text.
        ConfigError: The tokenizer cannot be used at all.
    """
    users = tuple(dict.fromkeys(example.user for example in examples))
    place = {user: number for number, user in enumerate(users)}
    return EncodedRecords(
        users=users,
        user=np.array([place[example.user] for example in examples], dtype=np.int64),
        tokens=_tokens(examples, card, tokenizer),
        features=encode_features([example.row for example in examples], card.features),
        labels=card.task.as_array([example.label for example in examples]),
        groups=np.array([example.group for example in examples], dtype=np.int64),
    )


def _tokens(examples: Sequence[Example], card: FederationCard, tokenizer: Tokenizer) -> list[NDArray[np.int32]]:
    pieces = [history_pieces(example, card.history) for example in examples]
    return fit_texts(pieces, tokenizer, card.history.max_tokens)


def history_pieces(example: Example, history: HistorySpec) -> list[str]:
    """The text of one example before it is cut to `max_tokens`.

    Args:
        example: Row and events.
        history: The card's.

    Returns:
        The newest events' texts, oldest first, and the row's own last; each but the last with the separator.
    """
    newest = example.events[max(0, len(example.events) - history.max_events) :] if history.event else ()
    texts = [render(history.event, event) for event in newest]
    if history.record:
        texts.append(render(history.record, example.row))
    return [text + history.separator for text in texts[:-1]] + texts[-1:]


def fit_texts(pieces: Sequence[Sequence[str]], tokenizer: Tokenizer, max_tokens: int) -> list[NDArray[np.int32]]:
    """Token ids with special tokens; what does not fit is cut at the front: whole pieces first, then tokens.

    What is left begins with a whole character: tokenizers that fall back to bytes make several tokens of a Chinese
    character or an emoji, and the last bytes of one are no text.

    Args:
        pieces: Of each text, the oldest first.
        tokenizer: Of the base model.
        max_tokens: Special tokens included.

    Returns:
        One array for each text.

    Raises:
        TextError: The tokenizer fails at a text.
        ConfigError: The tokenizer cannot be used at all.
    """
    ids = _token_ids({text for texts in pieces for text in texts}, tokenizer)
    before, after = _special_tokens(tokenizer)
    room = max_tokens - len(before) - len(after)
    tokens: list[NDArray[np.int32]] = []
    for texts in pieces:
        parts = [ids[text] for text in texts]
        while len(parts) > 1 and sum(map(len, parts)) > room:
            parts = parts[1:]
        kept = [token for part in parts for token in part]
        if len(kept) > room:  # Of a single piece, the newest.
            kept = kept[_first_whole(texts[-1], len(kept) - room, tokenizer) :]
        tokens.append(np.array([*before, *kept, *after], dtype=np.int32))
    return tokens


def _token_ids(texts: set[str], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Token ids by text: an event that is in many records' histories is cut into tokens once."""
    ordered = sorted(texts)
    if not ordered:
        return {}
    try:
        return dict(zip(ordered, tokenizer(ordered, add_special_tokens=False)["input_ids"], strict=True))
    except Exception:
        # Such as a vocabulary without a token for unknown words. What is raised may quote the text.
        raise TextError from None


def _first_whole(text: str, first: int, tokenizer: Tokenizer) -> int:
    """The first token from a place on that does not begin within a character; the place itself where none can tell."""
    places: Any = tokenizer
    try:
        spans = places([text], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][0]
    except NotImplementedError:  # A tokenizer in plain Python keeps no places.
        return first
    except Exception:
        raise TextError from None
    # Tokens of one character's bytes have that character's place, all of them.
    return next((place for place in range(first, len(spans)) if spans[place][0] >= spans[place - 1][1]), len(spans))


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text, found by comparing one word with and without them."""
    bare = tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
    whole = tokenizer(["a"], add_special_tokens=True)["input_ids"][0]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise ConfigError("the tokenizer changes a text when it adds its special tokens; use another base model.")
