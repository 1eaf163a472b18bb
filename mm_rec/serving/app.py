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
from mm_rec.serving import chat, completions, embeddings, errors, responses, routes
from mm_rec.serving.access import Gate, Rules
from mm_rec.serving.service import Service
from mm_rec.serving.sse import Json

_REQUEST_THREADS = 8  # for what requests need beside the engine: texts, files, the store
_PAGE = Path(__file__).parent / "page.html"


def create_app(service: Service, rules: Rules) -> FastAPI:
    """The application; it closes the service when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Only the batcher's thread computes with many, see there.
        alone = partial(torch.set_num_threads, 1)
        alone()
        asyncio.get_running_loop().set_default_executor(
            ThreadPoolExecutor(_REQUEST_THREADS, initializer=alone)
        )
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="MM-Rec", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        default_response_class=Json,
    )  # fmt: skip
    app.state.service = service
    errors.install(app)
    for module in (chat, completions, responses, embeddings, routes):
        app.include_router(module.router)
    _add_page(app)
    app.add_middleware(Gate, store=service.store, rules=rules, figures=service.figures)
    return app


def _add_page(app: FastAPI) -> None:
    """The chat page, which may run its own script, ask this server, and nothing else."""
    page = _PAGE.read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'"
    rules += f"; script-src 'sha256-{digest}'"
    headers = {
        "Content-Security-Policy": f"{rules}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    }

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)
