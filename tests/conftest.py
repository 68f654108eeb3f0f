"""Fixtures that several folders share: a tiny random base model, a card over it, and small populations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedprofile.common.environment  # noqa: F401  (before torch)

pytest_plugins = ["tests.modeling_fixtures"]


def _write_tiny_bert(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(60))]
    words += ["viewed", "bought", "searched", "in", "a", "for", "visits", "visitor", "shoes", "books", "games", ";"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random BERT with 3 layers of width 16 and a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-base")
    _write_tiny_bert(folder)
    return folder


@pytest.fixture(scope="session")
def card_data(tiny_base: Path) -> Callable[..., dict[str, Any]]:
    """A function that gives a valid federation card over the tiny base as plain data; sections can be overridden."""
    from fedprofile.common.modeling.base import hash_base

    base = hash_base(tiny_base, "example/tiny-bert", "main").model_dump()

    def make(**sections: Any) -> dict[str, Any]:
        card: dict[str, Any] = {
            "name": "test-federation",
            "task": {
                "kind": "binary",
                "labels": ["no", "yes"],
                "group": {"attribute": "region", "values": ["north", "south"]},
            },
            "history": {"record": "a visitor in {month}", "event": "{action} {item}", "max_tokens": 32},
            "features": {
                "numeric": [{"name": "visits", "low": 0, "high": 10}],
                "categorical": [{"name": "device", "values": ["phone", "desk"]}],
            },
            "base": base,
            "adapter": {"rank": 2, "alpha": 4.0, "top_layers": 1, "train": "AB"},
            "training": {"rounds": 2, "local_steps": 2, "learning_rate": 0.01, "head_learning_rate": 0.05},
            "rounds": {"min_tenants": 2, "timeout": 60},
            "max_update_norm": 10.0,
        }
        for name, section in sections.items():
            old = card.get(name)
            card[name] = {**old, **section} if isinstance(old, dict) and isinstance(section, dict) else section
        copied: dict[str, Any] = json.loads(json.dumps(card))
        return copied

    return make
