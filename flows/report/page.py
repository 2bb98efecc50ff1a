"""A report as HTML: one file that opens from disk, asks no host for anything, and shows every user's text as text.

Values reach the page by a template that escapes; the plots' rows as JSON without `<`, `>`, `&` and line separators. The page's
own policy allows just the scripts that are in it, by their hash, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import orjson
from markupsafe import Markup, escape

from flows.report.elements import Report, visible, written

FOLDER = Path(__file__).parent


@lru_cache(maxsize=1)
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that leaves `vegaEmbed` to the page."""
    import vl_convert  # a JavaScript engine: 1.7 s and 150 MB, only for the command that writes a report

    return f"(() => {{\n{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n}})();"


def render(report: Report) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"written": written, "visible": lambda value: visible(str(value)), "code": _code}
    scripts = [library(), (FOLDER / "page.js").read_text(encoding="utf-8")]
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return environment.get_template("page.html").render(
        report=report,
        policy=(
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        library=_script(scripts[0]),
        script=_script(scripts[1]),
        plots=_json([_plain(plot) for section in report.sections for plot in section.plots]),
    )


def _script(text: str) -> Markup:
    assert "</script" not in text.lower(), "it would end before its end"
    assert "\r" not in text, "a browser would hash other text"
    return Markup(text)


def _plain(plot: Any) -> dict[str, Any]:
    return {name: getattr(plot, name) for name in ("id", "label", "spec", "rows", "kind", "overall", "step")}


def _json(value: Any) -> Markup:
    """JSON that ends no script and holds no entity; what is not a number is null."""
    text = orjson.dumps(value, default=float).decode()  # a DECIMAL of the catalog
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _code(text: str) -> Markup:
    """`...` as code."""
    pieces = str(escape(text)).split("`")
    return Markup("".join(f"<code>{piece}</code>" if n % 2 else piece for n, piece in enumerate(pieces)))
