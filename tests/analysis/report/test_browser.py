"""The page in a browser: every control is used, and nothing in the console; skipped where there is no Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.report.page import source_hash
from precisionlm.analysis.report.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = ["</script><img src=x onerror=alert(1)>", "line\u2028separator\u2029", "'\"`${1}\\", "\U0001f600 é", "<!--"]
WATCH = """
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective + event.sourceFile));
window.alert = () => errors.push("alert");
"""
# A window is never as narrow as a phone; a frame in it is.
AROUND = """<!DOCTYPE html><pre id="seen"></pre><iframe width="{width}" height="800" src="exercised.html"></iframe>
<script>addEventListener("message", (e) => {{ document.getElementById("seen").textContent = e.data; }});</script>"""


@pytest.fixture
def dom(tmp_path):
    """A function: file → its document and the browser's log, once scripts and timers are done; skips without a browser
    that starts."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on PATH: apt-get install chromium")

    def run(page: Path) -> tuple[str, str]:
        done = subprocess.run(
            [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--enable-logging=stderr",
             "--v=0", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.stdout, done.stderr

    (tmp_path / "blank.html").write_text("<!DOCTYPE html><p>ready")
    shown, log = run(tmp_path / "blank.html")
    if "ready" not in shown:
        pytest.skip(f"{path} does not start here: {log.strip().splitlines()[-1:]}")
    return run


def seen_in(dom, page: Path, width: int) -> dict:
    """What `exercise.js` saw of a page in a window of that width (pixels); the page is a copy that lets it run."""
    exercise = (Path(__file__).parent / "exercise.js").read_text()
    text = page.read_text()
    allowed = " ".join(f"'{source_hash(script)}'" for script in (WATCH, exercise))
    text = text.replace("script-src ", f"script-src {allowed} ", 1)
    text = text.replace("<title>", f"<script>{WATCH}</script><title>", 1)
    text = text.replace("</body>", f"<script>{exercise}</script></body>")
    (page.parent / "exercised.html").write_text(text)
    around = page.parent / "around.html"
    around.write_text(AROUND.format(width=width))
    shown, log = dom(around)
    assert "CONSOLE" not in log, log
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', shown, re.DOTALL)[1]))


def test_every_control_of_a_page_with_hostile_names(dom, tiny_runs, tmp_path):
    names = [HOSTILE[i % len(HOSTILE)] + str(i) for i in range(len(tiny_runs))]
    frame = tiny_runs.assign(name=names)
    analysis = analyze(frame, "kumar", starts=4, resamples=8)
    seen = seen_in(dom, write_report(frame, [analysis], tmp_path / "r.html", HOSTILE[0]).path, 390)
    assert seen["errors"] == [] and seen["images"] == 0 and seen["scripts"] == 4
    assert seen["width"][0] <= seen["width"][1] == 390, "the page scrolls sideways on a phone"
    assert seen["theme"][0] != seen["theme"][1]

    assert seen["dots"] == len(frame)
    lines = seen["hover"].split("\n")
    assert any(lines[0].startswith(name.replace("\u2028", "\ufffd").replace("\u2029", "\ufffd")) for name in names)
    assert re.match(r"N = 40k|N = 160k", lines[2]) and re.match(r"observed [\d.]+ ± 0.0196 \(95 %\)", lines[3])
    assert re.match(r"the law [\d.]+ \[", lines[4]) and "standard deviations" in lines[5]
    assert seen["left"] == seen["escaped"] == "" and seen["tap"] and seen["home"] and seen["right"] != seen["home"]

    (narrow, told, _), (wide, other, _) = seen["slider"]
    assert narrow != wide and told != other
    assert "N = 160k, D = 1.5M: undefined" in told and re.search(r"N = 160k, D = 1.5M: [\d.]+ \[", other)
    assert seen["slider"][0][2] == "1 bit" and seen["slider"][1][2] == "16 bits"
    assert seen["group"] == len(frame) // 2
    assert seen["axis"][0].startswith("validation loss (nats/token) against non-embedding parameters N")
    assert seen["axis"][1:] == [len(frame), ""]
    assert seen["knobs"] == [2, 2, 0] and set(seen["residuals"]) == {len(frame)}
    assert seen["chip"][0] == "false" and 0 < seen["chip"][1] < len(frame)
    assert seen["every"] == [[0, "false"], [len(frame), "true"]]

    (up, rising), (down, falling) = seen["sorted"]
    assert (up, down) == ("ascending", "descending")
    assert [float(v) for v in rising] == sorted(map(float, rising)) == [float(v) for v in reversed(falling)]
    assert seen["filtered"] == [[4, "4 of 24 rows"], [0, "0 of 24 rows"], [24, "24 rows"]]
