"""Charts hold the numbers of the tables, one colour per method and per model, and are words that plotly knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsemm.params import load_params
from sparsemm.policies import METHODS as KNOWN
from sparsemm.policies import SELECTORS, is_method
from sparsemm.report import charts
from sparsemm.report.results import PaperPoint
from sparsemm.report.style import METHODS, OTHER, SELECTED, SPARE, method_style, model_style, setting_styles
from sparsemm.statistics import Estimate
from sparsemm.studies.curve import AREA
from sparsemm.studies.curve import STUDY as CURVE
from sparsemm.studies.rho import STUDY as RHO
from tests.explorer import pages
from tests.recipes import comparison, recipe
from tests.report import crafted

ROOT = Path(__file__).parents[2]


def traces(chart, panel=0):
    return {trace["name"]: trace for trace in chart.spec()["panels"][panel]["traces"] if "name" in trace}


def test_every_method_has_a_style_of_its_own():
    styles = [*METHODS.values(), *SPARE]
    assert len({one.symbol for one in styles}) == len({one.colour for one in styles}) == len(styles)
    assert OTHER not in [method_style(method) for method in KNOWN]


def test_methods_that_are_evaluated_together_differ_in_symbol_and_colour():
    params = load_params(ROOT / "params.yaml")
    for settings in (params.evaluate, *(params.of(key).evaluate for key in params.models)):
        styles = [method_style(method) for method in settings.methods]
        assert len({one.glyph for one in styles}) == len({one.colour for one in styles}) == len(styles)


def test_a_new_method_takes_a_spare_style(monkeypatch):
    monkeypatch.setattr("sparsemm.report.style.REGISTRY", [*METHODS, "newer", "newest"])
    assert [method_style("newer"), method_style("newest")] == [*SPARE[:2]] and method_style("unknown") == OTHER
    styles = setting_styles(["top", "newest", "sparsemm"])
    assert styles["newest"] == SPARE[1] and styles["sparsemm"] is METHODS["sparsemm"]


def test_a_method_with_another_selector_has_a_style_of_its_own():
    names = [*KNOWN, *(f"{policy}+{selector}" for policy in KNOWN for selector in SELECTORS)]
    styles = [method_style(name) for name in names if is_method(name)]
    assert len(set(styles)) == len(styles) and OTHER not in styles
    every = [*METHODS.values(), *SPARE]
    assert len({one.colour for one in every} | set(SELECTED)) == len(every) + len(SELECTED)
    assert len(SELECTED) >= len(SELECTORS)
    assert setting_styles(["top", "sparsemm+peak"])["sparsemm+peak"] == method_style("sparsemm+peak")
    assert method_style("sparsemm+nothing") == OTHER


def test_models_and_settings_have_colours_that_no_method_has():
    methods = {one.colour for one in (*METHODS.values(), *SPARE)}
    assert len({model_style(n).colour for n in range(8)}) == 8
    assert not {model_style(n).colour for n in range(20)} & methods
    assert model_style(9) != model_style(1) and model_style(9).colour == model_style(1).colour
    styles = setting_styles(["top", "sparsemm", "random", "none", "top"])
    assert styles["sparsemm"] is METHODS["sparsemm"] and styles["random"] is METHODS["random"]
    assert not {styles["top"].colour, styles["none"].colour} & methods and styles["top"] != styles["none"]
    assert OTHER.colour not in methods


def test_accuracy_holds_values_intervals_and_the_share_of_the_prompt():
    rows = [crafted.row("full", None, 0.9)]
    rows += [crafted.row(method, b, b / 20) for method in ("sparsemm", "snapkv") for b in (8, 16)]
    chart = charts.accuracy(crafted.model(rows))
    crafted.drawable(chart)
    (panel,) = chart.spec()["panels"]
    assert panel["x"]["ticktext"] == ["8<br>10%", "16<br>20%"] and panel["y"]["range"] == [-0.02, 1.03]
    assert traces(chart)["snapkv"]["y"] == [0.4, 0.8] and traces(chart)["full"]["y"] == [0.9, 0.9]
    assert traces(chart)["snapkv"]["error_y"]["array"] == pytest.approx([0.1, 0.1])
    assert traces(chart)["snapkv"]["line"]["color"] == METHODS["snapkv"].colour
    assert traces(chart)["snapkv"]["x"] != traces(chart)["sparsemm"]["x"]  # bars stand beside each other
    assert list(chart.legend()) == ["full", "sparsemm", "snapkv"]
    rows[1] = crafted.row("sparsemm", 8, 40.0)
    assert "range" not in charts.accuracy(crafted.model(rows)).spec()["panels"][0]["y"]


def test_one_page_draws_no_bars():
    chart = charts.accuracy(crafted.model([crafted.row(m, b, 0.5, n=1) for m, b in (("full", None), ("sparsemm", 8))]))
    crafted.drawable(chart)
    assert "error_y" not in traces(chart)["sparsemm"] and len(chart.spec()["panels"][0]["traces"]) == 2


def test_score_curves_end_at_the_whole_score():
    chart = charts.score_curves([crafted.model(), crafted.model(key="n", number=1, share=0.9)])
    crafted.drawable(chart)
    assert traces(chart)["m"]["y"][0] == 50.0 and traces(chart)["n"]["y"][-1] == pytest.approx(100)
    assert traces(chart, 1)["m"]["y"][0] == 10.0  # times an even share of 1 in 20
    assert traces(chart)["n"]["line"]["color"] == model_style(1).colour == traces(chart, 1)["n"]["line"]["color"]


def test_a_heat_map_has_layers_down_and_heads_across():
    chart = charts.heat_map(crafted.heads(), "", 60.0)
    crafted.drawable(chart)
    (panel,) = chart["panels"]
    (trace,) = panel["traces"]
    assert np.shape(trace["z"]) == (5, 4) and trace["z"][0][0] == 50.0 and trace["zmax"] == 60.0
    assert trace["customdata"][0][0] == 1 and panel["y"]["autorange"] == "reversed"


def test_cost_holds_times_memory_bytes_the_least_time_and_the_papers_points():
    timings = [crafted.timing(method, n, ms=n / 100) for method in ("transformers", "sparsemm") for n in (512, 128)]
    points = [
        PaperPoint(shape="s", quantity="decode_speedup", method="sparsemm", budget=16, prompt_length=512, value=2.0),
        PaperPoint(shape="s", quantity="peak_gb", method="sparsemm", budget=16, prompt_length=512, value=1.048576),
        PaperPoint(shape="s", quantity="decode_speedup", method="sparsemm", budget=16, prompt_length=7, value=2.0),
    ]
    chart = charts.cost(timings, points)
    crafted.drawable(chart)
    assert traces(chart)["sparsemm"]["x"] == [128, 512] and traces(chart)["sparsemm"]["y"] == [1.28, 5.12]
    assert traces(chart)["the paper"]["y"] == [5.12 / 2] and traces(chart, 1)["the paper"]["y"] == [1000.0]
    dotted = [one for one in chart.spec()["panels"][0]["traces"] if one["name"] == ""]
    assert len(dotted) == 2 and dotted[0]["y"] == [0.64, 2.56]
    assert "" not in chart.legend()


def area_rows(key="m", gain=0.2):
    made = [one for one in crafted.study_rows(key=key, gain=gain) if one.budget != 24]
    return [one.model_copy(update={"condition": AREA, "budget": None}) for one in made]


def test_differences_have_one_colour_per_model_and_a_line_at_zero():
    models = [crafted.model(), crafted.model(key="n", number=1)]
    result = crafted.studied(CURVE, area_rows() + area_rows("n", -0.1))
    chart = charts.differences(result, models)
    crafted.drawable(chart)
    (panel,) = chart.spec()["panels"]
    assert panel["zero"] == "y" and panel["y"]["rangemode"] == "tozero"
    assert traces(chart)["m"]["y"] == [0.2] and traces(chart)["n"]["y"] == [-0.1]
    assert traces(chart)["n"]["line"]["color"] == model_style(1).colour
    assert charts.differences(result, models[1:]).legend().keys() == {"n"}
    assert charts.differences(crafted.studied(CURVE, []), models) is None


def test_recipes_are_drawn_as_the_differences_of_their_winners():
    evidence = [comparison("w", "all tasks", "better"), comparison("w", "all tasks", "worse", "adakv")]
    evidence += [comparison("w", "read", "worse"), comparison("w", "all tasks", "worse", "random", budget=12)]
    evidence += [comparison("snapkv", "all tasks", "worse", "h2o")]  # the method that is used in the winner's place
    plain = recipe(pages.table())
    choice = plain.scenarios["known"].model_copy(update={"winner": "w", "name": "snapkv", "evidence": tuple(evidence)})
    other = plain.model_copy(update={"scenarios": plain.scenarios | {"known": choice}})
    models = [crafted.model(recipe=other), crafted.model(key="n", number=1, recipe=plain), crafted.model(key="o")]
    chart = charts.recipes(models)
    crafted.drawable(chart)
    (panel,) = chart.spec()["panels"]  # the scenario later has no evidence
    assert panel["title"] == "known" and panel["x"]["ticktext"] == ["snapkv", "adakv"]
    assert traces(chart)["m"]["y"] == [0.1, -0.1] and traces(chart)["m"]["mode"] == "markers"
    assert traces(chart)["n"]["y"] == [0.1] and traces(chart)["n"]["line"]["color"] == model_style(1).colour
    assert charts.recipes(models[2:]) is None


def test_levels_are_across_and_many_comparisons_are_lines_of_text():
    rows = [one.model_copy(update={"level": n / 10}) for n in range(3) for one in crafted.study_rows("rho")[:1]]
    rows = [one.model_copy(update={"setting": "rho", "against": "rho (0.1)", "diff": 0.1}) for one in rows]
    chart = charts.differences(crafted.studied(RHO, rows, "rho"), [crafted.model()])
    (panel,) = chart.spec()["panels"]
    assert panel["x"]["ticktext"] == ["0", "0.1", "0.2"] and panel["x"]["title"]["text"] == "rho"
    several = [
        one.model_copy(update={"against": f"method {n}", "budget": None}) for n, one in enumerate(area_rows() * 4)
    ]
    several = [one.model_copy(update={"setting": "sparsemm", "diff": 0.1}) for one in several]
    lying = charts.differences(crafted.studied(CURVE, several), [crafted.model()])
    crafted.drawable(lying)
    (panel,) = lying.spec()["panels"]
    assert panel["zero"] == "x" and len(panel["y"]["ticktext"]) == len(several) and panel["y"]["range"][0] > 0


def test_a_study_of_one_model_draws_lines_over_budgets_and_marks_where_there_is_one_place():
    result = crafted.studied(CURVE, crafted.study_rows())
    chart = charts.study_values(result, crafted.study_rows())
    crafted.drawable(chart)
    assert (
        traces(chart)["sparsemm"]["mode"] == "lines+markers"
        and traces(chart)["full"]["y"][0] == traces(chart)["full"]["y"][1]
    )
    marks = charts.study_values(result, area_rows())
    crafted.drawable(marks)
    assert traces(marks)["sparsemm"]["mode"] == "markers" and marks.spec()["panels"][0]["y"]["ticktext"][:1] == [
        "snapkv"
    ]


def test_a_chart_with_names_beside_it_is_as_high_as_they_are():
    """A line of a name is at most 16 pixels high; a panel has 90 pixels for its title and the axis below."""
    names = [f"a method with a long name, number {n}" for n in range(20)]
    rows = [one.model_copy(update={"setting": name}) for name, one in zip(names, area_rows() * 20, strict=False)]
    assert charts.study_values(crafted.studied(CURVE, rows), rows).row - 90 >= 20 * 2 * 16
    few = charts.study_values(crafted.studied(CURVE, rows[:2]), rows[:2])
    assert few.row == charts.study_values(crafted.studied(CURVE, crafted.study_rows()), crafted.study_rows()).row
    rows = [
        one.model_copy(update={"setting": "sparsemm", "against": name, "diff": 0.1})
        for name, one in zip(names, rows, strict=True)
    ]
    assert charts.differences(crafted.studied(CURVE, rows), [crafted.model()]).row - 90 >= 20 * 2 * 16


def test_an_arm_without_a_condition_is_what_the_others_are_measured_by():
    bare = crafted.study_rows("masking")[-1].model_copy(update={"setting": "none", "level": 0.0})
    zeroed = [
        bare.model_copy(update={"condition": "output zeroed", "setting": name, "level": level})
        for name in ("top", "random")
        for level in (0.1, 0.3)
    ]
    chart = charts.study_values(crafted.studied(CURVE, [bare]), [bare, *zeroed])
    (panel,) = chart.spec()["panels"]
    assert panel["title"] == "read, output zeroed" and set(traces(chart)) == {"none", "top", "random"}
    assert len(traces(chart)["none"]["x"]) == 2 and panel["x"]["ticktext"] == ["0.1", "0.3"]


def test_rows_for_dvc_are_the_points_of_the_chart():
    series = charts.Series(
        "a", model_style(0), [charts.Point("x", Estimate(0.5, 0.4, 0.6)), charts.Point("y", Estimate(1))]
    )
    rows = charts.Chart([charts.Panel("title", "across", "up", [series], ["x", "y"])]).rows()
    assert rows == [
        {"panel": "title", "series": "a", "at": "x", "value": 0.5, "low": 0.4, "high": 0.6},
        {"panel": "title", "series": "a", "at": "y", "value": 1, "low": "", "high": ""},
    ]
