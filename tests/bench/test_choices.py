"""Which choices are worth having, and where they are drawn."""

from __future__ import annotations

from itertools import combinations

import pytest

from lifedeploy.bench.choices import by_setting, ranked
from lifedeploy.bench.report import Choice, Row, Setting, Subject
from lifedeploy.viz import choices as drawing


def choice(images_per_s, top1, engine="openvino", precision="fp32", method="life", batch=8, copies=None):
    facts = {"model": "m", "method": method, "engine": engine, "precision": precision, "mac_ratio": None}
    values = dict.fromkeys(Row.__dataclass_fields__) | {"images_per_s": images_per_s}
    values["subject"] = Subject(**facts, weights="file", parity=None)
    values["setting"] = Setting(mode="latency", batch=batch, streams=1, threads=1, copies=copies)
    numbers = dict.fromkeys(Choice.__dataclass_fields__) | {"row": Row(**values), "pareto": False}
    return Choice(**numbers | {"top1": top1, "standard_error": 0.01})


def test_the_front_is_what_nothing_beats():
    made = ranked(
        [choice(10, 0.9), choice(20, 0.8), choice(15, 0.8), choice(5, 0.9), choice(12, 0.85), choice(1, 0.91)]
    )
    assert [(one.row.images_per_s, one.pareto) for one in made] == [
        (20, True),
        (15, False),  # as right, and slower
        (12, True),
        (10, True),
        (5, False),
        (1, True),
    ]


def test_equals_do_not_beat_each_other():
    assert [one.pareto for one in ranked([choice(10, 0.9), choice(10, 0.9)])] == [True, True]


def test_only_what_is_measured_alike_is_compared():
    small, large = choice(10, 0.9, batch=1), choice(100, 0.9)
    device = [choice(rate, 0.8, copies=copies) for rate, copies in ((200, True), (300, False))]
    settings = by_setting([small, large, *device])
    assert settings == [[small], [device[0], large], [device[1]]]  # the one without a device goes with copies
    assert all(one.pareto for one in ranked([small, large, *device]))


CLOSE = [
    choice(rate, top1, engine, precision, method)
    for engine, precision, method, rate, top1 in (
        ("openvino", "fp32", "dense", 6.9, 0.958),
        ("onnxruntime", "fp32", "dense", 6.7, 0.958),
        ("openvino", "fp32", "life", 9.5, 0.939),
        ("onnxruntime", "fp32", "life", 9.3, 0.939),
        ("openvino", "bf16", "dense", 21.0, 0.957),
        ("openvino", "bf16", "life", 30.2, 0.9395),
        ("onnxruntime", "fp16", "dense", 22.0, 0.956),
        ("onnxruntime", "fp16", "life", 29.5, 0.9393),
    )
]


@pytest.mark.parametrize("stretch", [1.0, 2.5])  # the wider one is drawn on a logarithmic axis
def test_names_cover_neither_each_other_nor_a_point(stretch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    made = ranked(
        [
            choice(
                one.row.images_per_s**stretch,
                one.top1,
                one.row.subject.engine,
                one.row.subject.precision,
                one.row.subject.method,
            )
            for one in CLOSE
        ]
    )
    figure = Figure(figsize=(10, 4.2))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    drawing.draw(axis, made, drawing.marked(made))
    figure.draw_without_rendering()
    drawing.label(axis, made)
    figure.draw_without_rendering()
    assert axis.get_xscale() == ("linear" if stretch == 1 else "log")
    texts = [text for text in axis.texts if text.get_text()]
    assert {text.get_text() for text in texts} == {
        f"{one.row.subject.engine} {one.row.subject.precision} {one.row.subject.method}" for one in made
    }
    boxes = [Text.get_window_extent(text) for text in texts]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].padded(-1).overlaps(pair[1])]
    points = [axis.transData.transform((one.row.images_per_s, one.top1 * 100)) for one in made]
    assert not [(box, point) for box in boxes for point in points if box.contains(*point)]
    (front,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert list(front.get_xdata()) == sorted(one.row.images_per_s for one in made if one.pareto)
    assert len({line.get_marker() for line in axis.lines if line.get_marker() not in ("None", "_")}) == 4


def test_the_axes_have_units():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    drawing.draw(axis, ranked(CLOSE), drawing.marked(CLOSE))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("images/s", "top-1, %")
