"""The Open Inference Protocol, asked by a stock tritonclient over HTTP and gRPC."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.client.serving.conftest import Serve, Served, asked
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from fedprofile.client.serving.inference_proto import METHODS, POOL, message

CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
def served(serve: Serve, directories: Path) -> Served:
    """Both federations."""
    return serve(directories / "buy", directories / "spend", options=("--max-batch", "8", "--max-body", "64"))


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, served: Served) -> Iterator[tuple[Any, Any, dict[str, str]]]:
    """A stock client's module, the client, and what it shows."""
    if request.param == "http":
        module, address = tritonclient.http, served.http.removeprefix("http://")
    else:
        module, address = tritonclient.grpc, served.grpc
    client = module.InferenceServerClient(address)
    yield module, client, {"authorization": f"Bearer {served.token}"}
    client.close()


def _input(module: Any, requests: list[Any], name: str = "request") -> Any:
    texts = [request if isinstance(request, str) else json.dumps(request) for request in requests]
    given = module.InferInput(name, [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
    return given


def test_a_stock_client_gets_what_the_profile_says(triton: tuple[Any, Any, dict[str, str]], served: Served) -> None:
    module, client, headers = triton
    assert client.is_server_live() and client.is_server_ready()
    requests = [asked(seed, events=seed) for seed in range(8)]
    expected = [served.profile(request) for request in requests]
    for name, outputs in (("buy", ["scores", "profile", "label"]), ("spend", ["scores", "profile"])):
        assert client.is_model_ready(name, headers=headers)
        as_json = {"as_json": True} if module is tritonclient.grpc else {}
        metadata = client.get_model_metadata(name, headers=headers, **as_json)
        assert [output["name"] for output in metadata["outputs"]] == outputs
        version = str(expected[0][name]["round"])
        assert metadata["versions"] == [version]
        result = client.infer(name, [_input(module, requests)], headers=headers, model_version=version, request_id="7")
        entries = [json.loads(text) for text in result.as_numpy("profile")]
        assert entries == [one[name] for one in expected]
        scores = result.as_numpy("scores")
        assert scores.dtype == np.float64
        if name == "buy":
            probabilities = [list(one[name]["prediction"]["probabilities"].values()) for one in expected]
            assert [text.decode() for text in result.as_numpy("label")] == [
                one[name]["prediction"]["label"] for one in expected
            ]
        else:
            probabilities = [list(one[name]["prediction"].values()) for one in expected]
        assert scores.tolist() == probabilities
        # One output alone, and the client's other ways of sending and taking.
        other = {} if module is tritonclient.grpc else {"binary_data": False}
        few = client.infer(
            name, [_input(module, requests)], outputs=[module.InferRequestedOutput("scores", **other)], headers=headers
        )
        assert few.as_numpy("scores").tolist() == probabilities and few.as_numpy("profile") is None


def test_json_data_is_taken_as_bytes_are(served: Served) -> None:
    with served.client() as client:
        given = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [json.dumps(asked(1))]}
        found = client.post("/v2/models/buy/infer", json={"id": "a", "inputs": [given]})
        assert found.status_code == 200, found.text
        answer = found.json()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("buy", "1", "a")
        assert json.loads(answer["outputs"][1]["data"][0]) == served.profile(asked(1))["buy"]
        assert answer["outputs"][0]["shape"] == [1, 2]


def _refused(triton: tuple[Any, Any, dict[str, str]], given: Any, **options: Any) -> str:
    _, client, headers = triton
    with pytest.raises(InferenceServerException) as refused:
        client.infer(options.pop("model", "buy"), [given], headers=options.pop("headers", headers), **options)
    assert CANARY not in str(refused.value)
    return str(refused.value)


def test_errors_are_the_protocols_and_hold_no_data(triton: tuple[Any, Any, dict[str, str]]) -> None:
    module = triton[0]
    good = _input(module, [asked()])
    assert "bearer token" in _refused(triton, good, headers={})
    assert "bearer token" in _refused(triton, good, headers={"authorization": f"Bearer {CANARY}"})
    assert "no model of this name" in _refused(triton, good, model=CANARY)
    assert "no model of this name" in _refused(triton, good, model_version="99")
    assert "are not the one input 'request'" in _refused(triton, _input(module, [asked()], name=CANARY))
    assert "one dimension of 1 to 8" in _refused(triton, _input(module, [asked()] * 9))
    assert "is not JSON" in _refused(triton, _input(module, [CANARY]))
    wrong = asked()
    wrong["row"]["visits"] = CANARY
    assert "row.visits: is not a number" in _refused(triton, _input(module, [wrong]))
    number = module.InferInput("request", [1], "FP32")
    number.set_data_from_numpy(np.zeros(1, np.float32))
    assert "is not BYTES" in _refused(triton, number)
    asked_for = [module.InferRequestedOutput(CANARY)]
    assert "are not among scores, profile, label" in _refused(triton, good, outputs=asked_for)
    large = _input(module, ["x" * 70_000])
    assert "larger than" in _refused(triton, large)


@pytest.mark.parametrize(
    ("body", "header", "told"),
    [
        (b"{}", None, "inputs: is not as the protocol says"),
        (b'{"inputs": [], "%s": 1}' % CANARY.encode(), None, "is not as the protocol says"),
        (CANARY.encode(), None, "request: is not as the protocol says"),
        (b"{}", "9", "is not a number of bytes within the body"),
        (b"{}", CANARY, "is not a number of bytes within the body"),
        (
            b'{"inputs": [{"name": "request", "datatype": "BYTES", "shape": [1]}]}',
            None,
            "holds neither data nor as many bytes",
        ),
        (
            b'{"inputs": [{"name": "request", "datatype": "BYTES", "shape": [2], "data": ["{}"]}]}',
            None,
            "holds 1 elements where its shape says 2",
        ),
    ],
)
def test_what_is_not_the_protocols_is_refused(served: Served, body: bytes, header: str | None, told: str) -> None:
    headers = {} if header is None else {"Inference-Header-Content-Length": header}
    with served.client() as client:
        response = client.post("/v2/models/buy/infer", content=body, headers=headers)
    assert response.status_code == 400 and set(response.json()) == {"error"}
    assert told in response.json()["error"] and CANARY not in response.text


@pytest.mark.parametrize("raw", [b"\x05", b"\xff\xff\xff\xff", b"\x02\x00\x00\x00{}\x01"])
def test_elements_whose_lengths_do_not_add_up_are_refused(served: Served, raw: bytes) -> None:
    given = {"name": "request", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    header = {"inputs": [given]}
    text = json.dumps(header).encode()
    told = {"Inference-Header-Content-Length": str(len(text))}
    with served.client() as client:
        response = client.post("/v2/models/buy/infer", content=text + raw, headers=told)
    assert response.status_code == 400 and "lengths do not add up" in response.json()["error"]


def test_the_messages_are_those_of_an_independent_client() -> None:
    for method in METHODS:
        for end in ("Request", "Response"):
            ours, theirs = message(method + end).DESCRIPTOR, getattr(service_pb2, method + end).DESCRIPTOR
            assert _fields(ours) == _fields(theirs)
    assert _fields(message("InferParameter").DESCRIPTOR) == _fields(service_pb2.InferParameter.DESCRIPTOR)
    assert _fields(message("InferTensorContents").DESCRIPTOR) == _fields(service_pb2.InferTensorContents.DESCRIPTOR)


def _fields(descriptor: Any) -> dict[str, Any]:
    """Of a message all that goes over the wire."""
    return {
        field.name: (field.number, field.type, field.is_repeated, field.message_type and _fields(field.message_type))
        for field in descriptor.fields
    }


def test_health_and_reflection_are_the_standard_ones(served: Served) -> None:
    with grpc.insecure_channel(served.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService"):
            status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        ]
        listed, file, checks = reflection.ServerReflectionInfo(iter(questions))
    names = {service.name for service in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    expected = POOL.FindFileContainingSymbol("inference.GRPCInferenceService").serialized_pb
    assert list(file.file_descriptor_response.file_descriptor_proto) == [expected]
    assert checks.file_descriptor_response.file_descriptor_proto
