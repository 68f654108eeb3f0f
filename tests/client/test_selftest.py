"""The self-test passes what is sound, and catches faults as libraries have had them, before anything is spent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from peft import PeftModel
from tests.modeling_fixtures import MakeModel
from torch import nn

from fedprofile.client.clipping import UserDPOptimizer
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.common.adapters import read_arrays, write_arrays
from fedprofile.common.card import FederationCard, load_card
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.invariance import SelfTestError
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel

SETTINGS = TrainingSettings(
    sample_rate=0.1,
    noise_multiplier=1.0,
    clip_norm=0.5,
    records_per_user=3,
    declared_users=1000,
    optimizer="adam",
    learning_rate=5.0,
    head_learning_rate=50.0,
    momentum=0.9,
    proximal=0.1,
    max_update_norm=1e-3,
)
ROOT = Path(__file__).parents[2]

Make = Callable[..., tuple[PrivateTrainer, ProfileModel]]


@pytest.fixture(scope="module")
def make(tiny_base: Path, card_data: Callable[..., dict[str, Any]]) -> Make:
    """A function that gives a trainer and its model; sections of the card can be overridden."""

    def make_one(cached: bool = True, **sections: Any) -> tuple[PrivateTrainer, ProfileModel]:
        card = FederationCard.model_validate(card_data(**sections))
        model = ProfileModel(card, *load_base(resolve_base(card.base, tiny_base)))
        trainer = PrivateTrainer(
            model=model,
            cache=PrefixCache(model) if cached else None,
            settings=SETTINGS,
        )
        return trainer, model

    return make_one


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": {"train": "B", "text_scale": 0.1}},
        {"adapter": {"top_layers": 2, "rank": 4}},
        {"adapter": {"method": "head"}},
        {"adapter": {"scaling": "rslora", "rank": 4}},
        {"adapter": {"targets": ["dense", "query"]}},  # "dense" names three modules of a layer
        {"task": {"kind": "multiclass", "labels": ["a", "b", "c"]}, "features": {"numeric": [], "categorical": []}},
    ],
)
def test_a_sound_model_passes_whatever_the_runs_settings(sections: dict[str, Any], cached: bool, make: Make) -> None:
    trainer, model = make(cached, **sections)
    before = dict(vars(trainer))
    trainer.self_test()
    assert {name: value for name, value in vars(trainer).items() if name != "_tested"} == {
        name: value for name, value in before.items() if name != "_tested"
    }
    assert not any(getattr(parameter, "grad_sample", None) is not None for parameter in model.parameters())


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_a_sound_regression_passes(loss: str, make_kind: MakeModel) -> None:
    model = make_kind(task={"kind": "regression", "target": "rating", "low": 1, "high": 5, "loss": loss})
    PrivateTrainer(model=model, cache=PrefixCache(model), settings=SETTINGS).self_test()


def test_sound_labels_and_candidates_pass(make_kind: MakeModel) -> None:
    several = make_kind(task={"kind": "multilabel", "labels": ["a", "b", "c"]})
    task = {"kind": "ranking", "candidates": list("abcdef"), "negatives": 3}
    plain: dict[str, list[Any]] = {"numeric": [], "categorical": []}
    ranked = make_kind(task=task, history={"record": "{candidate}"}, features=plain)
    for model in (several, ranked):
        PrivateTrainer(model=model, cache=PrefixCache(model), settings=SETTINGS).self_test()


@pytest.mark.base
@pytest.mark.parametrize("cached", [True, False])
def test_the_embedded_base_passes_where_gradients_cancel_out(cached: bool) -> None:
    """A step's rounding is of the size of records' gradients, of which the mean can be a small part."""
    data = load_card(ROOT / "configs" / "scenarios" / "built-in" / "federation.toml").model_dump(mode="json")
    data["adapter"] |= {"top_layers": 2, "train": "AB"}
    card = FederationCard.model_validate(data)
    model = ProfileModel(card, *load_base(resolve_base(card.base)))
    PrivateTrainer(model=model, cache=PrefixCache(model) if cached else None, settings=SETTINGS).self_test()


def test_it_runs_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, model = make()
    trainer.self_test()
    monkeypatch.setattr(model, "forward", None)
    trainer.self_test()


def _detached(model: ProfileModel, patch: pytest.MonkeyPatch) -> None:
    """An adapter whose output no longer carries a gradient."""
    own = model.logits

    def deaf(*arguments: Any) -> torch.Tensor:
        return own(*arguments).detach() + model.head.bias

    patch.setattr(model, "logits", deaf)


def _ignored(model: ProfileModel, patch: pytest.MonkeyPatch) -> None:
    """PEFT leaves the adapter out of the forward pass."""
    assert isinstance(model.encoder, PeftModel)
    for module in model.encoder.modules():
        if hasattr(module, "lora_A"):
            patch.setattr(module, "_disable_adapters", True)


def _frozen(model: ProfileModel, patch: pytest.MonkeyPatch) -> None:
    """PEFT no longer makes every factor trainable."""
    first = next(name for name in model._trainables if "lora_A" in name)
    patch.delitem(model._trainables, first)
    patch.delitem(model._start, first)


def _sampler(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[ProfileModel, pytest.MonkeyPatch], None]:
    """Opacus's per-sample gradients of linear layers, changed."""

    def plant(model: ProfileModel, patch: pytest.MonkeyPatch) -> None:
        own = GradSampleModule.GRAD_SAMPLERS[nn.Linear]

        def changed(layer: nn.Linear, *arguments: Any) -> dict[nn.Parameter, torch.Tensor]:
            return {parameter: change(sample) for parameter, sample in own(layer, *arguments).items()}

        patch.setitem(GradSampleModule.GRAD_SAMPLERS, nn.Linear, changed)

    return plant


