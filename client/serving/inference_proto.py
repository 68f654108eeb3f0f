"""The messages of the Open Inference Protocol over gRPC, in a descriptor pool of their own.

They are those of `open_inference_grpc.proto` of the protocol, https://github.com/kserve/open-inference-protocol: every
message's fields are numbered from 1 in the order given here. In the pool that all of a process shares they would
collide with a client library's own, such as tritonclient's.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Each takes its name's `Request` and gives its name's `Response`."""

_NAMED = ("string name", "string version")
_TENSOR = ("string name", "string datatype", "*int64 shape")
_CONTENTS = ("map parameters", "InferTensorContents contents")

_MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready",),
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": ("bool ready",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (*_NAMED, "*string extensions"),
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": (
        "string name",
        "*string versions",
        "string platform",
        "*ModelMetadataResponse.TensorMetadata inputs",
        "*ModelMetadataResponse.TensorMetadata outputs",
    ),
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelInferRequest": (
        "string model_name",
        "string model_version",
        "string id",
        "map parameters",
        "*ModelInferRequest.InferInputTensor inputs",
        "*ModelInferRequest.InferRequestedOutputTensor outputs",
        "*bytes raw_input_contents",
    ),
    "ModelInferRequest.InferInputTensor": (*_TENSOR, *_CONTENTS),
    "ModelInferRequest.InferRequestedOutputTensor": ("string name", "map parameters"),
    "ModelInferResponse": (
        "string model_name",
        "string model_version",
        "string id",
        "map parameters",
        "*ModelInferResponse.InferOutputTensor outputs",
        "*bytes raw_output_contents",
    ),
    "ModelInferResponse.InferOutputTensor": (*_TENSOR, *_CONTENTS),
    "InferParameter": (
        "bool bool_param",
        "int64 int64_param",
        "string string_param",
        "double double_param",
        "uint64 uint64_param",
    ),
    "InferTensorContents": (
        "*bool bool_contents",
        "*int32 int_contents",
        "*int64 int64_contents",
        "*uint32 uint_contents",
        "*uint64 uint64_contents",
        "*float fp32_contents",
        "*double fp64_contents",
        "*bytes bytes_contents",
    ),
}
"""Fields by message, outer ones first: a `*` is repeated, `map` goes from names to `InferParameter`."""


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="open_inference_grpc.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        made[name] = message
        for number, text in enumerate(fields, start=1):
            _add_field(message, name, number, *text.split())
    parameter = made["InferParameter"]
    parameter.oneof_decl.add(name="parameter_choice")
    for field in parameter.field:
        field.oneof_index = 0
    service = file.service.add(name=SERVICE.removeprefix(f"{PACKAGE}."))
    for method in METHODS:
        whole = f".{PACKAGE}.{method}"
        service.method.add(name=method, input_type=f"{whole}Request", output_type=f"{whole}Response")
    return file


def _add_field(message: DescriptorProto, whole: str, number: int, kind: str, name: str) -> None:
    repeated = kind.startswith("*") or kind == "map"
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind == "map":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", 1, "string", "key")
        _add_field(entry, "", 2, "InferParameter", "value")
        kind = f"{whole}.{entry.name}"
    kind = kind.removeprefix("*")
    if kind[0].isupper():
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


POOL = DescriptorPool()
POOL.Add(_file())


def message(name: str) -> Any:
    """A message's class.

    Args:
        name: Within the package.
    """
    return GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
