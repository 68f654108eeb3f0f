"""One frozen base for every federation of an experiment: it is loaded once, and what is stored of it serves all.

A profile model is a function of its card alone, and finding out how many records a pass may hold
(`fedprofile.common.modeling.invariance`) takes longer than building it, so runs with the same card use the same one.
Stored activations depend on less than a card, so that models of different cards share them: all tenants, rounds and
cells of a sweep. A deployed tenant has a cache of its own.
"""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedprofile.common.card import BaseSpec, FederationCard
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel


@dataclass(frozen=True)
class CacheSpec:
    """Where activations are stored.

    Args:
        fill: "full" before the first round, "lazy" when they are first needed, or "none": computed each time.
        folder: Memory-mapped there, readable by its owner alone; in memory where there is none. It holds personal
            data, so whoever names a folder deletes it in the end.
        limit: Bytes of each kind of activations at most; None for no limit.
    """

    fill: Literal["full", "lazy", "none"] = "lazy"
    folder: Path | None = None
    limit: int | None = None


class SharedBase:
    """A loaded base with its models by card.

    Args:
        base: From `load_base`, on its device.
        tokenizer: Of the base.
        spec: Where activations are stored.
    """

    def __init__(
        self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: CacheSpec | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.spec = spec or CacheSpec()
        self._base = base
        self._models: dict[str, ProfileModel] = {}
        self._caches: dict[str, PrefixCache] = {}

    @classmethod
    def load(
        cls,
        base: BaseSpec,
        spec: CacheSpec | None = None,
        *,
        folder: Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "SharedBase":
        """Load the base that a card names.

        Args:
            base: The card's.
            spec: Where activations are stored.
            folder: Where the base lies, instead of the embedded package or the hub's cache.
            device: Where the base goes.
            dtype: Of its weights.

        Raises:
            ConfigError: It is not here, or not the card's.
        """
        model, tokenizer = load_base(resolve_base(base, folder), device, dtype)
        return cls(model, tokenizer, spec)

    def model(self, card: FederationCard) -> tuple[ProfileModel, PrefixCache | None]:
        """The model of a card, with whatever arrays its last user left in it, and where its activations are stored."""
        if card.hash not in self._models:
            self._models[card.hash] = ProfileModel(card, self._base, self.tokenizer)
        model = self._models[card.hash]
        if self.spec.fill == "none":
            return model, None
        if model.prefix_space not in self._caches:
            self._caches[model.prefix_space] = self._cache(model)
        return model, self._caches[model.prefix_space]

    @property
    def cached_bytes(self) -> int:
        """Of all stored activations."""
        return sum(cache.size for cache in self._caches.values())

    def _cache(self, model: ProfileModel) -> PrefixCache:
        if self.spec.folder is None:
            return PrefixCache(model, limit=self.spec.limit)
        self.spec.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = self.spec.folder / "secret"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_bytes(secrets.token_bytes(32))
        folder = self.spec.folder / hashlib.sha256(model.prefix_space.encode()).hexdigest()[:16]
        return PrefixCache(model, folder=folder, secret=secret.read_bytes(), limit=self.spec.limit)
