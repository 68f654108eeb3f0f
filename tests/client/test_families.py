"""Every family of base models the whole way that a tenant goes: from a folder to predictions and files.

What `tests/common/modeling/test_hollow.py` and `tests/simulations/test_cohort.py` prove of each family (the hollow
model, per-record gradients, the two trainers) is not repeated here.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.modeling_fixtures import FAMILIES, MakeFamilyFolder

from fedprofile.client.randomness import SecureRandomness
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords, Example, Value, encode
from fedprofile.common.modeling import plain_loader
from fedprofile.common.modeling.base import hash_base, load_base, resolve_base
from fedprofile.common.modeling.export import write_adapter_folder
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS = TrainingSettings(
    sample_rate=0.5,
    noise_multiplier=1.0,
    clip_norm=1.0,
    records_per_user=2,
    declared_users=10,
    optimizer="adam",
    learning_rate=0.01,
    head_learning_rate=0.05,
    momentum=0.0,
    proximal=0.0,
    max_update_norm=10.0,
)
TEXTS = ["w1 w2 w3 viewed", "bought w4 w5 w6", "w7 w8 w9 searched", "games w11 w12 w13"]
COLUMNS: list[dict[str, Value]] = [{"visits": 2.0, "device": "desk"}, {}, {"visits": 9.0}, {"device": "phone"}]

Stir = Callable[[ProfileModel], None]


@pytest.fixture(scope="module")
def whole(make_family_folder: MakeFamilyFolder, card_data: Callable[..., dict[str, Any]]) -> Callable[[str], Any]:
    """A function from a family's name to a model that was built as a tenant builds it, and its base's folder."""

    def build(family: str) -> tuple[ProfileModel, Path]:
        folder, adapter = make_family_folder(family)
        pinned = hash_base(folder, f"example/{family}").model_dump()
        history = {"record": "{text}", "event": "", "max_tokens": 16}
        card = FederationCard.model_validate(card_data(adapter=adapter, base=pinned, history=history))
        return ProfileModel(card, *load_base(resolve_base(card.base, folder))), folder

    return build


def _records(model: ProfileModel) -> EncodedRecords:
    rows = zip(TEXTS, COLUMNS, strict=True)
    examples = [Example(str(place), {**row, "text": text}, label=place % 2) for place, (text, row) in enumerate(rows)]
    return encode(examples, model.card, model.tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_folder_to_files_that_plain_libraries_read(
    family: str,
    whole: Callable[[str], tuple[ProfileModel, Path]],
    stir: Stir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, folder = whole(family)
    # Who builds it again, as server and tenants do, has the same start, and every array of the card is in it.
    again = ProfileModel(model.card, *load_base(resolve_base(model.card.base, folder)))
    start = model.initial_arrays()
    assert all(np.array_equal(value, again.initial_arrays()[name]) for name, value in start.items())
    # The self-test runs through the deployed trainer, before anything is spent.
    trainer = PrivateTrainer(model=model, cache=PrefixCache(model), settings=SETTINGS)
    trainer.self_test()
    records = _records(model)
    update = trainer.train(start, records, steps=2, randomness=SecureRandomness())
    assert {name: value.shape for name, value in update.items()} == {name: value.shape for name, value in start.items()}
    assert all(np.isfinite(value).all() for value in update.values())
    # Given as the federation's initial adapter, what was trained is what another one starts from.
    stir(model)
    again.set_arrays(model.get_arrays())
    write_adapter_folder(model, tmp_path / "out", rounds=1, tenants=[])
    with torch.no_grad():
        logits = again(records.tokens, records.features)
    rows = [json.dumps({"text": text, "columns": row}) for text, row in zip(TEXTS, COLUMNS, strict=True)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(rows)))
    capsys.readouterr()
    plain_loader.main(str(tmp_path / "out"), str(folder))
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = np.array([[row[label] for label in model.card.task.outputs] for row in printed])
    predicted = model.predict(records)
    np.testing.assert_allclose(torch.softmax(logits.double(), 1).numpy(), predicted, atol=1e-6)
    np.testing.assert_allclose(found, predicted, atol=1e-6)
    assert np.ptp(predicted[:, 1]) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_matter(family: str, whole: Callable[[str], tuple[ProfileModel, Path]], stir: Stir) -> None:
    """Neither how long it is nor what stands there."""
    model, _ = whole(family)
    stir(model)
    short = [np.array([2, 9, 11, 3], np.int32), np.array([2, 17, 3], np.int32)]
    features = np.zeros((2, model.card.features.width), np.float32)
    with torch.no_grad():
        tight = model.logits(model.batch(short, 4), features)
        wide = model.batch(short, 16)
        padded = model.logits(wide, features)
        wide.ids[wide.mask == 0] = 40
        filled = model.logits(wide, features)
        alone = torch.cat([model.logits(model.batch([tokens], len(tokens)), features[:1]) for tokens in short])
    for other in (padded, filled, alone):
        torch.testing.assert_close(other, tight, rtol=0, atol=1e-5)
    assert float((tight[0] - tight[1]).abs().max()) > 1e-3
