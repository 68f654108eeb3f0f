"""What comes out of a federation: one folder that transformers, peft and safetensors can read without fedprofile.

    adapter_config.json, adapter_model.safetensors   PEFT's own, over AutoModel; not there where only a head is trained
    head.safetensors                                 weight [labels, hidden + features], bias [labels]
    head.json                                        what the head's inputs are, and everything needed to compute them
    tokenizer files, load_adapter.py                 the last reads the folder in a few plain lines
    README.md                                        the model card, see `model_card`

The card's `text_scale` is folded into the head's weight, so that a reader needs no factor. The base is named by its
public id. Names that are missing or unknown are errors when a folder is read back: PEFT alone would load an adapter
over the wrong class without a word and do nothing.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel, get_peft_model_state_dict

from fedprofile.common.adapters import AdapterError, Arrays, check_arrays, read_arrays, write_arrays
from fedprofile.common.errors import InputError
from fedprofile.common.interactions import EncodedRecords, Value
from fedprofile.common.modeling.model_card import Evaluated, TenantPrivacy, model_card
from fedprofile.common.modeling.profile_model import HEAD_BIAS, HEAD_WEIGHT, ProfileModel
from fedprofile.common.tasks import RankingTask, RegressionTask

FORMAT = "fedprofile-head/1"
HEAD_JSON = "head.json"
HEAD_FILE = "head.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
LOADER_FILE = "load_adapter.py"
CARD_FILE = "README.md"


def write_adapter_folder(
    model: ProfileModel,
    out: Path,
    *,
    rounds: int,
    tenants: Sequence[TenantPrivacy],
    evaluated: Evaluated | None = None,
    licence: str | None = None,
) -> None:
    """Write the folder as one step.

    Args:
        model: Holds the adapter to export.
        out: Must not exist or be empty.
        rounds: After which the adapter was taken.
        tenants: For the model card.
        evaluated: For the model card.
        licence: For the model card.

    Raises:
        InputError: `out` is not empty, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there and not empty; name a new folder for the export.")
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        beside.mkdir(parents=True)
        _write(model, beside)
        adapter = not model.caches_pooled
        text = model_card(
            model.card, adapter=adapter, rounds=rounds, tenants=tenants, evaluated=evaluated, licence=licence
        )
        (beside / CARD_FILE).write_text(text, encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_adapter_folder(model: ProfileModel, folder: Path) -> Arrays:
    """Read a folder back into the arrays of a federation's model.

    Args:
        model: Of the same federation card.
        folder: From `write_adapter_folder`.

    Returns:
        Arrays of `model.layout()`.

    Raises:
        AdapterError: A file is missing, the folder is of another card or base, an array is missing, unknown, of
            another shape, not finite, or a frozen A matrix differs from the card's.
    """
    try:
        head_json = json.loads((folder / HEAD_JSON).read_bytes())
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / HEAD_JSON}: cannot be read as JSON.") from error
    if not isinstance(head_json, dict) or head_json.get("card") != model.card.hash:
        raise AdapterError(f"{folder}: was exported for another federation card.")
    head = read_arrays(folder / HEAD_FILE)
    expected = _all_arrays(model)
    if set(head) != {"weight", "bias"}:
        raise AdapterError(f"{folder / HEAD_FILE}: does not hold exactly 'weight' and 'bias'.")
    found = {} if model.caches_pooled else read_arrays(folder / ADAPTER_FILE)
    found |= {HEAD_WEIGHT: _scaled_head(model, head["weight"], 1.0 / model.card.adapter.text_scale)}
    found |= {HEAD_BIAS: head["bias"]}
    check_arrays(found, {name: (tuple(array.shape), "float32") for name, array in expected.items()})
    layout = model.layout()
    if any(not np.array_equal(found[name], expected[name]) for name in expected.keys() - layout.keys()):
        raise AdapterError(f"{folder / ADAPTER_FILE}: a frozen matrix is not the federation card's.")
    return {name: found[name] for name in layout}


