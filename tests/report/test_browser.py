"""The report in a real browser: nothing is fetched, nothing fails, points answer, axes change, nothing is wider than the window."""

import json
import re
import shutil
import subprocess

import pytest

from lrsearch.report.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
const told = {errors: window.failures, width: document.documentElement.scrollWidth, window: window.innerWidth};
document.querySelector('#front').emit('plotly_click', {points: [{customdata: '3'}]});
told.plan = document.querySelector('#plan strong').textContent;
Plotly.Fx.hover('front', [{curveNumber: 1, pointNumber: 0}]);
told.hover = document.querySelectorAll('.hoverlayer .hovertext').length;
told.axis = document.querySelector('#front').layout.xaxis.title.text;
document.querySelector('#x').value = 'macs'; document.querySelector('#x').dispatchEvent(new Event('change'));
told.other = document.querySelector('#front').layout.xaxis.title.text;
document.querySelector('#logx').checked = true; document.querySelector('#logx').dispatchEvent(new Event('change'));
told.scale = document.querySelector('#front').layout.xaxis.type;
document.querySelector('#over').value = 'minutes'; document.querySelector('#over').dispatchEvent(new Event('change'));
told.over = document.querySelector('#volume').layout.xaxis.title.text;
told.higher = [...document.querySelectorAll('.plot')].filter(
  p => p.querySelector('.main-svg').getBoundingClientRect().height > p.getBoundingClientRect().height + 1).map(p => p.id);
document.body.setAttribute('data-told', JSON.stringify(told));
</script>"""


def with_layers(found, count=50):
    """``found`` with as many layers, and a figure with a legend for each."""
    found["layers"] = [{"layer": f"blocks.{i}.conv", "weight": "8×8×1×1"} for i in range(count)]
    for point in found["points"]:
        point |= {"plan": ["density 0.5"] * count, "ranks": [0.0] * count, "densities": [0.5] * count}
    lines = [{"type": "scatter", "x": [0, 1], "y": [i, i], "name": f"1024x288x1x1 on 288x{i}x1, svd"} for i in range(10)]
    found["figures"] = {"latency": [{"data": lines, "layout": {"title": {"text": "Latency by rank"}}}], "fidelity": []}
    return found


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [500, 1400])  # Chromium's own windows are at least 500 wide
def test_the_page_works_in_a_browser(data, tmp_path, width):
    html = page("digits", with_layers(data.to_dict()))
    watch = "<script>window.failures = []; window.onerror = console.error = e => failures.push(String(e));</script>"
    (tmp_path / "report.html").write_text(html.replace("<head>", f"<head>{watch}", 1).replace("</body>", f"{PROBE}</body>"))
    log = tmp_path / "net.json"
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", f"--window-size={width},900",
         "--virtual-time-budget=20000", f"--log-net-log={log}", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=600,
    )
    told = json.loads(re.search(r'data-told="(.*?)"', done.stdout)[1].replace("&quot;", '"'))
    assert told["errors"] == []
    assert told["width"] <= told["window"]
    assert told["higher"] == []  # none lies on what follows it
    assert told["plan"] == "trial 3 (knapsack)"
    assert told["hover"] == 1
    assert told["over"].startswith("minutes")
    assert (told["axis"], told["other"], told["scale"]) == ("parameters stored, % of dense", "MACs, % of dense", "log")
    asked = set(re.findall(r'"url":"(https?://[^"]+)"', log.read_text()))
    assert not {url for url in asked if not re.search("google|gstatic|gvt1", url)}  # the browser asks these by itself
