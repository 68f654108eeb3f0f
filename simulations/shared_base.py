"""One frozen base for every federation of an experiment: it is loaded once, and what is stored of it serves all.

A profile model is a function of its card alone, and finding out how many records a pass may hold
(`fedprofile.common.modeling.invariance`) takes longer than building it, so runs with the same card use the same one.
Stored activations depend on less than a card, so that models of different cards share them.
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedprofile.common.card import BaseSpec, FederationCard
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel


class SharedBase:
    """A loaded base with its models by card.

    Args:
        base: From `load_base`.
        tokenizer: Of the base.
    """

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._base = base
        self._models: dict[str, ProfileModel] = {}
        self._caches: dict[str, PrefixCache] = {}

    @classmethod
    def load(cls, base: BaseSpec) -> "SharedBase":
        """Load the base that a card names.

        Raises:
            ConfigError: It is not here, or not the card's.
        """
        return cls(*load_base(resolve_base(base)))

    def model(self, card: FederationCard) -> tuple[ProfileModel, PrefixCache]:
        """The model of a card, with whatever arrays its last user left in it, and where its activations are stored."""
        if card.hash not in self._models:
            self._models[card.hash] = ProfileModel(card, self._base, self.tokenizer)
        model = self._models[card.hash]
        return model, self._caches.setdefault(model.prefix_space, PrefixCache(model))
