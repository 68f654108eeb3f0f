"""A tenant as `start` opens it: strict before anything is sent, and then answering whatever one user's rows are."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file, save_file
from tests.client.rewritten import rewrite
from transformers import AutoTokenizer

from fedprofile.client.agreement import agree, read_agreement
from fedprofile.client.directory import TenantDirectory, write_model
from fedprofile.client.enrolment import make_key
from fedprofile.client.records import ExampleSource
from fedprofile.client.segments import plan_segment
from fedprofile.client.site import Site, open_site
from fedprofile.common.card import FederationCard
from fedprofile.common.enrolment import Invite
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.messages import Kind, Request, content_of
from fedprofile.common.modeling.base import hash_base
from fedprofile.common.modeling.prefix_cache import ActivationError, PrefixCache
from fedprofile.server.certificates import new_authority

HEADER = "who,when,month,visits,device,action,item,bought\n"
ROWS = HEADER + "".join(f"u{number},2026-01-0{number},w1,3,phone,viewed,w{number},no\n" for number in range(1, 9))
TENANT = """
[source]
kind = "csv"
path = "visits.csv"
[columns]
user = "who"
time = "when"
label = "bought"
[population]
name = "shop"
declared_users = 50
ledger = "../populations/shop.sqlite"
[budget]
epsilon = 8.0
[run]
epsilon = 4.0
[base]
path = "{base}"
"""


@pytest.fixture(scope="module")
def place(
    tiny_base: Path, card_data: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> TenantDirectory:
    """A directory that has joined, over a base of finite weights that give nothing finite for one word, w59."""
    folder = tmp_path_factory.mktemp("site")
    base = Path(shutil.copytree(tiny_base, folder / "base"))
    weights = load_file(base / "model.safetensors")
    [table] = [name for name in weights if "word_embeddings" in name]
    weights[table][AutoTokenizer.from_pretrained(base).convert_tokens_to_ids("w59")] = 3e38
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    card = FederationCard.model_validate(
        card_data(task={"group": None}, base=hash_base(base, "example/evil").model_dump())
    )
    place = TenantDirectory(folder / "shop")
    place.root.mkdir(mode=0o700)
    make_key(place.key)
    authority = new_authority("test").certificate_pem().decode()
    invite = Invite(
        tenant="shop", address="localhost:1", ca=authority, card=card.canonical().decode(), card_hash=card.hash
    )
    write_model(place.invite, invite)
    place.tenant_file.write_text(TENANT.format(base=base))
    tenant = place.read_tenant_file()
    agree(place, invite=invite, card=card, tenant=tenant, plan=plan_segment(card, tenant), registry=None)
    return place


def _open(place: TenantDirectory) -> Site:
    agreement = read_agreement(place)
    examples = ExampleSource(agreement.tenant, agreement.card, place.root)
    return open_site(place, agreement, examples, lambda line: None, registry=None)


def _asked(site: Site, number: int, kind: Kind = Kind.TRAIN) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    request = Request(kind, site.card.hash, number, site.model.initial_arrays())
    message = Message(content_of(request), dst_node_id=5, message_type=kind.value)
    message.metadata.__dict__["_message_id"] = f"message-{number}"
    return message


@pytest.mark.parametrize(
    ("row", "error", "told"),
    [
        ("alice,2026-01-01,w1,913.55 EUR,phone,viewed,w1,no\n", DataError, "line 10, column 'visits'"),
        ("alice,2026-01-01,w59,3,phone,viewed,w1,no\n", ActivationError, "not finite"),
    ],
)
def test_the_start_is_refused_before_anything_is_sent(
    place: TenantDirectory, row: str, error: type[Exception], told: str
) -> None:
    (place.root / "visits.csv").write_text(ROWS + row)
    with pytest.raises(error, match=told) as caught:
        _open(place)
    assert "alice" not in str(caught.value) and "913" not in str(caught.value) and "w59" not in str(caught.value)


def test_a_run_with_other_noise_than_was_frozen_is_refused(place: TenantDirectory) -> None:
    """Before its first reservation only the directory itself knows better than a ledger that was rewritten."""
    (place.root / "visits.csv").write_text(ROWS)
    ledger = place.ledger_path(place.read_segment().ledger)
    whole = ledger.read_bytes()
    rewrite(ledger, "UPDATE segments SET noise_multiplier = 0.01")
    with pytest.raises(ConfigError, match="another noise than was frozen at join"):
        _open(place)
    ledger.write_bytes(whole)


def test_while_it_runs_one_users_rows_stop_nothing(place: TenantDirectory, caplog: pytest.LogCaptureFixture) -> None:
    (place.root / "visits.csv").write_text(ROWS)
    site = _open(place)
    try:
        changed = [
            ROWS + "alice,2026-01-01,w59,3,phone,viewed,w1,no\n",
            ROWS + "alice,2026-01-01,w1,913.55 EUR,phone,viewed,w1,no\n",
        ]
        for number, text in enumerate(changed, start=1):
            (place.root / "visits.csv").write_text(text)
            with caplog.at_level(logging.INFO):
                assert site.answer(_asked(site, number)).has_content()
    finally:
        site.close()
    told = [record.getMessage() for record in caplog.records if record.name.startswith("fedprofile.client")]
    assert len(told) == 2
    assert "activations are not finite for 1 users" in told[0] and "1 users and 1 rows are left out" in told[1]
    assert "alice" not in caplog.text and "913" not in caplog.text


def test_a_user_who_is_gone_leaves_the_cache(place: TenantDirectory) -> None:
    rows = [f"u{number},2026-01-01,w{number},3,phone,viewed,w1,no\n" for number in range(1, 9)]
    (place.root / "visits.csv").write_text(HEADER + "".join(rows))
    site = _open(place)
    try:

        def stored() -> int:
            return len(PrefixCache(site.model, folder=place.cache, secret=place.secret()))

        assert stored() == 8, "each user's text is another"
        (place.root / "visits.csv").write_text(HEADER + "".join(rows[1:]))
        assert site.answer(_asked(site, 2, Kind.EVALUATE)).has_content()
        assert stored() == 7
    finally:
        site.close()
