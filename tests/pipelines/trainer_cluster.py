"""A cluster of one machine: Kubernetes' routes for TrainJobs, whose nodes are processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMESPACE = "kubeflow"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {
        "name": "torch-distributed",
        "labels": {"trainer.kubeflow.org/framework": "torch"},
    },
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {
                                "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
                            },
                            "spec": {
                                "template": {
                                    "spec": {
                                        "containers": [{"name": "node", "image": "pytorch/pytorch"}]
                                    }
                                }
                            },
                        },
                    }
                ]
            }
        },
    },
}


class TrainerCluster:
    """Serves on a free port of this machine. `jobs`: those there are; `made`: bodies as sent.

    `command`: what nodes run instead of the job's own; `refuse`: the status of every answer, if
    any; `silent`: logs may not be read.
    """

    def __init__(self, logs: Path):
        self.jobs: dict[str, dict[str, Any]] = {}
        self.made: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.command: list[str] | None = None
        self.refuse = 0
        self.silent = False
        self._logs = logs
        self._nodes: dict[str, list[subprocess.Popen[bytes]]] = {}
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                status, value = cluster.answer(self.command, self.path.partition("?")[0], body)
                text = value if isinstance(value, str) else json.dumps(value)
                self.send_response(status)
                kind = "text/plain" if isinstance(value, str) else "application/json"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_DELETE = answer  # noqa: N815  names of the library

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> TrainerCluster:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for name in list(self._nodes):
            self.end(name)

    def client(self) -> Any:
        """Return the SDK's client, unmodified, with this address."""
        from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
        from kubernetes.client import Configuration

        own = Configuration(host=f"http://127.0.0.1:{self._server.server_port}")
        own.retries = False
        return TrainerClient(KubernetesBackendConfig(namespace=NAMESPACE, client_configuration=own))

    def answer(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        """Answer one request."""
        if self.refuse:
            return self.refuse, {"message": "refused"}
        *parents, last = path.strip("/").split("/")
        if path.endswith("configmaps/kubeflow-trainer-public"):
            return 200, {"data": {"kubeflow_trainer_version": "2.2.0"}}
        if "clustertrainingruntimes" in parents and last == RUNTIME["metadata"]["name"]:
            return 200, RUNTIME
        if parents[-1] == "trainjobs" and last in self.jobs:
            if verb == "DELETE":
                self.end(last)
                del self.jobs[last]
                self.deleted.append(last)
                return 200, {}
            return 200, self._job(last)
        if verb == "POST" and last == "trainjobs":
            return 201, self._make(body)
        if last == "log" and self.silent:
            return 403, {"message": "pods/log is forbidden"}
        if last == "log":
            return 200, self._log(parents[-1]).read_text()
        if last == "pods":
            return 200, {"items": [pod for name in self.jobs for pod in self._pods(name)]}
        return 404, {"message": f"{path} is not here"}

    def end(self, name: str) -> None:
        """Stop the nodes of a job."""
        for process in self._nodes.pop(name, []):
            process.kill()
            process.wait()

    def _make(self, body: dict[str, Any]) -> dict[str, Any]:
        self.made.append(body)
        name, trainer = body["metadata"]["name"], body["spec"]["trainer"]
        created = {"namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.jobs[name] = {**body, "metadata": {**body["metadata"], **created}}
        command = self.command or trainer["command"]
        if command[0] == "torchrun":
            command = [sys.executable, "-m", "torch.distributed.run", *command[1:]]
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        told = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        self._nodes[name] = []
        for number in range(trainer["numNodes"]):
            with self._log(f"{name}-node-0-{number}").open("wb") as log:
                environment = {**os.environ, **told, "PET_NODE_RANK": str(number)}
                self._nodes[name].append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                )
        return self.jobs[name]

    def _job(self, name: str) -> dict[str, Any]:
        codes = [process.poll() for process in self._nodes[name]]
        if any(codes):
            kind = "Failed"
        elif None in codes:
            return self.jobs[name]
        else:
            kind = "Complete"
        condition = {"type": kind, "status": "True", "reason": kind, "message": ""}
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        return {**self.jobs[name], "status": {"conditions": [condition]}}

    def _pods(self, name: str) -> list[dict[str, Any]]:
        return [
            {
                "metadata": {
                    "name": f"{name}-node-0-{number}",
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {
                        "jobset.sigs.k8s.io/replicatedjob-name": "node",
                        "batch.kubernetes.io/job-completion-index": str(number),
                    },
                },
                "spec": {"containers": [{"name": "node"}]},
                "status": {"phase": "Running"},
            }
            for number in range(len(self._nodes[name]))
        ]

    def _log(self, pod: str) -> Path:
        return self._logs / f"{pod}.log"
