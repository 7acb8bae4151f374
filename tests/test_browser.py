"""JupyterLab as a reader sees it: ``make lab``, a browser, Run All. Asked for with ``-m browser`` alone.

It works in the workspace that ``make reproduce`` filled; what is not up to date there is made.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HANGS

from boom_utils.artifacts import PROJECT_ROOT

websocket = pytest.importorskip("websocket", reason="websocket-client speaks to the browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")]

OPENED = """[...window.jupyterapp?.shell?.widgets('main') ?? []]
  .some(widget => widget.context?.path === 'notebooks/01_data.ipynb')"""
OPEN = """(async () => {
  const app = window.jupyterapp, panel = await app.commands.execute('docmanager:open', {path: 'notebooks/%s.ipynb'});
  await app.restored; await panel.context.ready; await panel.sessionContext.ready;
  window.panel = panel;
})()"""
IN_FRONT = "(jupyterapp.shell.activateById(panel.id), jupyterapp.shell.currentWidget === panel)"
RUN_ALL = """(async () => {
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
  return JSON.stringify(window.panel.content.model.toJSON().cells);
})()"""
SHOWN_OVER_IT = """JSON.stringify([...document.querySelectorAll('.jp-Dialog, .jp-Notification-Toast, .Toastify__toast')]
  .map(element => element.textContent))"""


class Page:
    """A page of a browser, by Chromium's DevTools protocol."""

    def __init__(self, address: str) -> None:
        self.socket, self.sent = websocket.create_connection(address, timeout=HANGS, suppress_origin=True), 0

    def call(self, method: str, **parameters: Any) -> Any:
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.sent:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        began = time.monotonic()
        while not self.value(script):
            assert time.monotonic() - began < HANGS, script
            time.sleep(0.2)

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("markexpr") != "browser":
        pytest.skip("a browser is started by `pytest -m browser` only")


@pytest.fixture(scope="module")
def lab(asked: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of JupyterLab as ``make lab`` starts it, on a copy of the notebooks: it saves what it has run."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(PROJECT_ROOT / "notebooks", folder / "notebooks")
    recipe = subprocess.run(["make", "-n", "lab"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
    line = recipe.replace("\\\n", " ").strip().splitlines()[-1].replace(".venv/bin/python", sys.executable)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = f"--no-browser --ServerApp.port={port} --IdentityProvider.token=here --LabApp.expose_app_in_browser=True"
    places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "RUNTIME")}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            ["bash", "-c", f"exec env {line} {more}"], cwd=folder, env={**os.environ, **places}, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    while not _answers(f"{address}/api?token=here"):
        assert server.poll() is None, (folder / "log").read_text()
        time.sleep(0.2)
    yield address
    server.terminate()
    server.wait()


@pytest.fixture
def page(asked: None, tmp_path: Path) -> Iterator[Page]:
    profile = tmp_path / "browser"
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        "--window-size=1600,1000",
    ]
    browser = subprocess.Popen(
        [str(CHROMIUM), *options, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
    )
    while not (told := profile / "DevToolsActivePort").is_file() or not told.read_text().strip():
        assert browser.poll() is None, "the browser does not start"
        time.sleep(0.1)
    pages = json.loads(_answers(f"http://127.0.0.1:{told.read_text().split()[0]}/json/list"))
    yield Page(next(one["webSocketDebuggerUrl"] for one in pages if one["type"] == "page"))
    browser.terminate()
    browser.wait()


def _answers(address: str) -> bytes:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=10) as answer:
            return bytes(answer.read())
    except OSError:
        return b""


@pytest.mark.parametrize("name", ["01_data", "03_merge", "08_your_own_data"])
def test_run_all_in_jupyterlab_goes_to_the_end_without_a_prompt_a_warning_or_a_bar_of_a_library(
    lab: str, page: Page, tmp_path: Path, name: str
) -> None:
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)
    page.call("Page.navigate", url=f"{lab}/?token=here")
    page.wait(OPENED)
    page.value(OPEN % name)
    page.wait(IN_FRONT)
    page.picture(tmp_path / "opened.png")
    cells = [cell for cell in json.loads(page.value(RUN_ALL)) if cell["cell_type"] == "code"]
    page.picture(tmp_path / "end.png")
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    shown = [output["data"].get("text/plain", "") for output in outputs if "data" in output]
    assert not [text for text in shown if re.match("Loading|Fetching|Downloading|Map|Filter|Batches", "".join(text))]
    assert json.loads(page.value(SHOWN_OVER_IT)) == []
