"""The page in headless Chromium: type, watch, cancel, reload, play, at two widths; nothing leaves this machine."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STATE = "() => { const v = document.querySelector('.mochi-view[data-state]'); return v && v.dataset.state }"
CUT = """() => [...document.querySelectorAll('label')]
  .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"""
"""Labels that are wider than their place."""
KEY = "a-long-enough-key-of-anna"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@contextmanager
def serving(folder: Path, *options: str, keys: str = ""):
    """`mochi-tt ui` with the built-in model: its address."""
    command = [sys.executable, "-m", "mochi_tt", "ui", "--port", "0", "--mesh", "1x1", "--mode", "golden", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MOCHI_TT_KEYS": keys}
    folder.mkdir(exist_ok=True)
    with open(folder / "log", "a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    try:
        address = next((found[1] for line in process.stdout if (found := re.search(r"at (http://\S+),", line))), None)
        assert address is not None, (folder / "log").read_text()[-2000:]
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "it ends in order"
        assert [line for line in (folder / "log").read_text().splitlines() if not line.startswith("{")] == []
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page that is open, what it asked for, and what went wrong in it."""

    def __init__(self, browser, address: str, width: int = 1280, context=None):
        self.context = context or browser.new_context(viewport={"width": width, "height": 900})
        self.page = self.context.new_page()
        self.requests, self.wrong = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("response", lambda response: self._look(response))
        self.page.goto(f"{address}/")
        self.page.wait_for_selector("#mochi-prompt textarea", timeout=60_000)
        self.address = address

    def _look(self, response) -> None:
        if response.status >= 400 and "manifest" not in response.url and "favicon" not in response.url:
            self.wrong.append(f"{response.status} {response.url}")

    def ask(self, prompt: str, **fields: object) -> None:
        self.page.fill("#mochi-prompt textarea", prompt)
        for label, value in fields.items():
            self.page.get_by_label(label).fill(str(value))
        self.page.click("#mochi-make")

    def until(self, what: str, seconds: float = 90) -> None:
        self.page.wait_for_function(f"() => ({STATE})() === {what!r}", timeout=1000 * seconds)

    def check(self) -> None:
        """Nothing left this machine, and nothing went wrong."""
        outside = [url for url in self.requests if not url.startswith((self.address, "data:", "blob:"))]
        assert not outside
        assert not self.wrong
        wide = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, "nothing is cut off at the right"
        assert self.page.evaluate(CUT) == [], "and no label within its own field"


UPLOAD = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"}
ALSO_GRADIO = [
    ("POST", "gradio_api/upload"),
    ("POST", "gradio_api/queue/join"),
    ("GET", "gradio_api/queue/data"),
    ("POST", "gradio_api/call/predict"),
    ("POST", "gradio_api/api/predict"),
    ("POST", "gradio_api/run/predict/../../upload"),
    ("GET", "gradio_api/file=/etc/passwd"),
    ("GET", "gradio_api/proxy=https://example.org/"),
    ("GET", "gradio_api/info"),
    ("GET", "gradio_api/openapi.json"),
    ("GET", "monitoring/summary"),
    ("POST", "login"),
]
"""What the page's library would do for anybody, and the page does not need."""
SMALL = {"Width": 32, "Height": 32, "Frames": 7}


@pytest.fixture
def picture(request):
    """Write a picture of a page to the folder of `--screenshots`, if there is one."""
    folder = request.config.getoption("--screenshots")
    return lambda visit, name: folder and visit.page.screenshot(path=Path(folder, name), full_page=True)


