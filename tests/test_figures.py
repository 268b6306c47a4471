"""Figures: their bytes are reproducible, each has its data next to it, and its values equal brute force."""

import base64

import numpy as np
import pandas as pd
import pytest
import seaborn
from matplotlib.colors import to_hex
from matplotlib.patches import Wedge
from matplotlib.text import Text
from page_inputs import chapters, draw, sentences
from synthetic import column, content_uniform, random_causal

from picollm.report import attention_figures as heads_figures
from picollm.report import gallery, style
from picollm.report import sentence_figures as attention
from picollm.report.gallery import embedded
from picollm.report.measurement_figures import BASELINE, latency_bars
from picollm.report.style import RESOLUTION, plt, save


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("figures"))


def test_figures_repeat_to_the_byte_and_replace_an_earlier_run(figures, tmp_path):
    (tmp_path / "old.svg").write_text("<svg/>")
    again = draw(tmp_path)
    first = {path.name: path.read_bytes() for path in figures.parent.iterdir()}
    assert first == {path.name: path.read_bytes() for path in again.parent.iterdir()}
    pictures = {name for name in first if not name.endswith((".csv", ".json"))}
    assert len(pictures) == 19 and first["simple-0-maps.png"].startswith(b"\x89PNG") and b"<svg" in first["grid.svg"]


def test_each_figure_has_its_data_beside_it(figures):
    for name, entry in embedded(figures).items():
        table = pd.read_csv(figures.parent / entry["data"]["file"])
        assert len(table) and entry["csv"].startswith("data:text/csv"), name


def test_the_tables_hold_what_the_figures_show(figures):
    weights, n = sentences()[0].maps[1], 3  # the one of medium length
    maps = pd.read_csv(figures.parent / "simple-0-maps.csv")
    for row in maps.itertuples():
        shown = [getattr(row, f"k{key}") for key in range(n)]
        expected = weights[row.layer, row.head, row.query]
        assert np.allclose(shown[: row.query + 1], expected[: row.query + 1], atol=5e-5)
        assert np.isnan(shown[row.query + 1 :]).all()
    flow = pd.read_csv(figures.parent / "simple-0-flow.csv")
    edges = flow[flow["layer"].notna()]
    assert len(edges) == len(slow_edges(weights))
    assert len(flow) - len(edges) == n * (n + 1) // 2 and (flow["from"] <= flow["to"]).all()
    ablation = pd.read_csv(figures.parent / "ablation.csv")
    assert ablation["delta"].tolist() == [0, 0.01, 0.02, 0.03] and ablation["label"][0] == "diagonal"


def test_no_text_is_below_nine_pixels(tmp_path, monkeypatch):
    """At a figure's own size, an inch of an SVG is 96 pixels in a browser, one of a PNG the resolution of `save`."""
    drawn = []

    def kept(figure, path, suffix):
        drawn.append((figure, suffix))
        save(figure, path, suffix)

    monkeypatch.setattr(gallery, "save", kept)
    draw(tmp_path / "figures")
    assert len(drawn) == 19
    for figure, suffix in drawn:
        pixels = {".svg": 96, ".png": RESOLUTION}[suffix] / 72
        small = {
            text.get_text(): text.get_fontsize()
            for text in figure.findobj(Text)
            if text.get_text() and pixels * text.get_fontsize() < 9
        }
        assert small == {}, figure


def test_the_size_and_the_colours_are_the_configurations(tmp_path, monkeypatch):
    monkeypatch.setitem(style.SETTINGS, "size", 1.0)
    before = dict(style.LABEL_COLOURS)
    try:
        style.set_up(2.0, "colorblind")
        figure = heads_figures.class_pie(chapters()["heads"]["labels"])
        assert figure.get_size_inches().tolist() == [16.4, 6.4]
        colours = {to_hex(wedge.get_facecolor()) for wedge in figure.findobj(Wedge)}
        assert colours == {to_hex(seaborn.color_palette("colorblind", 7)[k]) for k in (0, 4, 5)}
    finally:
        style.LABEL_COLOURS.update(before)
    assert "--local: #02629c" in style.css("picollm") and style.css("deep") == style.css("deep", dark=True)


def test_embedded_figures_are_the_files(figures):
    found = embedded(figures)
    assert found["simple-0-flow.svg"]["group"] == "Simple <b>" and "steps" in found["profile.svg"]["caption"]
    for name, entry in found.items():
        kind, data = entry["uri"].split(";base64,")
        assert kind == ("data:image/png" if name.endswith("png") else "data:image/svg+xml")
        assert base64.b64decode(data) == (figures.parent / name).read_bytes()


