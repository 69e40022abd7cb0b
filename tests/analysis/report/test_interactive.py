"""What the plots draw is what the law says, and reaches the page as data."""

import json
from html.parser import HTMLParser
from xml.dom import minidom

import numpy as np
import pytest

from precisionlm.analysis.figures.draw import COLOURS, Look, canvas, points, save
from precisionlm.analysis.figures.recipes import recipes_of
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.laws.precision import columns_at
from precisionlm.analysis.report import interactive as module
from precisionlm.analysis.report.interactive import interactive, names_of
from precisionlm.analysis.report.page import as_json, drawing, source_hash
from precisionlm.analysis.report.report import write_report
from precisionlm.analysis.report.residuals import standardised

from .test_answer import formats


def drawn(frame, law, **options):
    analysis = analyze(frame, law, starts=4, **options)
    names = names_of(frame)[analysis.result.table.rows]
    return analysis, interactive(analysis, recipes_of(frame, [analysis]), names, standardised(analysis))


def test_lines_and_stops_are_the_law(tiny_runs):
    analysis, data = drawn(tiny_runs, "kumar", resamples=8)
    law, params = analysis.law, analysis.result.params
    along, size = data["axes"]
    assert (along["key"], size["key"]) == ("D", "N")
    assert [g["label"] for g in along["groups"]] == ["N = 40k", "N = 160k"] and along["groups"][1]["end"] == "1.5M"
    line = next(one for one in along["lines"] if one["group"] == 1)
    trained = {"P_w": 16.0, "P_a": 16.0, "P_kv": 16.0, "P_post": np.inf}
    point = {k: v for k, v in trained.items() if k in {s.name for s in law.symbols}}
    assert line["y"] == pytest.approx(
        law.predict(params, {**point, "N": 160_000.0, "D": along["groups"][1]["x"]}), 1e-4
    )
    training, after = data["knobs"]
    assert training["title"].startswith("bits of all operands") and after["title"].endswith("after training")
    stop = training["stops"].index("6 bits")
    columns = columns_at(law, params, 6.0) | {"N": 160_000.0, "D": np.array(along["groups"][1]["x"])}
    values = training["axes"]["D"]
    assert values["y"][stop][1] == pytest.approx(law.predict(params, columns), 1e-4)
    low, high = analysis.intervals_of(lambda p: law.predict(p, columns))
    assert values["low"][stop][1] == pytest.approx(low, 1e-4) and values["high"][stop][1] == pytest.approx(high, 1e-4)
    assert after["stops"][0] == "2 bits" and after["stops"][-1] == "not quantized"
    assert training["stops"][training["start"]] == after["stops"][after["start"]] == "4 bits"
    json.dumps(data, allow_nan=False)


def test_runs_carry_what_a_reader_asks_of_one(tiny_runs):
    analysis, data = drawn(tiny_runs, "kumar")
    runs, table = data["runs"], analysis.result.table
    assert len(runs["loss"]) == 24 and set(map(len, runs.values())) == {24}
    assert data["names"][runs["name"][0]] == tiny_runs.run_id[0]
    labels = [data["recipes"][i]["name"] for i in runs["recipe"]]
    assert labels == recipes_of(tiny_runs, [analysis]).of(analysis).tolist()
    assert runs["loss"] == pytest.approx(table.observed, 1e-4) and runs["error"] == pytest.approx([0.0196] * 24)
    assert len({(look["colour"], look["shape"]) for look in data["recipes"]}) == len(data["recipes"])


def test_a_law_of_formats_has_a_stop_a_format_and_others_have_none():
    frame = formats()
    assert [knob["stops"] for knob in drawn(frame, "frantar")[1]["knobs"]] == [["int2", "int4", "int8", "bf16"]]
    plain = drawn(frame, "chinchilla")[1]
    assert plain["knobs"] == [] and all(line["alike"] for line in plain["axes"][0]["lines"])
    assert all(line["recipes"] == [0, 1, 2, 3] for line in plain["axes"][0]["lines"])


def test_of_too_many_rows_some_are_drawn(tiny_runs, monkeypatch):
    monkeypatch.setattr(module, "MOST_RUNS", 10)
    data = drawn(tiny_runs, "kumar")[1]
    assert (data["shown"], data["total"], len(data["runs"]["loss"])) == (10, 24, 10)


HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "\u2028\u2029",
    "'\"`\\",
    "<!--<script>",
    "\u202e\x07",
    "\U0001f600",
]


def test_json_of_any_text_stands_in_a_script():
    text = as_json({"names": HOSTILE, "n": [1.5, None]})
    assert text.isascii() and not set("<>&") & set(text)
    read = json.loads(text)
    assert read["names"][0] == HOSTILE[0] and read["names"][2:4] == HOSTILE[2:4] and read["names"][5] == HOSTILE[5]
    assert read["names"][1] == "\ufffd\ufffd" and read["names"][4] == "\ufffd\ufffd" and read["n"] == [1.5, None]


class Elements(HTMLParser):
    """Every element of a page, the policy, and the text of scripts."""

    def __init__(self, page):
        super().__init__()
        self.names: list[str] = []
        self.policy, self.scripts = "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        attributes = dict(attrs)
        assert not any(name.startswith("on") for name in attributes)
        if attributes.get("http-equiv"):
            self.policy = attributes["content"]

    def handle_data(self, data):
        if self.names and self.lasttag == "script" and self.cdata_elem:
            self.scripts.append(data)


def test_the_policy_lets_the_pages_own_script_run_and_nothing_else(tiny_runs, tmp_path):
    frame = tiny_runs.assign(name=[HOSTILE[i % len(HOSTILE)] for i in range(len(tiny_runs))])
    analysis = analyze(frame, "chinchilla_tied", starts=4)
    page = Elements(write_report(frame, [analysis], tmp_path / "r.html", HOSTILE[0]).path.read_text())
    data, script = page.scripts
    assert page.names.count("script") == 2 and not {"img", "a", "iframe", "link", "object"} & set(page.names)
    assert f"script-src '{source_hash(script)}'" in page.policy and page.policy.startswith("default-src 'none';")
    assert "innerHTML" not in script and "eval" not in script and "http" not in script.replace("http://www.w3.org", "")
    found = json.loads(data)[0]
    assert any(name.startswith(HOSTILE[0]) for name in found["names"])


def test_a_figure_in_the_page_has_all_its_points(tmp_path):
    figure, axes = canvas()
    rng = np.random.default_rng(0)
    for colour in COLOURS[:3]:
        points(axes[0, 0], rng.random(50), rng.random(50), Look(colour, "o", "-").points())
    path = save(figure, tmp_path, "points")[0]
    text, short = path.read_text(), drawing(path)
    assert len(short) < 0.6 * len(text)
    before, after = (minidom.parseString(t).getElementsByTagName("use") for t in (text, short))
    assert len(before) == len(after) > 150
    for one, other in zip(before, after, strict=True):
        if one.getAttribute("x"):
            assert float(other.getAttribute("x")) == pytest.approx(float(one.getAttribute("x")), abs=0.01)
            assert (other.getAttribute("style") or other.parentNode.getAttribute("style")) == one.getAttribute("style")
        else:
            assert other.getAttribute("transform").split("(")[0] == one.getAttribute("transform").split("(")[0]