def test_a_video_from_typing_to_playing(browser, tmp_path, picture):
    with serving(tmp_path / "place") as address:
        visit = Visit(browser, address)
        assert "There is no card here" in visit.page.inner_text("body")
        visit.ask("a red ball rolls to the left", Steps=30, Width=64, Height=64, Frames=7)
        steps = set()
        end = time.monotonic() + 90
        while visit.page.evaluate(STATE) != "completed":
            assert time.monotonic() < end
            found = re.search(r"denoise, (\d+) of 30 steps", visit.page.inner_text("#mochi-view"))
            steps |= {int(found[1])} if found else set()
            time.sleep(0.1)
        assert len(steps) >= 2, "progress moves"
        assert [url for url in visit.requests if "preview.png" in url], "and so does the preview"
        visit.page.wait_for_function("() => document.querySelector('video')?.readyState >= 3", timeout=20_000)
        visit.page.evaluate("() => document.querySelector('video').play()")
        visit.page.wait_for_function("() => document.querySelector('video').currentTime > 0.05", timeout=20_000)
        picture(visit, "page.png")
        with visit.page.expect_download() as download:
            visit.page.click("text=Download the mp4")
        assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"

        visit.ask("a blue square", Steps=400, **SMALL)
        visit.until("in_progress")
        visit.page.click("#mochi-cancel")
        visit.until("cancelled", 30)
        visit.ask("x", Steps=2, Width=33, Height=32, Frames=7)
        visit.page.wait_for_selector("#mochi-said .mochi-error")
        error = visit.page.inner_text("#mochi-said .mochi-error")
        assert error.startswith("Width 33 "), "an error is a sentence in the page's words, and stays"
        assert "_" not in error

        visit.page.reload()
        visit.until("cancelled", 30)  # The browser knows which one was chosen.
        assert visit.page.locator("#mochi-list label").count() == 2
        visit.page.locator("#mochi-list label").nth(1).click()
        visit.until("completed", 30)
        visit.page.click("#mochi-reuse")
        visit.page.wait_for_function(
            "() => document.querySelector('#mochi-prompt textarea').value.startsWith('a red ball')"
        )
        assert visit.page.get_by_label("Steps").input_value() == "30"

        visit.page.set_input_files("#mochi-file", files=[{"name": "a.txt", "mimeType": "a/b", "buffer": b"no picture"}])
        visit.ask("from a file", Steps=2, **SMALL)
        visit.page.wait_for_function("() => document.querySelector('#mochi-said').innerText.includes('neither a pict')")
        assert [line.split()[0] for line in visit.wrong] == ["422"]
        visit.wrong.clear()
        made = io.BytesIO()
        Image.new("RGB", (40, 40), (200, 30, 30)).save(made, "PNG")
        picked = {"name": "a.png", "mimeType": "image/png", "buffer": made.getvalue()}
        visit.page.set_input_files("#mochi-file", files=[picked])
        visit.ask("from a picture", Steps=4, Strength=0.5, **SMALL)
        visit.page.wait_for_function("() => document.querySelector('#mochi-view').innerText.includes('from a picture')")
        visit.until("completed", 30)
        sent = visit.page.locator("#mochi-source").locator("textarea, input")
        assert re.fullmatch("file-[0-9a-f]{64}", sent.input_value())
        name = visit.page.request.get(f"{address}/v1/videos?limit=1").json()["data"][0]["id"]
        visit.page.request.delete(f"{address}/v1/videos/{name}")
        visit.page.wait_for_function("() => document.querySelectorAll('#mochi-list label').length === 2")
        visit.page.get_by_label("Strength").fill("")
        sent.fill("")

        request = {
            "prompt": "a red cross",
            "size": "48x32",
            "seconds": "0.2",
            "solver": "ab2",
            "num_inference_steps": 2,
        }
        name = visit.page.request.post(f"{address}/v1/videos", data=request).json()["id"]
        visit.page.wait_for_function("() => document.querySelectorAll('#mochi-list label').length === 3")
        visit.page.locator("#mochi-list label").nth(0).click()
        visit.page.wait_for_function("() => document.querySelector('#mochi-view').innerText.includes('a red cross')")
        visit.until("completed", 30)
        visit.page.click("#mochi-reuse")
        visit.page.wait_for_selector("#mochi-said .mochi-error")
        assert "no field for solver" in visit.page.inner_text("#mochi-said")
        assert [visit.page.get_by_label(label).input_value() for label in SMALL] == ["48", "32", "7"]
        visit.page.request.delete(f"{address}/v1/videos/{name}")
        visit.page.wait_for_function("() => document.querySelector('#mochi-view').innerText.includes('not there')")
        visit.page.wait_for_function("() => document.querySelectorAll('#mochi-list label').length === 2")
        visit.check()
        context, port = visit.context, address.rpartition(":")[2]
    with serving(tmp_path / "place", "--port", port) as address:
        request = {"prompt": "made after the restart", "size": "32x32", "num_frames": 7, "num_inference_steps": 2}
        name = visit.page.request.post(f"{address}/v1/videos", data=request).json()["id"]
        visit.page.wait_for_function(
            "() => document.querySelector('#mochi-list')?.innerText.includes('made after the restart')", timeout=60_000
        )  # The page that was open all the time has seen that the service is back.
        visit.page.request.post(f"{address}/v1/videos/{name}/cancel")
        visit.page.wait_for_timeout(500)
        while visit.page.request.delete(f"{address}/v1/videos/{name}").status != 200:
            visit.page.wait_for_timeout(200)
        visit.page.close()
    with serving(tmp_path / "place") as address:  # Another port, so another page to the browser.
        phone = Visit(browser, address, width=390)
        phone.page.wait_for_selector("#mochi-list label")
        assert phone.page.locator("#mochi-list label").count() == 2, "videos outlive the service"
        phone.page.locator("#mochi-list label").nth(1).click()
        phone.until("completed", 30)
        phone.page.wait_for_function("() => document.querySelector('video')?.readyState >= 3", timeout=20_000)
        picture(phone, "page_phone.png")
        phone.check()
        phone.context.close()
    context.close()


def test_a_page_with_keys_asks_for_one(browser, tmp_path):
    with serving(tmp_path / "place", keys=f"anna:{KEY}") as address:
        visit = Visit(browser, address)
        visit.page.get_by_label("Key").fill("not-the-key-at-all-no")
        visit.ask("a red ball", Steps=2, **SMALL)
        visit.page.wait_for_selector("#mochi-said .mochi-error")
        assert "This key is not known" in visit.page.inner_text("#mochi-said")
        visit.page.get_by_label("Key").fill(KEY)
        visit.page.get_by_label("Key").blur()
        visit.page.wait_for_timeout(1500)
        visit.ask("a red ball", Steps=2, **SMALL)
        visit.until("completed")
        visit.check()
        secret = (tmp_path / "place" / "service" / "page.secret").read_bytes()
        told = visit.page.request.get(f"{address}/ui/config").text()
        assert "secret" in told
        assert not [part for part in (secret[:8], secret[8:16], secret[-8:]) if part.hex() in told]
        link = visit.page.get_attribute("video", "src")
        assert visit.page.request.get(f"{address}{link}").status == 200
        forged = link.replace(link.split("/")[4], "0" * 64)
        assert visit.page.request.get(f"{address}{forged}").status == 404
        assert visit.page.request.get(f"{address}/v1/videos").status == 401
        for method, path in ALSO_GRADIO:
            answer = visit.page.request.fetch(f"{address}/ui/{path}", method=method, multipart={"files": UPLOAD})
            assert answer.status == 404, path
        visit.context.close()
