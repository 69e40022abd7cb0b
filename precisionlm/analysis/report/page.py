"""The page as one file: template, style and script in one, with nothing from a table that a browser would obey."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from precisionlm.terminal import harmless

SCRIPTS = ("plots.js", "tables.js", "page.js")
_TEMPLATES = files("precisionlm.analysis.report") / "templates"
_MARKERS = re.compile(
    r'(<g clip-path="[^"]+")>((?:\s*<use [^>]+ style="([^"]*)"/>)(?:\s*<use [^>]+ style="\3"/>)*\s*</g>)'
)
_SPACE, _LONG = re.compile(r">\s+<"), re.compile(r"\b([1-9]\d*\.\d\d)\d+")


def rendered(content: Mapping[str, Any], data: Any) -> str:
    """The page of `report.html`. data: what its script draws, as JSON has it.

    Text of a table is escaped in the markup and in the JSON; the policy of the page lets no other script run and
    nothing be loaded.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("precisionlm.analysis.report"), autoescape=True, trim_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=lambda value: harmless(value) if type(value) is str else value,
    )  # fmt: skip
    script = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return environment.get_template("report.html").render(
        **content, data=as_json(data), script=Markup(script), script_hash=source_hash(script),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )  # fmt: skip


def source_hash(script: str) -> str:
    """What a content security policy calls an inline script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def as_json(content: Any) -> Markup:
    """JSON that can stand in a script element whatever its strings say: ASCII, and no character that markup has."""
    text = json.dumps(_plain(content), separators=(",", ":"), allow_nan=False)
    return Markup(re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text))


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return harmless(content) if isinstance(content, str) else content


def drawing(path: Path) -> Markup:
    """A figure's SVG for the page in half of the bytes: a style for a group of markers and not for each, and hundredths
    of a point in numbers from 1 on (those below may be factors).

    Text is drawn as paths, so nothing from the table reaches the page as markup.
    """
    text = path.read_text(encoding="utf-8")
    text = _SPACE.sub("><", text[text.index("<svg") :])
    text = _MARKERS.sub(lambda m: f'{m[1]} style="{m[3]}">' + m[2].replace(f' style="{m[3]}"', ""), text)
    return Markup(_LONG.sub(r"\1", text))
