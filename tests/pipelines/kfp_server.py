"""A server of KFP's v2beta1 routes that are needed to submit and watch, in this process.

What is uploaded is checked as KFP's own messages; what is run is handed, as it came, to `execute`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

API = "/apis/v2beta1"


class KfpServer(ThreadingHTTPServer):
    """Keeps what it was sent. `execute(yaml, arguments)` returns the tasks' names, or raises."""

    daemon_threads = True

    def __init__(
        self,
        check: Callable[..., None],
        execute: Callable[[bytes, dict], list[str]],
        *,
        token: str = "",
        delay_s: float = 0,
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.check, self.execute, self.token, self.delay_s = check, execute, token, delay_s
        self.broken = ""
        self.experiments: dict[str, dict] = {}
        self.pipelines: dict[str, dict] = {}
        self.versions: dict[str, dict] = {}
        self.files: dict[str, bytes] = {}
        self.runs: dict[str, dict] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def new(self, store: dict[str, dict], kind: str, **values: Any) -> dict:
        identity = f"{kind}-{len(store) + 1}"
        store[identity] = {f"{kind}_id": identity, "created_at": "2026-01-01T00:00:00Z", **values}
        return store[identity]

    def upload(self, text: bytes, pipeline_id: str, name: str) -> dict:
        spec, platform = yaml.safe_load_all(text)
        self.check(spec, platform)
        version = self.new(
            self.versions, "pipeline_version", pipeline_id=pipeline_id, display_name=name
        )
        self.files[version["pipeline_version_id"]] = text
        return version

    def start(self, body: dict) -> dict:
        """Start a run. Raises `ValueError` on what KFP's API server refuses."""
        unknown = set(body) - {
            "display_name",
            "experiment_id",
            "pipeline_version_reference",
            "runtime_config",
            "service_account",
        }
        if unknown or body["experiment_id"] not in self.experiments:
            raise ValueError(f"unknown fields {unknown} or experiment {body['experiment_id']}")
        reference = body["pipeline_version_reference"]
        text = self.files[reference["pipeline_version_id"]]
        assert (
            self.versions[reference["pipeline_version_id"]]["pipeline_id"]
            == (reference["pipeline_id"])
        )
        arguments = body["runtime_config"]["parameters"]
        declared = next(yaml.safe_load_all(text))["root"]["inputDefinitions"]["parameters"]
        if set(arguments) - set(declared):
            raise ValueError(f"unknown parameters {sorted(set(arguments) - set(declared))}")
        kinds = {"STRING": str, "LIST": list, "NUMBER_INTEGER": int}
        for name, value in arguments.items():
            if not isinstance(value, kinds[declared[name]["parameterType"]]):
                raise ValueError(f"parameter {name} is {value!r}")
        run = self.new(self.runs, "run", **body, state="PENDING", run_details={"task_details": []})
        threading.Thread(target=self._work, args=(run, text, arguments), daemon=True).start()
        return run

    def _work(self, run: dict, text: bytes, arguments: dict) -> None:
        run["state"] = "RUNNING"
        try:
            names = self.execute(text, arguments)
            run["run_details"]["task_details"] = [
                {"task_id": name, "display_name": name, "state": "SUCCEEDED"} for name in names
            ]
            run["state"] = "SUCCEEDED"
        except RuntimeError as error:
            run["error"] = {"code": 13, "message": str(error)}
            run["state"] = "FAILED"


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    server: KfpServer

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self._answer("GET", b"")

    def do_POST(self) -> None:
        self._answer("POST", self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, method: str, body: bytes) -> None:
        time.sleep(self.server.delay_s)
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        route = f"{method} {url.path.removeprefix(API)}"
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            return self._send(401, {"error": "no", "message": "invalid bearer token"})
        if self.server.broken and self.server.broken in route:
            return self._send(503, {"message": "upstream connect error"})
        try:
            return self._send(200, self._route(route, query, body))
        except (ValueError, AssertionError) as error:
            return self._send(400, {"error": "InvalidArgument", "message": str(error)})
        except KeyError as error:
            return self._send(404, {"error": "NotFound", "message": f"no such thing: {error}"})

    def _route(self, route: str, query: dict[str, str], body: bytes) -> dict:
        server = self.server
        if route == "GET /healthz":
            return {"multi_user": False}
        if route == "GET /experiments":
            found = [e for e in server.experiments.values() if e["display_name"] == wanted(query)]
            return {"experiments": found, "total_size": len(found)}
        if route == "POST /experiments":
            given = json.loads(body)
            return server.new(server.experiments, "experiment", display_name=given["display_name"])
        if route == "GET /pipelines":
            found = [p for p in server.pipelines.values() if p["display_name"] == wanted(query)]
            return {"pipelines": found, "total_size": len(found)}
        if route == "POST /pipelines/upload":
            made = server.new(server.pipelines, "pipeline", display_name=query["name"])
            server.upload(self._file(body), made["pipeline_id"], query["name"])
            return made
        if route == "POST /pipelines/upload_version":
            assert query["pipelineid"] in server.pipelines
            return server.upload(self._file(body), query["pipelineid"], query["name"])
        if match := re.fullmatch(r"GET /pipelines/([\w-]+)/versions", route):
            own = [v for v in server.versions.values() if v["pipeline_id"] == match[1]]
            start = int(query.get("page_token") or 0)  # one a page, so that paging is needed
            more = {"next_page_token": str(start + 1)} if start + 1 < len(own) else {}
            return {"pipeline_versions": own[start : start + 1], "total_size": len(own), **more}
        if route == "POST /runs":
            return server.start(json.loads(body))
        if match := re.fullmatch(r"GET /runs/([\w-]+)", route):
            return server.runs[match[1]]
        raise KeyError(route)

    def _file(self, body: bytes) -> bytes:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        (part,) = message_from_bytes(head + body).get_payload()
        assert part.get_filename().endswith(".yaml")
        return part.get_payload(decode=True)

    def _send(self, status: int, answer: dict) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def wanted(query: dict[str, str]) -> str:
    """The name that a list is filtered by."""
    (predicate,) = json.loads(query["filter"])["predicates"]
    assert predicate["key"] == "display_name"
    return predicate["stringValue"]
