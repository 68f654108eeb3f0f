"""What the server sees and computes, against plain loops and closed forms."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from tests.modeling_fixtures import MakeModel

from fedprofile.client.sampling import TenantRecords
from fedprofile.common.config import validate
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.audit.attack import Attacker, released_sum, shares
from fedprofile.simulations.audit.canaries import audited_card, fair_coins, joined, make_canaries, planted
from fedprofile.simulations.audit.findings import Finding, Guesses, guess, judge
from fedprofile.simulations.audit.membership import Estimate, Membership, membership
from fedprofile.simulations.audit.noise_size import NoiseReading, read_noise, residual
from fedprofile.simulations.audit.observed import Observed, run_observed
from fedprofile.simulations.audit.spec import CanarySpec
from fedprofile.simulations.federation import SimulatedTenant

Records = Callable[..., EncodedRecords]
SGD = {"rounds": 2, "local_steps": 1, "optimizer": "sgd", "learning_rate": 0.1, "head_learning_rate": 0.5}


def _tenant(name: str, records: EncodedRecords) -> SimulatedTenant:
    data = {
        "source": {"kind": "csv", "path": "visits.csv"},
        "columns": {"user": "who", "label": "bought"},
        "population": {"name": name, "declared_users": 20 if name == "one" else 60},
        "budget": {"epsilon": 8.0, "delta": 1e-4},
        "run": {"epsilon": 8.0, "delta": 1e-4},
        "privacy": {"sample_rate": 1.0, "clip_norm": 0.5},
    }
    return SimulatedTenant(name, validate(data, TenantFile, "tenant.toml"), TenantRecords(records, records))


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> ProfileModel:
    return make_model(training=SGD, evaluation={"when": "never"})


@pytest.fixture
def tenants(model: ProfileModel, make_records: Records) -> list[SimulatedTenant]:
    return [_tenant(name, make_records(model, 12, seed=place)) for place, name in enumerate(("one", "two"))]


@pytest.fixture
def observed(model: ProfileModel, tenants: list[SimulatedTenant]) -> Observed:
    return run_observed(model.card, model, PrefixCache(model), tenants, seed=0, noise=False, tokens_at_once=128)


def _user_gradients(model: ProfileModel, arrays: dict[str, Any], records: EncodedRecords, clip: float) -> Any:
    """One backward pass for each record, and nothing shared."""
    model.set_arrays(arrays)
    rows = []
    for place in range(len(records)):
        model.zero_grad()
        logits = model([records.tokens[place]], records.features[[place]])
        torch.nn.functional.cross_entropy(logits, torch.tensor([int(records.labels[place])])).backward()
        parts = [value.grad for value in model.trainables().values()]
        rows.append(torch.cat([torch.zeros(0) if part is None else part.ravel() for part in parts]).double().numpy())
    model.zero_grad(set_to_none=True)
    means = [
        np.mean([rows[place] for place in np.flatnonzero(records.user == user)], axis=0)
        for user in range(len(records.users))
    ]
    return np.stack([mean * min(1.0, clip / np.linalg.norm(mean)) for mean in means])


def test_the_server_sees_each_tenants_update_and_it_is_the_sum_of_clipped_gradients(
    model: ProfileModel, tenants: list[SimulatedTenant], observed: Observed
) -> None:
    assert sorted(observed.transcript.adapters) == [1, 2]
    for tenant in tenants:
        settings = observed.settings[tenant.name]
        updates = observed.transcript.updates[observed.nodes[tenant.name]]
        for number, arrays in observed.transcript.adapters.items():
            expected = _user_gradients(model, arrays, tenant.records.training, 0.5).sum(axis=0)
            found = released_sum(updates[number], settings)
            np.testing.assert_allclose(found, expected, atol=2e-3 * float(np.linalg.norm(expected)))


def test_what_passed_adds_up_to_the_final_adapter(model: ProfileModel, observed: Observed) -> None:
    transcript = observed.transcript
    for number, after in ((1, transcript.adapters[2]), (2, observed.arrays)):
        for name, before in transcript.adapters[number].items():
            moved = (20 * transcript.updates[1][number][name] + 60 * transcript.updates[2][number][name]) / 80
            np.testing.assert_allclose(after[name], before + moved, atol=1e-6)


def test_ledgers_claim_whether_or_not_there_is_noise(observed: Observed) -> None:
    assert all(claim.epsilon == pytest.approx(8.0, rel=0.01) for claim in observed.claims.values())


def test_scores_are_shares_of_gradients_of_the_attackers_own(
    model: ProfileModel, tenants: list[SimulatedTenant], observed: Observed, make_records: Records
) -> None:
    members = tenants[0].records.training
    candidates = joined(members, make_records(model, 12, seed=77))
    found = Attacker(model, None).from_updates(observed, "one", candidates).scores
    expected = np.zeros(24)
    for number, arrays in observed.transcript.adapters.items():
        gradients = _user_gradients(model, arrays, candidates, 0.5)
        settings = observed.settings["one"]
        expected += shares(released_sum(observed.transcript.updates[1][number], settings), gradients, settings)
    assert stats.spearmanr(found, expected).statistic > 0.95
    assert np.mean(found[:12, None] > found[None, 12:]) > 0.9


def test_shares_are_exact_without_noise_and_inner_products_with_much(observed: Observed) -> None:
    draw, settings = np.random.default_rng(0), observed.settings["one"]
    gradients = draw.standard_normal((30, 400)) / 20 + draw.standard_normal(400) / 5
    taken = (draw.random(30) < 0.5).astype(float)
    np.testing.assert_allclose(shares(taken @ gradients, gradients, settings), taken, atol=0.02)
    noised = taken @ gradients + 1e4 * draw.standard_normal(400)
    found, inner = shares(noised, gradients, settings), gradients @ noised
    np.testing.assert_allclose(found / np.linalg.norm(found), inner / np.linalg.norm(inner), atol=1e-3)


def test_the_final_adapters_score_is_the_gain_in_loss(model: ProfileModel, observed: Observed) -> None:
    records = make_canaries(model, 5, 0, 4, seed=0)
    found = Attacker(model, None).from_final(observed, records)
    for user in range(5):
        losses = []
        for arrays in (model.initial_arrays(), observed.arrays):
            model.set_arrays(arrays)
            logits = model([records.tokens[user]], records.features[[user]]).detach()
            losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor([int(records.labels[user])]))))
        assert found[user] == pytest.approx(losses[0] - losses[1], abs=1e-5)


def test_canaries_have_values_of_their_own_and_only_the_included_are_planted(
    make_model: MakeModel, tenants: list[SimulatedTenant]
) -> None:
    plain = make_model()
    card = audited_card(plain.card, columns=2, count=7)
    assert card.features.width == plain.card.features.width + 14
    assert audited_card(plain.card, 0, 7) == plain.card
    sections = {"features": card.features.model_dump(mode="json")}
    canaries = make_canaries(make_model(**sections), 7, 2, words=5, seed=3)
    np.testing.assert_array_equal(canaries.features.sum(axis=1), 2)
    np.testing.assert_array_equal(canaries.features @ canaries.features.T, 2 * np.eye(7))
    assert all(len(tokens) == 7 for tokens in canaries.tokens)
    included = np.array([True, False, True, False, False, False, True])
    before, found = tenants[0].records, planted(tenants[0], make_canaries(plain, 7, 0, 5, 3), included).records
    assert found.training.users == (*before.training.users, "canary-0", "canary-2", "canary-6")
    assert found.training.user[-3:].tolist() == [12, 13, 14] and found.evaluation is before.evaluation


def test_canaries_without_columns_contradict_their_numbers(make_model: MakeModel) -> None:
    canaries = make_canaries(make_model(), 50, 0, words=5, seed=0)
    assert {(float(row[0]), int(label)) for row, label in zip(canaries.features, canaries.labels, strict=True)} == {
        (0.0, 1),
        (1.0, 0),
    }


def test_coins_are_fair_and_each_runs_own() -> None:
    coins = fair_coins(10_000, 0, "shop", "1.0")
    assert abs(coins.mean() - 0.5) < 4 * 0.005
    assert abs(np.mean(coins == fair_coins(10_000, 0, "shop", "3.0")) - 0.5) < 4 * 0.005


def test_membership_of_two_normals_has_a_closed_form() -> None:
    draw = np.random.default_rng(0)
    found = membership(draw.standard_normal(4000) + 1, draw.standard_normal(4000), seed=0)
    expected = {"auc": stats.norm.cdf(1 / math.sqrt(2)), 0.01: stats.norm.sf(stats.norm.isf(0.01) - 1)}
    assert found.auc.low < expected["auc"] < found.auc.high and found.auc.high - found.auc.low < 0.03
    rate = found.true_positives[0.01]
    assert rate.low < expected[0.01] < rate.high
    assert found.true_positives[0.001].value < rate.value


@pytest.mark.parametrize(("members", "others"), [(40, 30), (500, 2000), (3, 1)])
def test_membership_is_scikit_learns(members: int, others: int) -> None:
    draw = np.random.default_rng(members)
    # Rounded, so that scores are tied.
    first, second = draw.standard_normal(members).round(1) + 0.5, draw.standard_normal(others).round(1)
    truth, scores = np.repeat([1, 0], [members, others]), np.concatenate([first, second])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    found = membership(first, second, seed=0)
    assert found.auc.value == pytest.approx(roc_auc_score(truth, scores))
    assert {rate: each.value for rate, each in found.true_positives.items()} == {
        rate: pytest.approx(true[false <= rate].max()) for rate in (0.01, 0.001)
    }


def test_guesses_are_at_the_two_ends() -> None:
    spec = CanarySpec(count=10, guesses_in=3, guesses_out=2)
    scores = np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    included = np.array([True, True, False, False, False, False, False, False, True, False])
    found = guess(scores, included, spec, error=0.05, delta=0.0)
    assert (found.guesses, found.right) == (5, 3)
    included[[2, 8]] = True, False
    found = guess(scores, included, spec, error=0.05, delta=0.0)
    assert (found.guesses, found.right) == (5, 5)
    assert found.bound == pytest.approx(-math.log(0.05 ** (-1 / 5) - 1), abs=1e-6)


def _finding(observed: Observed, bound: float, claimed: bool, found: float = 1.0) -> Finding:
    people = Membership(1, 1, Estimate(0.5, 0.4, 0.6), {})
    claim = observed.claims["one"] if claimed else None
    guesses = Guesses(10, 9, bound)
    noise = NoiseReading(1.0, found, found * 0.99, found * 1.01, 10_000) if claimed else None
    return Finding(8.0, "one", 100, 50, 0.95, 1e-4, claim, noise, guesses, guesses, people, people)


@pytest.mark.parametrize(
    ("private", "bare", "outcome"),
    [(2.0, 3.5, "holds"), (8.5, 3.5, "fails"), (8.5, 0.1, "fails"), (2.0, 2.9, "proves nothing")],
)
def test_verdicts(observed: Observed, private: float, bare: float, outcome: str) -> None:
    findings = [_finding(observed, private, claimed=True), _finding(observed, bare, claimed=False)]
    verdict = judge(findings, must_reach=3.0)
    assert verdict.outcome == outcome
    assert (f"{private:.3g}" if outcome == "fails" else f"{bare:.3g}") in verdict.sentence
    assert judge(findings[:1], 3.0).outcome == ("fails" if outcome == "fails" else "proves nothing")


def test_less_noise_than_is_accounted_for_fails_whatever_the_guesses_say(observed: Observed) -> None:
    bare = _finding(observed, 3.5, claimed=False)
    verdict = judge([_finding(observed, 0.5, claimed=True, found=0.95), bare], must_reach=3.0)
    assert verdict.outcome == "fails" and "hold noise of 0.95 (at most 0.9595" in verdict.sentence
    assert judge([_finding(observed, 0.5, claimed=True, found=0.995), bare], must_reach=3.0).outcome == "holds"


@pytest.mark.parametrize(("size", "below"), [(1.0, False), (0.95, True), (0.5, True)])
def test_noise_is_read_off_what_no_candidate_explains(size: float, below: bool) -> None:
    draw, residuals = np.random.default_rng(3), []
    for _ in range(3):
        gradients = draw.standard_normal((40, 6000)) / 10 + draw.standard_normal(6000)
        total = (draw.random(40) < 0.5) @ gradients + 7 * size * draw.standard_normal(6000)
        left = residual(total, gradients, 1e-5)
        assert left is not None and left[1] == 5960
        residuals.append(left)
    found = read_noise(residuals, 7.0, 0.95)
    assert found is not None and found.coordinates == 3 * 5960
    assert found.found == pytest.approx(7 * size, rel=0.03) and found.low < found.found < found.high
    assert found.too_small == below
    assert residual(total[:40], gradients[:, :40], 1e-5) is None and read_noise([], 7.0, 0.95) is None
