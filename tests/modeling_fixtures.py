"""Profile models over tiny random bases of every family that the design names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.base import BaseModelFiles, hash_base, load_base, resolve_base
from fedprofile.common.modeling.profile_model import ProfileModel

# The models are tiny: a second thread costs more than it gives, and other tests run beside these.
torch.set_num_threads(1)

FAMILIES = (
    "bert",
    "roberta",
    "xlm_roberta",
    "distilbert",
    "modernbert",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
)
MakeModel = Callable[..., ProfileModel]
MakeFamily = Callable[[str], tuple[PreTrainedModel, dict[str, Any]]]
MakeFamilyFolder = Callable[[str], tuple[Path, dict[str, Any]]]


def _family(name: str) -> tuple[Any, list[str], str]:
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": 200,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    decoder = common | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    attention = ["q_proj", "v_proj"]
    modern: dict[str, Any] = {"local_attention": 4, "global_attn_every_n_layers": 2}
    gemma3: dict[str, Any] = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    small_distil: dict[str, Any] = {"vocab_size": 200, "dim": 32, "hidden_dim": 64, "n_layers": 4, "n_heads": 4}
    families: dict[str, Callable[[], tuple[Any, list[str], str]]] = {
        "bert": lambda: (t.BertConfig(**common), ["query", "value"], "mean"),
        "roberta": lambda: (t.RobertaConfig(**common, pad_token_id=0), ["query", "value"], "mean"),
        "xlm_roberta": lambda: (t.XLMRobertaConfig(**common, pad_token_id=0), ["query", "value"], "mean"),
        "distilbert": lambda: (
            t.DistilBertConfig(**small_distil, max_position_embeddings=64),
            ["q_lin", "v_lin"],
            "mean",
        ),
        "modernbert": lambda: (
            t.ModernBertConfig(**common, pad_token_id=0, **modern),
            ["Wqkv"],
            "mean",
        ),
        "gpt2": lambda: (
            t.GPT2Config(vocab_size=200, n_embd=32, n_layer=4, n_head=4, n_positions=64),
            ["c_attn"],
            "last",
        ),
        "gpt_neox": lambda: (t.GPTNeoXConfig(**common), ["query_key_value"], "last"),
        "llama": lambda: (t.LlamaConfig(**decoder), attention, "last"),
        "mistral": lambda: (t.MistralConfig(**decoder, sliding_window=4), attention, "last"),
        "qwen2": lambda: (
            t.Qwen2Config(**decoder, use_sliding_window=True, sliding_window=4, max_window_layers=2),
            attention,
            "last",
        ),
        "qwen3": lambda: (t.Qwen3Config(**decoder, head_dim=8), attention, "last"),
        "gemma": lambda: (t.GemmaConfig(**decoder, head_dim=8), attention, "last"),
        "gemma2": lambda: (t.Gemma2Config(**decoder, head_dim=8, sliding_window=4), attention, "last"),
        "gemma3": lambda: (t.Gemma3TextConfig(**decoder, head_dim=8, **gemma3), attention, "last"),
    }
    return families[name]()


@pytest.fixture(scope="session")
def make_family_folder(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> MakeFamilyFolder:
    """A function from a family's name to a random base's folder and the card's adapter section for its top 2 of 4."""

    def make(name: str) -> tuple[Path, dict[str, Any]]:
        config, targets, pooling = _family(name)
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder, {"rank": 4, "alpha": 8.0, "top_layers": 2, "targets": targets, "pooling": pooling}

    return make


@pytest.fixture(scope="session")
def make_family(make_family_folder: MakeFamilyFolder) -> MakeFamily:
    """A function from a family's name to a random base and the card's adapter section for its top 2 of 4 layers."""

    def make(name: str) -> tuple[PreTrainedModel, dict[str, Any]]:
        folder, adapter = make_family_folder(name)
        base, _ = load_base(BaseModelFiles(folder, hash_base(folder, f"example/{name}")))
        return base, adapter

    return make


@pytest.fixture(scope="session")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    """The tiny base's."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_base)
    return found


@pytest.fixture(scope="session")
def make_model(tiny_base: Path, card_data: Callable[..., dict[str, Any]]) -> MakeModel:
    """A function from sections of a card to a profile model over the tiny base, or over a given one."""

    def make(base: PreTrainedModel | None = None, **sections: Any) -> ProfileModel:
        card = FederationCard.model_validate(card_data(**sections))
        loaded, tokenizer = load_base(resolve_base(card.base, tiny_base))
        return ProfileModel(card, base or loaded, tokenizer)

    return make


@pytest.fixture(scope="session")
def make_kind(tiny_base: Path, card_data: Callable[..., dict[str, Any]]) -> MakeModel:
    """As `make_model`, with a whole `task` section in place of the binary one."""

    def make(task: dict[str, Any], **sections: Any) -> ProfileModel:
        card = FederationCard.model_validate({**card_data(**sections), "task": task})
        return ProfileModel(card, *load_base(resolve_base(card.base, tiny_base)))

    return make


@pytest.fixture
def make_records() -> Callable[..., EncodedRecords]:
    """A function that gives random records of one user each; lengths from 1 to `longest`."""

    def make(model: ProfileModel, count: int = 6, longest: int = 24, seed: int = 0) -> EncodedRecords:
        rng = np.random.default_rng(seed)
        return EncodedRecords(
            users=tuple(f"u{number}" for number in range(count)),
            user=np.arange(count, dtype=np.int64),
            tokens=[rng.integers(4, 60, size).astype(np.int32) for size in rng.integers(1, longest + 1, count)],
            features=rng.random((count, model.card.features.width), dtype=np.float32),
            labels=model.card.task.made_up(rng.integers(0, 100, count)),
            groups=np.zeros(count, np.int64),
        )

    return make


@pytest.fixture
def stir() -> Callable[[ProfileModel], None]:
    """A function that moves every trainable away from its start, so that each of them matters."""

    def move(model: ProfileModel) -> None:
        rng = np.random.default_rng(7)
        model.set_arrays(
            {
                name: (array + 0.3 * rng.standard_normal(array.shape)).astype(np.float32)
                for name, array in model.get_arrays().items()
            }
        )

    return move
