"""The two listeners over real TLS: who is let in, where, and with how much."""

import http.client
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse, StartRunRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest

from fedprofile.common.errors import InputError
from fedprofile.server.certificates import new_authority
from fedprofile.server.fleet import Fleet
from fedprofile.server.fleet_calls import PATHS

if TYPE_CHECKING:
    from tests.server.conftest import Server

MakeServer = Callable[..., "Server"]
Answers = Callable[[float], Any]
PROTOBUF = {"content-type": "application/protobuf"}


@pytest.fixture
def server(make_server: MakeServer) -> "Server":
    return make_server().start()


def _public(server: "Server") -> httpx.Client:
    context = ssl.create_default_context(cafile=str(server.directory.ca))
    return httpx.Client(base_url=f"https://{server.address}", verify=context, trust_env=False)


def _admin(server: "Server", token: str | None = None) -> httpx.Client:
    headers = {} if token is None else {"authorization": token}
    port = server.directory.settings().admin_port
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False)


def test_every_public_path_but_the_fleet_calls_and_health_is_404(server: "Server") -> None:
    others = [
        "/", "/docs", "/openapi.json", "/redoc", "/v1", "/v1/fleet", "/v1/fleet/", "/v1/fleet/none",
        "/v1/fleet/get-fab", "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/../control/list-runs",
        "/v1/fleet//pull-messages", "/v1/fleet/pull-messages/", "/V1/FLEET/pull-messages", "/health/", "/metrics",
        "/v1/control/list-runs", "/v1/control/start-run", "/v1/control/register-node", "/v1/control/get-login-details",
        "/v1/runtime/acquire-task", "/v1/runtime/push-messages", "/v1/runtime/pull-object",
        "/v1/fleet/%2e%2e/control/list-runs", "/v1/control%2flist-runs",
    ]  # fmt: skip
    with _public(server) as client:
        assert client.get("/health").status_code == 200
        for path in others:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
                assert client.request(method, path).status_code == 404, (method, path)
        for path in PATHS:
            assert client.get(path).status_code == 405
            assert client.post(path).status_code == 415
            assert client.post(path, headers=PROTOBUF).status_code == 401
            assert client.post(path, headers=PROTOBUF, content=b"\xff\xff").status_code == 400


def test_the_raw_path_is_what_counts(server: "Server") -> None:
    settings = server.directory.settings()
    context = ssl.create_default_context(cafile=str(server.directory.ca))
    for path in ("/v1/fleet/../control/list-runs", "//v1/control/list-runs", "/v1/fleet/x?/v1/control", "/%68ealth2"):
        connection = http.client.HTTPSConnection("localhost", settings.port, context=context)
        connection.putrequest("POST", path, skip_host=False)
        connection.putheader("content-length", "0")
        connection.endheaders()
        assert connection.getresponse().status == 404
        connection.close()


def test_the_admin_listener_without_the_token_is_401(server: "Server") -> None:
    paths = [
        "/", "/docs", "/openapi.json", "/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/get-nodes",
        "/v1/runtime/acquire-task", "/v1/fleet/pull-messages", "/v1/control/get-login-details", "/none",
    ]  # fmt: skip
    for token in (None, "Bearer wrong", "Bearer", "operator-token", "Basic operator-token", "bearer operator-token"):
        with _admin(server, token) as client:
            assert client.get("/health").status_code == 200
            for path in paths:
                for method in ("GET", "POST"):
                    assert client.request(method, path).status_code == 401, (token, method, path)


def test_with_the_token_the_control_api_answers_and_the_runtime_api_wants_its_own_secret(
    server: "Server", make_server: MakeServer, add: Answers
) -> None:
    tenant = server.enrol("acme", add(1.0))
    server.until(lambda: any(node.name == "acme" for node in _nodes(server).nodes_info))
    tenant.activate()
    with _admin(server, "Bearer operator-token") as client:
        for request, path in ((AcquireTaskRequest(), "acquire-task"), (GetNodesRequest(), "get-nodes")):
            answer = client.post(f"/v1/runtime/{path}", content=request.SerializeToString(), headers=PROTOBUF)
            assert answer.status_code == 401
        # No bundle is ever run: one that the operator sends by mistake is refused as it is none.
        answer = client.post("/v1/control/start-run", content=StartRunRequest().SerializeToString(), headers=PROTOBUF)
        assert answer.status_code >= 400


def _nodes(server: "Server") -> ListNodesResponse:
    with _admin(server, "Bearer operator-token") as client:
        answer = client.post("/v1/control/list-nodes", content=ListNodesRequest().SerializeToString(), headers=PROTOBUF)
    assert answer.status_code == 200
    return ListNodesResponse.FromString(answer.content)


def test_the_admin_listener_is_on_loopback_only(server: "Server") -> None:
    listening = Path("/proc/net/tcp").read_text()
    port = f"{server.directory.settings().admin_port:04X}"
    bound = [line.split()[1] for line in listening.splitlines()[1:] if line.split()[3] == "0A"]
    assert [place for place in bound if place.endswith(f":{port}")] == [f"0100007F:{port}"]


