"""The hub's side of a download, against a small hub on this machine that the library talks to over HTTP."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from waiting import LONGEST

from mm_rec.sources.catalogue import find_source

SHA = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: 20231101.tr
  data_files:
  - split: train
    path: 20231101.tr/*.parquet
---
"""

# Runs in a process of its own: the libraries read HF_ENDPOINT while they are imported.
SCRIPT = """
import json, sys
from pathlib import Path
from mm_rec.sources.catalogue import find_source
from mm_rec.sources.download import DownloadRequest, download
from mm_rec.errors import UserError

answers = {}
for case in json.loads(sys.argv[1]):
    wanted = {**case["wanted"], "source": find_source(case["wanted"]["source"]), "out": Path(case["wanted"]["out"])}
    try:
        record = download(DownloadRequest(**wanted))
        answers[case["name"]] = f"{record.documents} documents of commit {record.commit}"
    except UserError as error:
        answers[case["name"]] = f"{type(error).__name__}: {error}"
print(json.dumps(answers))
"""


class _SmallHub(http.server.BaseHTTPRequestHandler):
    """One set with one file, a gated one, one that is missing, and one with a loading script."""

    files: dict[str, bytes] = {}
    seen: list[str] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if "/uonlp/CulturaX" in self.path and not self.path.endswith("/auth-check"):
            self._send(200, json.dumps({"id": "uonlp/CulturaX", "sha": SHA, "gated": "auto"}).encode())
        elif "/uonlp/CulturaX" in self.path:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "/api/datasets/tatsu-lab/alpaca" in self.path:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif self.path.endswith("/revision/no-such"):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "/resolve/" in self.path:
            self._file(self.path.split(f"/resolve/{SHA}/")[1])
        elif "/tree/" in self.path:
            self._send(200, json.dumps(self._tree(self.path.split(SHA)[1].split("?")[0].strip("/"))).encode())
        else:
            self._send(200, json.dumps({"id": "some/set", "sha": SHA, "gated": False}).encode())

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self._send(200, json.dumps(self._tree("")).encode())

    def log_message(self, *arguments: Any) -> None:
        pass

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        named = [
            {"type": "file", "path": name, "size": len(content), "oid": SHA}
            for name, content in self.files.items()
            if name.startswith(folder)
        ]
        parents = sorted({name.rsplit("/", 1)[0] for name in self.files if "/" in name} - {folder})
        return [*named, *({"type": "directory", "path": name, "oid": SHA, "size": 0} for name in parents)]

    def _file(self, name: str) -> None:
        script = "slimorca.py" in name.lower() or name == "fineweb.py"
        content = b"print()" if script else self.files.get(name)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{SHA}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked and self.command == "GET":
            first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], headers)
        else:
            self._send(200, content, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def small_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hub")
    pq.write_table(pa.table({"text": ["bir", "iki", "üç"]}), folder / "a.parquet")
    _SmallHub.files = {
        "README.md": CARD.encode(),
        "20231101.tr/a.parquet": (folder / "a.parquet").read_bytes(),
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _SmallHub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask(endpoint: str, folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What downloads answer whose hub is at `endpoint`."""
    wanted = [{"name": name, "wanted": {"out": str(folder / name), **case}} for name, case in cases.items()]
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(wanted)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=True,
    )
    answers: dict[str, str] = json.loads(done.stdout)
    assert not done.stderr, done.stderr
    return answers


def test_a_set_and_the_errors_of_a_hub(small_hub: str, tmp_path: Path) -> None:
    answers = ask(
        small_hub,
        tmp_path,
        {
            "fine": {"source": "wikipedia", "language": "tr", "limit": 3},
            "more of it": {"source": "wikipedia", "language": "tr", "out": str(tmp_path / "fine")},
            "other language": {"source": "wikipedia", "language": "az"},
            "other split": {"source": "wikipedia", "language": "tr", "split": "test"},
            "gated": {"source": "culturax"},
            "missing": {"source": "alpaca"},
            "revision": {"source": "wikipedia", "language": "tr", "revision": "no-such"},
            "script": {"source": "fineweb"},
            "no file": {"source": "sharegpt"},
        },
    )
    assert answers["fine"] == f"1 documents of commit {SHA}"
    assert answers["more of it"] == f"3 documents of commit {SHA}"
    assert f"commit {SHA}" in (tmp_path / "fine" / "LICENCE.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == [
        "fine"
    ]  # an error leaves nothing
    assert "no part called '20231101.az'; it has ['20231101.tr']" in answers["other language"]
    assert "no split 'test'; it has ['train']" in answers["other split"]
    gated = answers["gated"]
    assert (
        f"Open {find_source('culturax').page}" in gated and "`hf auth login`" in gated and "HF_TOKEN" in gated
    )
    assert "the hub has no set tatsu-lab/alpaca" in answers["missing"]
    assert "no such revision" in answers["revision"]
    assert "loading script" in answers["script"] and "--revision refs/convert/parquet" in answers["script"]
    assert "holds no such files" in answers["no file"]
    for name in ("gated", "missing", "revision", "script", "no file"):
        assert "--local PATH" in answers[name] and "HF_ENDPOINT" in answers[name], name
    assert not any("auth-check" in path for path in _SmallHub.seen if "CulturaX" not in path)


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    answer = ask("http://127.0.0.1:9", tmp_path, {"off": {"source": "wikitext-2"}})["off"]
    assert answer.startswith("DataError: the hub cannot be reached")
    assert "--local PATH" in answer and not (tmp_path / "off").exists()
