"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import torch
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from mm_rec import __version__
from mm_rec.serving import errors, routes
from mm_rec.serving.access import AccessMiddleware, AccessPolicy
from mm_rec.serving.context import ServerContext
from mm_rec.serving.protocol import chat_completions, completions, embeddings, responses
from mm_rec.serving.request_log import RequestLogMiddleware
from mm_rec.serving.sse import SafeJSONResponse

_REQUEST_THREADS = 8  # for the work of requests outside the engine and the store
_PAGE = Path(__file__).parent / "page.html"


def create_app(context: ServerContext, policy: AccessPolicy, *, log_prompts: bool = False) -> FastAPI:
    """Build the application; it closes the context when it ends.

    `log_prompts`: the log has the bodies of requests.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Only the scheduler's thread computes with many, see there.
        alone = partial(torch.set_num_threads, 1)
        alone()
        asyncio.get_running_loop().set_default_executor(
            ThreadPoolExecutor(_REQUEST_THREADS, initializer=alone)
        )
        yield
        await asyncio.to_thread(context.close)

    app = FastAPI(
        title="MM-Rec", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        default_response_class=SafeJSONResponse,
        redirect_slashes=False,  # it would redirect to whatever Host a request names
    )  # fmt: skip
    app.state.context = context
    errors.add_exception_handlers(app)
    app.include_router(chat_completions.make_router())
    for module in (completions, responses, embeddings, routes):
        app.include_router(module.router)
    _add_page(app)
    app.add_middleware(
        AccessMiddleware,
        store=context.store,
        policy=policy,
        usage=context.usage,
        threads=context.store_threads,
    )
    # Outside the other.
    app.add_middleware(RequestLogMiddleware, metrics=context.metrics, log_prompts=log_prompts)
    return app


def _add_page(app: FastAPI) -> None:
    """Add the chat page, which may run its own script and talk to this server, and do nothing else."""
    page = _PAGE.read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'"
    policy += f"; script-src 'sha256-{digest}'"
    headers = {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    }

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)
