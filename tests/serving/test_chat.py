"""POST /v1/chat/completions by OpenAI's own client."""

from __future__ import annotations

import openai
import pytest
from serving.server import Server

MESSAGES = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Hello!"}]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_request_of_the_document(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="mm-rec-100m", messages=MESSAGES, max_tokens=100, temperature=0.7
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
