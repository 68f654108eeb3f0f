"""`flower-server export`: the adapter folder, loaded again in a fresh process and compared.

The comparison uses made-up texts and the ends of the card's public ranges, so that it needs nobody's data.
"""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import InputError
from fedprofile.common.estimates import Interval
from fedprofile.common.messages import Arrays
from fedprofile.server.checkpoint import load_arrays
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.enrolment import read_roster
from fedprofile.server.history import read_lines

if TYPE_CHECKING:
    from fedprofile.common.interactions import Value
    from fedprofile.common.modeling.model_card import Evaluated, TenantPrivacy

LARGEST_DIFFERENCE = 1e-5
"""Of a probability; above it the export is wrong and is not left behind as if it were right."""


def export_adapter(root: Path, out: Path, base: Path | None = None, licence: str | None = None) -> dict[str, Any]:
    """Write the newest global adapter as a folder.

    Args:
        root: The server's directory.
        out: Must not exist or be empty.
        base: Where the base model lies; None for what `server.toml` says.
        licence: Hugging Face's name of the adapter's licence, for the model card; None states none.

    Returns:
        "folder", "round", "difference" (of a probability, in a fresh process), "card_hash".

    Raises:
        InputError: There is no adapter yet, the base model is missing or differs, `out` is not empty, the licence is
            no such name, or the fresh process disagrees.
    """
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", licence):
        raise InputError(
            f"--license '{licence}': is not a name such as apache-2.0; see the model hub's list of licences."
        )
    # Imported late: it brings torch, transformers and PEFT.
    from fedprofile.common.features import encode_features
    from fedprofile.common.interactions import EncodedRecords, fit_texts
    from fedprofile.common.modeling.base import load_base, resolve_base
    from fedprofile.common.modeling.export import compare_in_fresh_process, write_adapter_folder
    from fedprofile.common.modeling.profile_model import ProfileModel

    directory = ServerDirectory(root)
    card, settings = directory.card(), directory.settings()
    arrays, round_number = newest_adapter(directory, card)
    files = resolve_base(card.base, base or settings.base)
    model = ProfileModel(card, *load_base(files))
    model.set_arrays(arrays)
    tenants, evaluated = known_tenants(directory, card, round_number), newest_evaluation(directory, round_number)
    write_adapter_folder(model, out, rounds=round_number, tenants=tenants, evaluated=evaluated, licence=licence)
    texts, columns = probes(card)
    nothing = np.zeros(len(texts), np.int64)
    records = EncodedRecords(
        users=tuple(str(place) for place in range(len(texts))),
        user=np.arange(len(texts), dtype=np.int64),
        tokens=fit_texts([[text] for text in texts], model.tokenizer, card.history.max_tokens),
        features=encode_features(columns, card.features),
        labels=nothing - 1,
        groups=nothing,
    )
    difference = compare_in_fresh_process(model, out, files.folder, texts, columns, records)
    if not difference <= LARGEST_DIFFERENCE:
        raise InputError(
            f"{out}: a fresh process that loads it differs by {difference:g} (at most {LARGEST_DIFFERENCE:g} is "
            "expected); do not use it, and report this."
        )
    return {"folder": str(out), "round": round_number, "difference": difference, "card_hash": card.hash}


def known_tenants(directory: ServerDirectory, card: FederationCard, round_number: int) -> list["TenantPrivacy"]:
    """Everybody who is or was enrolled for a card, with what the model card says of each.

    Args:
        directory: The server's.
        card: Its card.
        round_number: The adapter's.

    Returns:
        In the roster's order.
    """
    from fedprofile.common.modeling.model_card import TenantPrivacy

    counted = Counter(
        name
        for line in read_lines(directory.history)
        if line["kind"] == "train" and line["round"] <= round_number
        for name in line["tenants"]
    )
    return [
        TenantPrivacy(
            entry.name,
            PrivacyLoss(**entry.enrolled.promise.model_dump()),
            entry.enrolled.declared_users,
            counted[entry.name],
        )
        for entry in read_roster(directory.tenants).tenants
        if entry.enrolled is not None and entry.enrolled.card_hash == card.hash
    ]


def newest_evaluation(directory: ServerDirectory, round_number: int) -> "Evaluated | None":
    """The newest evaluation in the history that is not of a later adapter.

    Args:
        directory: The server's.
        round_number: The adapter's.

    Returns:
        The evaluation; None where there is none that any tenant answered.
    """
    from fedprofile.common.modeling.model_card import Evaluated

    found = None
    for line in read_lines(directory.history):
        if line["kind"] == "evaluate" and line["round"] <= round_number and line["metrics"]:
            metrics = {name: interval and Interval(**interval) for name, interval in line["metrics"].items()}
            found = Evaluated(line["round"], len(line["tenants"]), metrics)
    return found


def newest_adapter(directory: ServerDirectory, card: FederationCard) -> tuple[Arrays, int]:
    """The newest global adapter of a server.

    Args:
        directory: The server's.
        card: Its card.

    Returns:
        The arrays, and after which round.

    Raises:
        InputError: No round is done yet, or the adapter is another card's.
    """
    try:
        arrays, metadata = load_arrays(directory.adapter)
        card_hash, round_number = metadata["card_hash"], int(metadata["round"])
    except FileNotFoundError:
        raise InputError(f"{directory.root}: no training round is done yet; there is nothing to export.") from None
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{directory.adapter}: is damaged; start the server again to go on from its state.") from error
    if card_hash != card.hash:
        raise InputError(f"{directory.adapter}: belongs to card {card_hash[:12]}...; put its federation.toml back.")
    return arrays, round_number


def probes(card: FederationCard) -> tuple[list[str], list[dict[str, "Value"]]]:
    """Made-up inputs that reach every input of the head.

    Args:
        card: The federation card.

    Returns:
        Texts, and the feature columns of each.
    """
    words = [card.name, *card.task.outputs, *(feature.name for feature in card.features.all)]
    count = 3 + max((len(feature.values) for feature in card.features.categorical), default=0)
    texts, columns = [], []
    for place in range(count):
        texts.append(" ".join(words[: 1 + place % len(words)]))
        row: dict[str, Value] = {}
        for feature in card.features.numeric:
            row[feature.name] = feature.low + (feature.high - feature.low) * place / (count - 1)
        for categorical in card.features.categorical:
            row[categorical.name] = categorical.values[place % len(categorical.values)]
        for vector in card.features.vectors:
            # Some beyond the bounds, so that they are reached.
            low, high = (
                (-(vector.norm or 0), vector.norm or 0) if vector.low is None else (vector.low, vector.high or 0)
            )
            waves = np.cos(np.arange(vector.width) + place)
            row[vector.name] = tuple((0.5 * (low + high + 1.2 * (high - low) * waves)).tolist())
        columns.append(row)
    return texts, columns
