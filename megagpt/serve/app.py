"""The routes of the server, as an ASGI application."""

import mimetypes
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from importlib import resources

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from megagpt.serve import chat, completions, embeddings
from megagpt.serve.answering import Json
from megagpt.serve.errors import ApiError, ClientGone, as_api_error, routing_error
from megagpt.serve.guard import Guard
from megagpt.serve.interface import ServedModel
from megagpt.serve.service import ABILITIES, Service

ENDINGS = (".html", ".css", ".js", ".svg", ".png")

Endpoint = Callable[[Service, Request], Awaitable[Response]]


def build_app(service: Service, key: str | None = None, hosts: Collection[str] | None = None) -> Starlette:
    """The application that serves the models of `service`; see `Guard` for the key and the hosts."""

    def post(path: str, endpoint: Endpoint) -> Route:
        return Route(path, partial(_answer, service, endpoint), methods=["POST"])

    def get(path: str, endpoint: Endpoint) -> Route:
        return Route(path, partial(_answer, service, endpoint), methods=["GET"])

    folder = resources.files(__package__).joinpath("page")
    page = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith(ENDINGS)}
    app = Starlette(
        routes=[
            post("/v1/completions", completions.create),
            post("/v1/chat/completions", chat.create_chat),
            post("/v1/edits", chat.create_edit),
            post("/v1/embeddings", embeddings.create),
            get("/v1/models", _models),
            get("/v1/models/{name}", _model),
            get("/health", _health),
            get("/metrics", _metrics),
            get("/", partial(_page, page)),
            get("/page/{name}", partial(_page, page)),
        ],
        middleware=[Middleware(Guard, service=service, key=key, hosts=hosts)],
        exception_handlers={HTTPException: routing_error},
    )
    app.router.redirect_slashes = False
    return app


async def _answer(service: Service, endpoint: Endpoint, request: Request) -> Response:
    """The endpoint's response, or a response for the error that it raises."""
    try:
        return await endpoint(service, request)
    except ClientGone:
        return Response(status_code=499)  # nobody reads it, but metrics count it
    except Exception as error:
        return as_api_error(error).response()


def describe(model: ServedModel) -> Json:
    """An entry of /v1/models; the last three fields are not part of OpenAI's API."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "megagpt",
        "abilities": [ability for ability in ABILITIES if ability in model.abilities],
        "context_length": model.window,
        "dimensions": model.dimensions,
    }


async def _models(service: Service, _: Request) -> Response:
    return JSONResponse({"object": "list", "data": [describe(model) for model in service.models.values()]})


async def _model(service: Service, request: Request) -> Response:
    return JSONResponse(describe(service.find(request.path_params["name"])))


async def _health(*_: object) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(service: Service, _: Request) -> Response:
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _page(page: dict[str, bytes], _: Service, request: Request) -> Response:
    """The page's file `name` of the path; index.html for /."""
    name = request.path_params.get("name", "index.html")
    if name not in page:
        raise ApiError(f"the page has no file {name[:100]!r}", status=404, code="unknown_url")
    return Response(page[name], media_type=mimetypes.guess_type(name)[0], headers={"Cache-Control": "no-cache"})
