"""The HTTP interface: `POST /profile`, what a person should know of the models, and the page."""

from collections.abc import Mapping
from http import HTTPStatus
from importlib import resources
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fedprofile.client.given import GivenError
from fedprofile.client.serving.batching import QueueFullError
from fedprofile.client.serving.gate import FAILED
from fedprofile.client.serving.service import LateError, Service

PAGE = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
"""The page's files by path."""

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
SCHEMAS = "#/components/schemas/{model}"
"""How OpenAPI refers to a schema."""

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_WRONG = {
    "type": "object",
    "required": ["error", "problems"],
    "properties": {
        "error": {"type": "string"},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "expected"],
                "properties": {"field": {"type": "string"}, "expected": {"type": "string"}},
            },
        },
    },
}


def build_app(service: Service, *, page: bool, bodies: Mapping[str, Any] = MappingProxyType({})) -> FastAPI:
    """The application; `fedprofile.client.serving.gate.Gate` belongs in front of it.

    Args:
        service: Answers.
        page: Whether the page is there.
        bodies: More schemas, by the names that other paths refer to.

    Returns:
        The application.
    """
    app = FastAPI(title="fedprofile", description="User profiles, at the tenant.", docs_url=None, redoc_url=None)
    schema = service.reader.json_schema(SCHEMAS)
    parts = schema.pop("$defs", {}) | {"ProfileRequest": schema, "Error": _ERROR, "Wrong": _WRONG}
    body = {"required": True, "content": {"application/json": {"schema": _reference("ProfileRequest")}}}
    extra = {"requestBody": body}

    @app.post("/profile", responses=_asked_responses("The profile: an entry of each federation."), openapi_extra=extra)
    async def profile(request: Request) -> JSONResponse:
        """One user's profile, from the row and the events in the request."""
        return JSONResponse(await service.profile(await request.body()))

    if service.explain is not None:

        @app.post("/explain", responses=_asked_responses("What drove each prediction, by event."), openapi_extra=extra)
        async def explain(request: Request) -> JSONResponse:
            """Which events drove the predictions of the same request."""
            return JSONResponse(await service.explanation(await request.body()))

    @app.get("/federations", responses=error_responses(401))
    async def federations() -> JSONResponse:
        """What a person should know of the models."""
        return JSONResponse(service.facts())

    if page:
        for path, name in PAGE.items():
            app.get(path, include_in_schema=False)(_file(name))

    handle_errors(app, service)
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(parts | bodies)
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def handle_errors(app: FastAPI, service: Service) -> None:
    """Make an answer of every error that is the asker's or of the hour."""

    @app.exception_handler(GivenError)
    async def wrong(request: Request, error: GivenError) -> JSONResponse:
        problems = [{"field": one.field, "expected": one.expected} for one in error.wrong]
        return JSONResponse({"error": str(error), "problems": problems}, 422)

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> JSONResponse:
        told = {"Retry-After": str(service.retry_after)}
        return JSONResponse({"error": "too many requests wait here; ask again later."}, 503, told)

    @app.exception_handler(LateError)
    async def late(request: Request, error: LateError) -> JSONResponse:
        told = {"Retry-After": str(service.retry_after)}
        return JSONResponse({"error": "the models did not answer in time; ask again later."}, 503, told)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # The gate logs it.
        return JSONResponse({"error": FAILED}, 500)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": HTTPStatus(error.status_code).phrase.lower()}, error.status_code, error.headers)


def error_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: what errors look like."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        content = {"application/json": {"schema": _reference("Wrong" if code == 422 else "Error")}}
        found[code] = {"description": HTTPStatus(code).phrase, "content": content}
    return found


def _asked_responses(description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description}} | error_responses(401, 408, 413, 422, 503)


def _reference(name: str) -> dict[str, str]:
    return {"$ref": SCHEMAS.format(model=name)}


def _file(name: str) -> Any:
    content = resources.files("fedprofile.client.serving").joinpath("page", name).read_bytes()

    async def read() -> Response:
        return Response(content, media_type=_TYPES[name.rpartition(".")[2]])

    return read