def _optimizer(step: Callable[..., Any]) -> Callable[[ProfileModel, pytest.MonkeyPatch], None]:
    def plant(model: ProfileModel, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(UserDPOptimizer, "step", step)

    return plant


def _uphill(optimizer: UserDPOptimizer, closure: object = None) -> None:
    optimizer.pre_step()
    for parameter in optimizer.params:
        parameter.grad = -parameter.grad
    optimizer.original_optimizer.step()


def _saved(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[ProfileModel, pytest.MonkeyPatch], None]:
    """PEFT writes other names or other values."""

    def plant(model: ProfileModel, patch: pytest.MonkeyPatch) -> None:
        own = PeftModel.save_pretrained

        def save(self: PeftModel, folder: str, **named: Any) -> None:
            own(self, folder, **named)
            file = Path(folder) / "adapter_model.safetensors"
            write_arrays(file, change(read_arrays(file)))

        patch.setattr(PeftModel, "save_pretrained", save)

    return plant


FAULTS: dict[str, tuple[Callable[[ProfileModel, pytest.MonkeyPatch], None], str]] = {
    "detached": (_detached, "no gradient reaches .*lora"),
    "ignored": (_ignored, "no gradient reaches .*lora"),
    "frozen": (_frozen, "5 matrices would be trained, not the card's 6"),
    "samples doubled": (_sampler(lambda sample: 2 * sample), "not those of the records alone"),
    "samples of other records": (_sampler(lambda sample: sample.flip(0)), "not those of the records alone"),
    "samples averaged": (_sampler(lambda sample: sample.mean(0).expand_as(sample)), "not those of the records alone"),
    "samples zero": (_sampler(torch.zeros_like), "not those of the records alone"),
    "step does nothing": (_optimizer(lambda *_, **__: None), "does not move .* against its gradient"),
    "step goes up": (_optimizer(_uphill), "does not move .* against its gradient"),
    "names changed": (
        _saved(lambda arrays: {name.replace("lora_A", "lora_X"): value for name, value in arrays.items()}),
        "cannot be loaded again",
    ),
    "one left out": (_saved(lambda arrays: dict(list(arrays.items())[1:])), "cannot be loaded again"),
    "values changed": (_saved(lambda arrays: {name: 2 * value for name, value in arrays.items()}), "comes back"),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, model = make()
    plant, told = FAULTS[fault]
    plant(model, monkeypatch)
    with pytest.raises(SelfTestError, match=told):
        trainer.self_test()