def compare_in_fresh_process(
    model: ProfileModel,
    folder: Path,
    base: Path,
    texts: Sequence[str],
    columns: Sequence[Mapping[str, Value]],
    records: EncodedRecords,
) -> float:
    """Run the folder's own plain loader in a new process and compare with this model.

    Args:
        model: What was exported.
        folder: The export.
        base: The base model's folder.
        texts: Rendered histories that fit into `max_tokens`.
        columns: The feature columns of each.
        records: The same as this model takes them.

    Returns:
        The largest difference of a probability; of a regression's target, as a share of its range.

    Raises:
        AdapterError: The loader fails.
    """
    rows = [json.dumps({"text": text, "columns": dict(row)}) for text, row in zip(texts, columns, strict=True)]
    command = [sys.executable, "-W", "ignore", str(folder / LOADER_FILE), str(folder), str(base)]
    # Python's own switches would change what the loader sees; the hub is never asked.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        command, input="\n".join(rows), capture_output=True, text=True, env={**kept, "HF_HUB_OFFLINE": "1"}, check=False
    )
    if ran.returncode != 0:
        raise AdapterError(f"{folder}: the exported loader fails: {(ran.stderr.strip().splitlines() or ['?'])[-1]}")
    printed = [json.loads(line) for line in ran.stdout.splitlines()]
    task, expected = model.card.task, model.predict(records)
    found = np.array([[row[name] for name in task.logit_names] for row in printed])
    if isinstance(task, RegressionTask):
        found, expected = found / task.width, task.in_unit(expected) / task.width
    return float(np.abs(found - expected).max(initial=0.0))


def _write(model: ProfileModel, folder: Path) -> None:
    if isinstance(model.encoder, PeftModel):
        # Without the argument PEFT asks the hub whether the base's vocabulary has grown.
        model.encoder.save_pretrained(str(folder), save_embedding_layers=False)
    weight = _scaled_head(model, model.head.weight.detach().cpu().numpy(), model.card.adapter.text_scale)
    head = {"weight": weight, "bias": model.head.bias.detach().cpu().numpy()}
    write_arrays(folder / HEAD_FILE, head, mode=0o644)
    model.tokenizer.save_pretrained(folder)
    text = json.dumps(head_description(model), indent=2, ensure_ascii=False)
    (folder / HEAD_JSON).write_text(text + "\n", encoding="utf-8")
    loader = Path(__file__).with_name("plain_loader.py").read_text(encoding="utf-8")
    (folder / LOADER_FILE).write_text(loader, encoding="utf-8")


def head_description(model: ProfileModel) -> dict[str, Any]:
    """The content of `head.json`; the head's inputs are the pooled text, then those of the columns in this order."""
    card = model.card
    return {
        "format": FORMAT,
        "federation": card.name,
        "card": card.hash,
        "task": card.task.kind,
        "labels": list(card.task.logit_names),
        "candidates": list(card.task.candidates) if isinstance(card.task, RankingTask) else None,
        "range": [card.task.low, card.task.high] if isinstance(card.task, RegressionTask) else None,
        "adapter": not model.caches_pooled,
        "base": card.base.model_dump(),
        "pooling": card.adapter.pooling,
        "max_tokens": card.history.max_tokens,
        "history": card.history.model_dump(exclude={"max_tokens"}),
        "inputs": [
            f"text:{model.hidden_size}",
            *(f"{feature.name}:{feature.width}" for feature in card.features.all),
            *(f"{cross.numeric} x {cross.categorical}" for cross in card.features.crosses),
        ],
        "numeric": {
            feature.name: feature.model_dump(mode="json", exclude={"name"}) for feature in card.features.numeric
        },
        "categorical": {feature.name: list(feature.values) for feature in card.features.categorical},
        "vectors": {
            feature.name: feature.model_dump(mode="json", exclude={"name"}) for feature in card.features.vectors
        },
        "crosses": [[cross.numeric, cross.categorical] for cross in card.features.crosses],
    }


def _all_arrays(model: ProfileModel) -> Arrays:
    """The arrays of an export as the model has them now, frozen ones too."""
    arrays: Arrays = {}
    if isinstance(model.encoder, PeftModel):
        state = get_peft_model_state_dict(model.encoder, save_embedding_layers=False)
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
    return arrays | {name: array for name, array in model.get_arrays().items() if name in (HEAD_WEIGHT, HEAD_BIAS)}


def _scaled_head(model: ProfileModel, weight: Any, factor: float) -> Any:
    """The head's weight with the columns of the pooled text multiplied."""
    scaled = np.array(weight, dtype=weight.dtype)
    scaled[:, : model.hidden_size] *= np.float32(factor)
    return scaled
