"""Chinese, English and other scripts: nothing invalid comes of a cut, and a base must know the language."""

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fedprofile.client.forecast import read_data, require_known_words
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import Example, encode, fit_texts

CHINESE = [
    "浏览了红色的鞋子，价格二百元。",
    "购买了一本书；评价：很好！",
    "搜索“蓝牙耳机”，看了三件商品。",
    "退货：尺码不合适，客服已经回复。",
    "收藏了手机、平板和电脑。",
]
ENGLISH = [
    "viewed red shoes, price two hundred",
    "bought a book; review: very good!",
    "searched for wireless headphones, saw three items",
    "returned: wrong size, support has replied",
    "saved a phone, a tablet and a computer",
]
ODD = {
    "full-width": "价格：１２３．５０元（折扣）！？",
    "emoji": "很好😀👍🏽 family 👨‍👩‍👧‍👦 flag 🇨🇳",
    "right to left": "קנה נעליים אדומות, اشترى كتابا",
    "combining": unicodedata.normalize("NFD", "café naïve Ångström"),
    "mixed": "bought 一本书 for 20元 😀，then returned 退货",
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def _train(kind: str, texts: list[str], vocabulary: int = 400) -> PreTrainedTokenizerFast:
    settings: dict[str, Any] = {"vocab_size": vocabulary, "special_tokens": SPECIAL, "show_progress": False}
    trainer: Any = trainers.BpeTrainer(**settings)
    if kind == "wordpiece":  # As BERT's, each Chinese character a word of its own.
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**settings)
    elif kind == "bytes":  # As GPT-2's and Qwen's.
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**settings, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:  # As Llama's and Gemma's: characters, and bytes for those that are not known.
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary + 256,
            special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    known: dict[str, Any] = {"unk_token": "[UNK]"} if kind != "bytes" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", **known
    )


@pytest.fixture(scope="module")
def train() -> Callable[..., PreTrainedTokenizerFast]:
    """A function from a kind, and texts, to a tokenizer; each is trained once."""
    made: dict[tuple[str, ...], PreTrainedTokenizerFast] = {}

    def find(kind: str, texts: tuple[str, ...] = (*CHINESE, *ENGLISH)) -> PreTrainedTokenizerFast:
        return made.setdefault((kind, *texts), _train(kind, list(texts)))

    return find


Train = Callable[..., PreTrainedTokenizerFast]
KINDS = ("wordpiece", "bytes", "byte fallback")


def _text(tokenizer: PreTrainedTokenizerFast, ids: Any) -> str:
    text = tokenizer.decode([int(token) for token in ids if int(token) not in (2, 3)])
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("kind", ["bytes", "byte fallback"])
@pytest.mark.parametrize("text", [*CHINESE[:2], *ENGLISH[:2], *ODD.values()])
def test_no_cut_leaves_a_broken_character(kind: str, text: str, train: Train) -> None:
    tokenizer = train(kind)
    whole = fit_texts([[text]], tokenizer, 4096)[0]
    assert _text(tokenizer, whole) == text
    assert "�" not in text
    for length in range(8, len(whole) + 1):
        [cut] = fit_texts([[text]], tokenizer, length)
        shown = _text(tokenizer, cut)
        assert "�" not in shown and text.endswith(shown), length
        # No more is taken away than it needs, by what the tokens say when they are put together again.
        ids = whole.tolist()[1:-1]
        oldest = len(ids) - (length - 2)
        first = next(place for place in range(oldest, len(ids) + 1) if "�" not in tokenizer.decode(ids[place:]))
        assert cut.tolist() == [2, *ids[first:], 3]


def test_without_the_rule_cuts_would_break_characters(train: Train) -> None:
    """The texts above do hold what the rule is for."""
    for kind in ("bytes", "byte fallback"):
        tokenizer = train(kind)
        ids = tokenizer(ODD["emoji"], add_special_tokens=False)["input_ids"]
        assert any("�" in tokenizer.decode(ids[first:]) for first in range(len(ids)))