def test_no_figure_writes_a_formula(figures):
    """Formulas are off, because user text has none: those that matplotlib writes by itself would show their source."""
    for path in figures.parent.glob("*.svg"):
        assert b"mathdefault" not in path.read_bytes(), path


def slow_edges(weights):
    """Computed by hand: mean over heads, without key 0; of the two largest shares those of at least twice 1 / keys."""
    edges = {}
    n_layers, n_heads, n, _ = weights.shape
    for layer in range(n_layers):
        for i in range(1, n):
            mass = {j: sum(weights[layer, h, i, j] for h in range(n_heads)) / n_heads for j in range(1, i + 1)}
            total = sum(mass.values())
            for j in sorted(mass, key=mass.get, reverse=True)[:2]:
                if mass[j] / total >= 2 / len(mass):
                    edges[(layer, j), (layer + 1, i)] = mass[j] / total
    return edges


@pytest.mark.parametrize(("scale", "least"), [(1.0, 1), (3.0, 20)])
def test_flow_edges_equal_brute_force(scale, least):
    weights = random_causal((3, 2, 9, 9), seed=4, scale=scale)
    graph, expected = attention.flow_graph(weights), slow_edges(weights)
    assert {(a, b): w for a, b, w in graph.edges(data="weight")} == pytest.approx(expected)
    assert len(expected) >= least
    assert set(graph.nodes) == {(layer, i) for layer in range(4) for i in range(1, 9)}


def test_flow_of_uniform_and_of_one_column():
    assert not attention.flow_graph(content_uniform(8, sink=0.5)[None, None]).edges
    edges = set(attention.flow_graph(column(8, 3)[None, None]).edges)
    assert edges == {((0, min(i, 3)), (1, i)) for i in range(2, 8)}


def test_the_rollout_equals_brute_force_and_uniform_heads_give_one():
    weights = random_causal((3, 2, 6, 6), seed=9, scale=2.0)
    reached = np.eye(6)
    for layer in range(3):
        step = np.array([[sum(weights[layer, h, i, j] for h in range(2)) / 4 + (i == j) / 2 for j in range(6)]
                         for i in range(6)])  # fmt: skip
        reached = np.array([[sum(step[i, k] * reached[k, j] for k in range(6)) for j in range(6)] for i in range(6)])
    assert np.allclose(attention.rollout(weights), reached) and np.allclose(reached.sum(1), 1)
    uniform = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
    relative = attention.relative_rollout(np.broadcast_to(uniform, (4, 3, 6, 6)))
    assert np.allclose(relative[np.tril_indices(6)], 1) and np.isnan(relative[np.triu_indices(6, 1)]).all()


def test_each_bar_has_its_own_backends_numbers_though_a_batch_lacks_one():
    def row(backend, batch, p50):
        speedups = {} if backend == BASELINE else {BASELINE: {"ratio": 10 / p50, "low": 9 / p50, "high": 11 / p50}}
        latency = {"p50": p50, "p90": p50 + 1}
        return {"backend": backend, "output": "last", "batch": batch, "latency_ms": latency, "speedups": speedups}

    small = {BASELINE: 10.0, "fast": 4.0, "slow": 20.0, f"{BASELINE} (again)": 10.5}
    large = {BASELINE: 30.0, "fast": 14.0, "fast (again)": 15.0, "slow": 60.0, f"{BASELINE} (again)": 31.0}
    rows = [
        row(*each) for batch, times in ((1, small), (8, large)) for each in ((n, batch, t) for n, t in times.items())
    ]
    figure = latency_bars(rows)
    label = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    del large["fast (again)"]  # the fastest at one batch only
    for axis, batch, times in zip(figure.axes, (1, 8), (small, large), strict=True):
        bars = {label[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axis.patches[1:]}
        assert bars == times, batch
        written = {label[text.xy[1]]: float(text.get_text()) for text in axis.texts}
        assert written == times, batch
        for name, ends in {
            label[line.get_ydata()[0]]: line.get_xdata() for line in axis.lines if len(line.get_xdata()) > 1
        }.items():
            base = times[BASELINE]
            np.testing.assert_allclose(ends, [base * times[name] / 11, base * times[name] / 9], err_msg=name)
    plt.close(figure)
