"""A real browser for the tests of this folder: Chromium without a window, over its own protocol.

Tests are skipped where no Chromium is installed (Debian: apt-get install chromium).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_S = 60.0


class Page:
    """One tab: opens addresses, runs JavaScript, presses keys, and keeps what goes wrong."""

    def __init__(self, websocket: Any) -> None:
        self._websocket, self._number = websocket, 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        self._websocket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._websocket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._note(message.get("method", ""), message.get("params", {}))

    def open(self, url: str) -> None:
        """Go to an address, and forget the errors of the page before."""
        self.errors.clear()
        failed = self.send("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"

    def run(self, script: str) -> Any:
        """Return the value of an expression; what it throws fails the test."""
        result = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = WAIT_S) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"document.body && ({script})")):
            assert time.monotonic() < end, (
                f"after {seconds:.0f} s this is still not so: {script}\n"
                f"{self.run('document.body.innerText')[:2000]}"
            )
            time.sleep(0.1)
        return value

    def look(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Be a screen of this size, in light or dark."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.send("Emulation.setEmulatedMedia", features=[scheme, still])

    def press(self, *keys: str) -> None:
        """Press keys, as a person at a keyboard does: "Tab", "ArrowDown", "Enter"."""
        codes = {"Tab": 9, "Enter": 13, "ArrowUp": 38, "ArrowDown": 40}
        for key in keys:
            text = {"text": "\r"} if key == "Enter" else {}
            code = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
            self.send("Input.dispatchKeyEvent", type="keyDown", **code, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def tree(self) -> list[dict[str, Any]]:
        """Return the accessibility tree: what a screen reader is told, without what it ignores."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [node for node in nodes if not node["ignored"]]

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of what is seen, or of the whole page."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[str]:
    """The address of a running Chromium's debugger."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on PATH ({', '.join(NAMES)}); Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [found, *_switches(profile), "about:blank"],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            yield _address(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def browser(chromium: str) -> Iterator[Page]:
    """A tab of its own."""
    import urllib.request

    import websocket

    port = chromium.split("/")[2]
    request = urllib.request.Request(f"http://{port}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        target = json.load(answer)
    tab = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=WAIT_S)
    try:
        yield Page(tab)
    finally:
        tab.close()


def _switches(profile: str) -> Sequence[str]:
    # Without a sandbox, which needs rights that containers do not have; only our pages are opened.
    return (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--remote-debugging-port=0", "--remote-allow-origins=*",
        f"--user-data-dir={profile}",
    )  # fmt: skip


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "DevTools listening on " in line:
            return line.split("DevTools listening on ")[1].strip()
    raise AssertionError(f"Chromium did not start: {''.join(said)[-2000:]}")