@pytest.mark.parametrize("text", [*CHINESE, *ENGLISH, *ODD.values()])
def test_word_pieces_of_any_script_are_cut_to_tokens(text: str, train: Train) -> None:
    tokenizer = train("wordpiece")
    whole = fit_texts([[text]], tokenizer, 4096)[0].tolist()
    for length in range(8, len(whole)):
        cut = fit_texts([[text]], tokenizer, length)[0].tolist()
        assert cut == [2, *whole[len(whole) - length + 1 : -1], 3]
        assert "�" not in _text(tokenizer, cut)


@pytest.mark.parametrize("kind", KINDS)
def test_histories_in_two_languages_keep_their_newest_events_whole(
    kind: str, train: Train, card_data: Callable[..., dict[str, Any]]
) -> None:
    tokenizer = train(kind)
    history = {"record": "", "event": "{text}", "separator": "；", "max_tokens": 48, "max_events": 64}
    card = FederationCard.model_validate(card_data(history=history))
    texts = [text for pair in zip(CHINESE, ENGLISH, strict=True) for text in pair]
    events = tuple({"text": text} for text in texts)
    [tokens] = encode([Example("u", {"visits": 1.0, "device": None}, events)], card, tokenizer).tokens
    assert len(tokens) <= 48
    shown = _text(tokenizer, tokens).replace(" ", "")
    newest = [text.replace(" ", "") for text in texts]
    kept = next(count for count in range(len(texts), 0, -1) if shown.startswith(newest[-count][:5]))
    assert shown == "；".join(newest[-kept:])
    assert kept < len(texts)


def _reading(tokenizer: PreTrainedTokenizerFast, texts: list[str], card: FederationCard) -> Any:
    examples = [Example(f"u{place}", {"text": text}) for place, text in enumerate(texts)]
    records = encode(examples, card, tokenizer)
    return read_data(records, card=card, declared_users=10, records_per_user=4, unknown_token=tokenizer.unk_token_id)


@pytest.fixture
def plain_card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    return FederationCard.model_validate(card_data(history={"record": "{text}", "event": ""}))


def test_a_base_that_does_not_know_chinese_is_refused_with_advice(train: Train, plain_card: FederationCard) -> None:
    english = train("wordpiece", tuple(ENGLISH))
    assert _reading(english, ENGLISH, plain_card).unknown_tokens == 0.0
    reading = _reading(english, CHINESE, plain_card)
    assert reading.unknown_tokens > 0.5
    assert any("does not know many of your words" in warning for warning in reading.warnings)
    with pytest.raises(ConfigError, match=r"more than 20% .* unknown .*multilingual .*Chinese \(BAAI/bge-small-zh"):
        require_known_words(reading, plain_card)
    # Half of the histories in the other language are too many as well.
    with pytest.raises(ConfigError):
        require_known_words(_reading(english, [*ENGLISH, *CHINESE], plain_card), plain_card)


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_that_knows_both_languages_is_taken(kind: str, train: Train, plain_card: FederationCard) -> None:
    for texts in (CHINESE, ENGLISH, [*CHINESE, *ENGLISH]):
        reading = _reading(train(kind), texts, plain_card)
        assert reading.unknown_tokens == 0.0
        require_known_words(reading, plain_card)


def test_characters_that_no_word_piece_has_are_counted_as_unknown(train: Train, plain_card: FederationCard) -> None:
    """A few emoji among known words are a warning at most; bytes know everything."""
    texts = [*CHINESE, *ENGLISH, "很好 😀"]
    reading = _reading(train("wordpiece"), texts, plain_card)
    assert 0 < reading.unknown_tokens < 0.05
    require_known_words(reading, plain_card)
    for kind in ("bytes", "byte fallback"):
        assert _reading(train(kind), [*texts, *ODD.values()], plain_card).unknown_tokens == 0.0
