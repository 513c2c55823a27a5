import plotly.io as pio
import pytest

from lrsearch.report.figure import ShownFigure, front_figure
from lrsearch.report.frame import trials_frame
from lrsearch.spec.score import KL_FLOOR

OBJECTIVES = ("divergence", "params", "macs")


@pytest.fixture
def figure(records, dense, baseline):
    return front_figure(trials_frame(records, dense, baseline, OBJECTIVES), OBJECTIVES, "digits: quality", "nats")


def test_every_source_and_the_front_are_once_in_the_legend(figure):
    assert [t.name for t in figure.data if t.showlegend] == ["search", "uniform", "knapsack", "dense", "front"]
    assert {t.name for t in figure.data} == {t.legendgroup for t in figure.data}


def test_every_complete_trial_is_a_point_of_every_panel(figure):
    panels = {(t.xaxis, t.yaxis) for t in figure.data}
    assert len(panels) == 4
    for panel in panels:
        counts = {t.name: len(t.x) for t in figure.data if (t.xaxis, t.yaxis) == panel}
        assert counts == {"search": 2, "uniform": 1, "knapsack": 1, "dense": 1, "front": 3}


def test_points_are_percent_of_dense_against_kl_and_percent(figure):
    search = [t for t in figure.data if t.name == "search"]
    assert {tuple(t.x) for t in search} == {(40.0, 20.0)}
    assert {tuple(t.y) for t in search} == {(0.1, 1.0), (85.0, 50.0)}
    assert {tuple(t.y) for t in figure.data if t.name == "dense"} == {(KL_FLOOR,), (90.0,)}


def test_the_front_is_drawn_from_small_to_large(figure):
    lines = [t for t in figure.data if t.name == "front"]
    assert {t.mode for t in lines} == {"lines"}
    assert {tuple(t.x) for t in lines} == {(20.0, 40.0, 100.0)}


def test_only_the_divergence_has_logarithmic_axes(figure):
    kinds = {t.yaxis: ("log" if max(t.y) <= 1 else None) for t in figure.data if t.name == "search"}
    assert len(kinds) == 4
    assert all(figure.layout["yaxis" + axis.removeprefix("y")].type == kind for axis, kind in kinds.items())


def test_titles_and_hover_say_what_is_shown(figure):
    assert figure.layout.title.text == "digits: quality"
    titles = {figure.layout[a].title.text for a in ("xaxis3", "xaxis4", "yaxis", "yaxis3")}
    assert titles == {"parameters stored, % of dense", "MACs, % of dense", "KL from dense, nats", "task metric, %"}
    hover = next(t for t in figure.data if t.name == "search").hovertext[0]
    assert hover.startswith("trial 4 (search)<br>params 400 (40.0%)<br>KL 0.1000 ± 0.0100<br>metric 85.00% (-5.00 points)")
    assert hover.endswith("<br>rung 1, 5 finetune steps")


def test_no_trials_make_an_empty_figure(dense, baseline):
    assert front_figure(trials_frame([], dense, baseline, OBJECTIVES), OBJECTIVES, "nothing").data is not None


def test_a_figure_has_a_picture_for_what_does_not_render_plotly(trials, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    figure = ShownFigure(front_figure(trials, ("divergence", "params"), "two"), "<svg/>")
    bundle = figure._repr_mimebundle_()
    assert bundle["image/svg+xml"] == "<svg/>"
    assert len(bundle["application/vnd.plotly.v1+json"]["data"]) == len(figure.data) > 0
