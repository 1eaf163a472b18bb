"""Routes as this server has them: found once for each request, strict about its method, its query and its body."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from pydantic import TypeAdapter
from starlette.datastructures import QueryParams
from starlette.routing import Match
from starlette.types import Scope

from mm_rec.serving.errors import METHOD_NOT_ALLOWED, ApiError
from mm_rec.serving.json_bodies import read_json

Limit = Annotated[int, Query(ge=1, le=100)]  # of the rows of a list
_UNKNOWN = "this is not known here; leave it out"


class ApiRoute(APIRoute):
    """A route whose body is read by `read_json`, and then given to FastAPI as its schema has it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer
        kind: Any = self.body_field.field_info.annotation
        schema = TypeAdapter[Any](kind)

        async def answer_json(request: Request) -> Response:
            request._json = await read_json(request, schema)  # what request.json() returns from now on
            return await answer(request)

        return answer_json


def find_route(scope: Scope) -> tuple[RouteContext | None, set[str]]:
    """Return the route that a request goes to, for HEAD that of GET, and the methods that its address takes otherwise.

    There is no route where the address has none, or none of this method.
    """
    method, allowed = scope["method"], set[str]()
    asked = {**scope, "method": "GET"} if method == "HEAD" else scope
    for route in iter_route_contexts(scope["app"].routes):
        match = route.matches(asked)[0]
        if match is Match.FULL:
            return route, set()
        if match is Match.PARTIAL:
            allowed |= route.methods or set()
    return None, allowed | ({"HEAD"} if "GET" in allowed else set())


def require_method(allowed: set[str]) -> None:
    """Raise ApiError, 405, where the address of a request takes other methods."""
    if not allowed:
        return
    headers = {"Allow": ", ".join(sorted(allowed))}
    raise ApiError(405, METHOD_NOT_ALLOWED, code="method_not_allowed", headers=headers)


def require_known_queries(scope: Scope, route: RouteContext) -> None:
    """Raise ApiError for what an address asks after its "?" that its route does not declare, or twice."""
    known = {field.alias for field in route.dependant.query_params} if hasattr(route, "dependant") else set()
    given = Counter(name for name, _ in QueryParams(scope["query_string"]).multi_items())
    for name, times in given.items():
        single = name.removesuffix("[]")  # OpenAI's client writes a list as name[]; no route here takes one
        named = single[:100]
        if name not in known:
            why = "this is no list; leave the brackets out" if single in known else _UNKNOWN
            raise ApiError(400, f"{named}: {why}", named, "unknown_parameter")
        if times > 1:
            why = f"this stands {times:,} times in the address, and one value counts; send one"
            raise ApiError(400, f"{named}: {why}", named, "invalid_value")
