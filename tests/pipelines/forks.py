"""A Python that starts a KFP task in no time: a fork of a process that has imported everything.

KFP's local runner starts a Python for every task; importing PyTorch and MLflow so often takes
longer than the tasks of a tiny run. `serve` holds the imports; `python`, which the runner takes for
the interpreter, hands it its arguments, environment, folder and streams.
"""

import array
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

EXECUTOR = ["-m", "kfp.dsl.executor_main"]
STREAMS = (0, 1, 2)


def serve(address: str) -> None:
    """Import once; then run every request in a fork of this process."""
    os.environ["_KFP_RUNTIME"] = "true"  # as the runner sets it for every task
    import faiss  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import mlflow.pyfunc  # noqa: F401
    import pandas  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import torch  # noqa: F401
    from kfp.dsl import executor_main
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertModel,
        LlamaForCausalLM,
    )

    import exemplar.kubeflow.run_folder  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            if os.fork():
                connection.close()
                continue
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.sendall(bytes([run(connection, executor_main.executor_main)]))
            os._exit(0)


def run(connection: socket.socket, main) -> int:
    """Become what the request asks for; return its exit code."""
    size = array.array("i", STREAMS).itemsize * len(STREAMS)
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(size))
    descriptors = array.array("i")
    descriptors.frombytes(ancillary[0][2][:size])
    length, text = int(head), b""
    while len(text) < length:
        text += connection.recv(length - len(text))
    request = json.loads(text)
    for stream, descriptor in zip(STREAMS, descriptors, strict=True):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["executor_main", *request["arguments"]]
    import tempfile

    tempfile.tempdir = None
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def ask(address: str, arguments: list[str]) -> int:
    """Hand a task over and return its exit code."""
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        rights = array.array("i", STREAMS)
        head = f"{len(text):8d}".encode()
        connection.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        connection.sendall(text)
        answer = connection.recv(1)
    return answer[0] if answer else 1


if __name__ == "__main__":
    word, address, *rest = sys.argv[1:]
    if word == "serve":
        serve(address)
    if rest[:2] != EXECUTOR:
        os.execv(sys.executable, [sys.executable, *rest])
    sys.exit(ask(address, rest[2:]))