def test_a_body_beyond_the_limit_is_413_however_it_is_sent(make_server: MakeServer) -> None:
    server = make_server()
    settings = server.directory.settings_file
    settings.write_text(settings.read_text() + "max_body_mib = 6\n")
    server.start()
    piece = b"x" * (1 << 20)
    with _public(server) as client:
        path = "/v1/fleet/push-object"
        assert client.post(path, content=piece * 7, headers=PROTOBUF).status_code == 413
        chunked = client.post(path, content=iter([piece] * 7), headers=PROTOBUF)
        assert "content-length" not in chunked.request.headers
        assert chunked.status_code == 413
        assert client.post(path, content=piece * 5, headers=PROTOBUF).status_code == 401


def test_only_the_federations_own_certificate_is_trusted(server: "Server", tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.crt"
    foreign.write_bytes(new_authority("other").certificate_pem())
    for verify in (ssl.create_default_context(cafile=str(foreign)), ssl.create_default_context()):
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://{server.address}/health", verify=verify, trust_env=False)
    context = ssl.create_default_context(cafile=str(server.directory.ca))
    port = server.directory.settings().port
    assert httpx.get(f"https://127.0.0.1:{port}/health", verify=context, trust_env=False).status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{server.address}/health", trust_env=False)


def test_an_unknown_key_is_refused_everywhere(server: "Server", add: Answers) -> None:
    stranger = server.tenant(ec.generate_private_key(ec.SECP384R1()), add(1.0))
    with pytest.raises(httpx.HTTPStatusError) as refused:
        stranger.activate()
    assert refused.value.response.json()["code"] == 2004
    with pytest.raises(httpx.HTTPStatusError) as refused:
        stranger.pull()
    assert refused.value.response.status_code == 401


def test_a_key_cannot_speak_for_another_node(server: "Server", add: Answers) -> None:
    one, two = server.enrol("one", add(1.0)), server.enrol("two", add(1.0))
    server.until(lambda: len(_nodes(server).nodes_info) == 2)
    one.activate(), two.activate()
    with pytest.raises(httpx.HTTPStatusError) as refused:
        one.client.PullMessages(PullMessagesRequest(node=Node(node_id=two.node_id)))
    assert refused.value.response.status_code == 401
    forged = MessageProto(metadata=Metadata(src_node_id=two.node_id, message_type="train"))
    tree = ObjectTree(object_id="a" * 64)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        one.client.PushMessages(
            PushMessagesRequest(node=Node(node_id=one.node_id), messages_list=[forged], message_object_trees=[tree])
        )
    assert refused.value.response.status_code == 403


def test_a_run_of_another_process_is_over(server: "Server", add: Answers) -> None:
    """What a tenant was asked by a process that died: it is told at once, and not to try again."""
    one = server.enrol("one", add(1.0))
    server.until(one.can_activate)
    node, run_id = Node(node_id=one.node_id), 4711
    metadata = Metadata(run_id=run_id, src_node_id=one.node_id, message_type="train")
    push = PushMessagesRequest(
        node=node,
        messages_list=[MessageProto(metadata=metadata)],
        message_object_trees=[ObjectTree(object_id="a" * 64)],
    )
    calls: list[Callable[[], object]] = [
        lambda: one.client.PushMessages(push),
        lambda: one.client.PullObject(PullObjectRequest(node=node, run_id=run_id, object_id="a" * 64)),
        lambda: one.client.PushObject(PushObjectRequest(node=node, run_id=run_id, object_id="a" * 64)),
        lambda: one.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id="a" * 64)
        ),
        lambda: one.client.GetRun(GetRunRequest(node=node, run_id=run_id)),
    ]
    for call in calls:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            call()
        assert refused.value.response.status_code == 403


def test_a_message_of_too_many_parts_is_refused(server: "Server", add: Answers) -> None:
    tenant = server.enrol("acme", add(1.0))
    server.until(lambda: _nodes(server).nodes_info)
    tenant.activate()
    envelope = MessageProto(metadata=Metadata(src_node_id=tenant.node_id, message_type="train"))
    tree = ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id=f"{n:064x}") for n in range(5000)])
    node = Node(node_id=tenant.node_id)
    for trees, status in (([tree], 413), ([], 400), ([tree, tree], 400)):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            tenant.client.PushMessages(
                PushMessagesRequest(node=node, messages_list=[envelope], message_object_trees=trees)
            )
        assert refused.value.response.status_code == status


@pytest.mark.parametrize("taken", ["port", "admin_port"])
def test_a_taken_port_is_one_sentence(server: "Server", tmp_path: Path, taken: str) -> None:
    from tests.server.conftest import free_ports

    settings, paths = server.directory.settings(), server.directory
    ports = dict(zip(("port", "admin_port"), free_ports(2), strict=True)) | {taken: getattr(settings, taken)}
    fleet = Fleet(
        host="127.0.0.1", certificate=paths.certificate, key=paths.key, operator_token="x", largest_body=1, **ports
    )
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1 port {ports[taken]} .*in use"):
        fleet.start(timeout=5)
