"""The Open Inference Protocol over HTTP, JSON with the binary extension."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedprofile.client.given import GivenError, Wrong
from fedprofile.client.serving.federation import Federation
from fedprofile.client.serving.http import SCHEMAS, error_responses
from fedprofile.client.serving.inference import (
    Inferred,
    UnknownModelError,
    check_input,
    find_model,
    infer,
    model_metadata,
    server_metadata,
)
from fedprofile.client.serving.inference_binary import check_count, packed, unpacked
from fedprofile.client.serving.service import Service

HEALTH = ("/v2/health/live", "/v2/health/ready")
"""Paths that say nothing but that the server runs, and so need no token."""

HEADER_LENGTH = "Inference-Header-Content-Length"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _InputParameters(_Part):
    binary_data_size: int | None = Field(default=None, ge=0)


class _OutputParameters(_Part):
    binary_data: bool = False


class _RequestParameters(_Part):
    binary_data_output: bool = False


class _Input(_Part):
    name: str
    datatype: str
    shape: list[Annotated[int, Field(ge=0)]]
    parameters: _InputParameters = _InputParameters()
    data: list[str] | None = None


class _Output(_Part):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Infer(_Part):
    id: str = Field(default="", max_length=256)
    parameters: _RequestParameters = _RequestParameters()
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] = []


def body_schemas() -> dict[str, Any]:
    """The schemas that the protocol's paths refer to in OpenAPI, by name."""
    schema = _Infer.model_json_schema(ref_template=SCHEMAS)
    parts: dict[str, Any] = schema.pop("$defs")
    return parts | {_Infer.__name__: schema}


class _Route(APIRoute):
    """Says errors as the protocol does: its own status, and one sentence."""

    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response: Response = await handle(request)
            except GivenError as error:
                return JSONResponse({"error": str(error)}, 400)
            except UnknownModelError:
                return JSONResponse({"error": "no model of this name and version is here; see GET /federations."}, 404)
            return response

        return handled


def add_inference(app: FastAPI, service: Service) -> None:
    """Add the protocol's paths.

    Args:
        app: From `build_app`.
        service: Answers.
    """
    router = APIRouter(prefix="/v2", route_class=_Route)

    @router.get("/health/live", openapi_extra={"security": []})
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @router.get("/health/ready", openapi_extra={"security": []})
    async def ready() -> dict[str, bool]:
        """Whether every model is there."""
        return {"ready": True}

    @router.get("", responses=error_responses(401))
    async def server() -> dict[str, Any]:
        """The server's name and version."""
        return server_metadata()

    for prefix in ("/models/{name}", "/models/{name}/versions/{version}"):
        _add_model(router, prefix, service)
    app.include_router(router)


def _add_model(router: APIRouter, prefix: str, service: Service) -> None:
    kinds: dict[str, dict[str, Any]] = {"name": {"enum": list(service.federations)}, "version": {"pattern": r"^\d+$"}}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"} | kind}
        for name, kind in kinds.items()
        if f"{{{name}}}" in prefix
    ]
    extra: dict[str, Any] = {"parameters": parameters}
    schema = {"$ref": SCHEMAS.format(model=_Infer.__name__)}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}

    @router.get(prefix, responses=error_responses(401, 404), openapi_extra=extra)
    async def metadata(request: Request) -> dict[str, Any]:
        """What a model takes and gives."""
        return model_metadata(_named(service, request))

    @router.get(f"{prefix}/ready", responses=error_responses(401, 404), openapi_extra=extra)
    async def ready(request: Request) -> dict[str, Any]:
        """Whether a model is there."""
        return {"name": _named(service, request).name, "ready": True}

    @router.post(
        f"{prefix}/infer",
        responses=error_responses(400, 401, 404, 408, 413, 503),
        openapi_extra=extra | {"requestBody": body},
    )
    async def run(request: Request) -> Response:
        """Ask a model."""
        federation = _named(service, request)
        asked, binary = _parsed(await request.body(), request.headers.get(HEADER_LENGTH))
        given = asked.inputs[0]
        count = check_input([(given.name, given.datatype, given.shape)], service.batcher.most)
        if given.data is not None:
            elements = [text.encode("utf-8", "surrogatepass") for text in given.data]
        elif given.parameters.binary_data_size == len(binary):
            elements = unpacked(binary)
        else:
            raise GivenError([Wrong("inputs.request", "holds neither data nor as many bytes as binary_data_size says")])
        inferred = await infer(
            service, federation, check_count(elements, count), [output.name for output in asked.outputs]
        )
        return _response(federation, asked, inferred)


def _named(service: Service, request: Request) -> Federation:
    return find_model(service, request.path_params["name"], request.path_params.get("version", ""))


def _parsed(body: bytes, header_length: str | None) -> tuple[_Infer, bytes]:
    """The JSON and what follows it."""
    length = len(body)
    if header_length is not None:
        length = int(header_length) if header_length.isascii() and header_length.isdigit() else -1
        if not 0 <= length <= len(body):
            raise GivenError([Wrong(HEADER_LENGTH, "is not a number of bytes within the body")])
    try:
        return _Infer.model_validate_json(body[:length]), body[length:]
    except ValidationError as error:
        # A key that is not known is the sender's text, and so is what pydantic says of JSON that is none.
        places = [
            ".".join(
                str(part) for part in (problem["loc"][:-1] if problem["type"] == "extra_forbidden" else problem["loc"])
            )
            for problem in error.errors(include_input=False)
        ]
        wrong = [Wrong(place or "request", "is not as the protocol says") for place in dict.fromkeys(places)]
        raise GivenError(wrong) from None


def _response(federation: Federation, asked: _Infer, inferred: Inferred) -> Response:
    wanted = {output.name: output.parameters.binary_data for output in asked.outputs}
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for tensor in inferred.outputs:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.values.shape),
        }
        if wanted.get(tensor.name, asked.parameters.binary_data_output):
            behind.append(packed(tensor))
            output["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            values = tensor.values.ravel().tolist()
            output["data"] = [value.decode() for value in values] if tensor.datatype == "BYTES" else values
        outputs.append(output)
    answer = {"model_name": federation.name, "model_version": inferred.version, "outputs": outputs}
    text = json.dumps(answer | ({"id": asked.id} if asked.id else {})).encode()
    if not behind:
        return Response(text, media_type="application/json")
    told = {HEADER_LENGTH: str(len(text))}
    return Response(b"".join([text, *behind]), media_type="application/octet-stream", headers=told)
