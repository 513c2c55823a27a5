"""The report as one HTML file that opens offline: a template, plotly's own script, and the data as JSON."""

import html
import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

_ASSETS = Path(__file__).parent / "assets"


def page(title: str, data: Mapping[str, Any]) -> str:
    """The page that shows ``data``, as :func:`lrsearch.report.page_data.page_data` makes them."""
    parts = {
        "title": html.escape(title), "style": _asset("page.css"), "script": _asset("page.js"), "plotly": get_plotlyjs(),
        "unit": html.escape(f", in {data['unit']}") if data["unit"] else "",
        "kl": " Here it is the Kullback–Leibler divergence (KL)." if data["far"] == "KL" else "",
        "data": json.dumps(_plain(data)).replace("<", "\\u003c"),  # names may hold "</script>"
    }
    text = _asset("page.html")
    pieces = [piece.partition("}") for piece in text.split("{")]
    return pieces[0][0] + "".join(parts[name] + rest for name, _, rest in pieces[1:])


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: no NaN, no NumPy."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not isfinite(value) else value
