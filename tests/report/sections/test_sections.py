"""The whole page of crafted results: complete, escaped, and with the numbers and verdicts of its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparsemm.explorer.stage import contents
from sparsemm.params import load_params, parse_params
from sparsemm.report import sections
from sparsemm.report.html import page
from sparsemm.report.results import HeldOut, HitRate, Refusal, Results, read_results
from sparsemm.report.sections import accuracy, all_studies, first_screen, heads
from sparsemm.studies.curve import AREA
from sparsemm.studies.curve import STUDY as CURVE
from sparsemm.studies.masking import LAYERS
from sparsemm.studies.masking import STUDY as MASKING
from sparsemm.studies.rho import STUDY as RHO
from tests.explorer import pages
from tests.recipes import recipe
from tests.report import crafted

ROOT = Path(__file__).parents[3]


def build(results):
    """The page of some results, checked."""
    links, parts = sections.written(results)
    return crafted.checked(page("t", links, "", *parts))


def explored(**more):
    return crafted.evaluated(explorer=contents([pages.reading()], pages.table()), **more)


def charts(result):
    """Every chart of the page."""
    made = [json.loads(text) for text in result.scripts if text.startswith('{"panels"')]
    return made


def tabled(html):
    """Cells of every row of a piece of HTML."""
    return [
        row.split("|") for row in html.replace("</tr>", "\n").replace("</td>", "|").replace("</th>", "|").split("\n")
    ]


@pytest.mark.parametrize(
    ("against", "word", "counts"),
    [
        ((-0.2, -0.1), "better", "1 / 0 / 0"),
        ((0.1, 0.2), "worse", "0 / 0 / 1"),
        ((-0.1, 0.1), "no difference shown", "0 / 1 / 0"),
    ],
)
def test_the_page_says_what_the_table_says(against, word, counts):
    result = build(crafted.results(crafted.evaluated(against)))
    assert f"{word} at B = 8" in result.text and counts in result.text
    for other in {"better", "worse", "no difference shown"} - {word}:
        assert f"{other} at B = 8" not in result.text


def test_tables_have_accuracy_first_and_one_sign():
    html = accuracy.of_model(crafted.evaluated((-0.2, -0.1)))
    assert ">snapkv, B = 8</th><td>0.500 [0.400, 0.600]</td>" in html
    assert "<td>+0.150 [+0.100, +0.200]</td><td>better</td><td>-0.400 [-0.500, -0.300]</td><td>worse</td>" in html


def test_a_method_that_was_refused_is_a_row_with_its_reason():
    reason = "2 whole layers of 80 slots do not fit <8>"
    refused = [Refusal("read", "fastv", "", budget, reason) for budget in ("8", "16")]
    refused += [Refusal("read", "duo", "", "8", "1 whole head"), Refusal("qa", "duo", "", "8", "another task")]
    plain = accuracy.of_model(crafted.evaluated())
    result = crafted.checked(accuracy.of_model(crafted.evaluated(refused=refused)))
    html = accuracy.of_model(crafted.evaluated(refused=refused))
    assert ">fastv, B = 8</th><td>refused</td><td>-</td>" in html and ">duo, B = 8</th><td>refused</td>" in html
    items = "refused: fastv at B = 8, B = 16: 2 whole layers", "refused: duo at B = 8: 1 whole head"
    assert all(text in result.text for text in items) and "<8>" in result.text and "another task" not in result.text
    assert "Refused where the prompts are too long: fastv, duo" in result.text
    assert "refused" not in plain.lower() and len({len(row) for row in tabled(html) if "refused" in str(row[1:2])}) == 1


def test_a_study_says_what_it_could_not_measure():
    rows = crafted.study_rows("rho")
    refused = {"m": [Refusal("read", "duo", "0.05", "", "too long"), Refusal("qa", "duo", "0.1", "", "longer")]}
    made = crafted.studied(RHO, rows, "rho")
    models = [crafted.evaluated()]
    html = all_studies.shown(made, models, "rho")
    assert "refused" not in html
    html = all_studies.shown(replace(made, refused=refused), models, "rho")
    assert "<li>refused: duo at level 0.05, level 0.1: too long</li>" in html.partition("<details")[2]


def test_every_chart_is_in_the_page_and_has_words():
    result = build(crafted.results(crafted.evaluated()))
    plots = [one for one in result.all("div") if one.get("class") == "plot"]
    assert len(charts(result)) == len(plots) == 4  # accuracy, curves, heat map, cost
    assert all(one["role"] == "img" and len(one["aria-label"]) > 30 for one in plots)
    assert [one["data-model"] for one in result.all("figure") if "data-model" in one] == ["m"]


def test_the_page_reads_like_results():
    """What was found, then the evidence, its cost and its limits; the contents follow."""
    result = build(crafted.results(explored(), explored(key="t", note="a test model", number=1)))
    order = ["found", "accuracy", "heads", "explorer", "cost", "limits", "appendix"]
    assert [one["id"] for one in result.all("section")] == order
    assert [one["href"] for one in result.all("a")] == ["#" + anchor for anchor in order]


def test_sections_without_anything_to_say_are_left_out(monkeypatch):
    empty = sections.Section("empty", "Empty", "Nothing here", lambda results: ["", ""])
    more = sections.Section("more", "More", "Something else", lambda results: ["<p>else</p>"])
    monkeypatch.setattr(sections, "SECTIONS", (empty, more))
    links, parts = sections.written(crafted.results())
    assert links == [("more", "More")] and len(parts) == 1


def test_the_first_screen_has_the_picture_and_three_sentences_with_intervals():
    areas = [one.model_copy(update={"condition": AREA, "budget": None}) for one in crafted.study_rows()]
    top = {"condition": "output zeroed", "setting": "top", "against": LAYERS, "level": 0.1, "value": 0.146}
    lost = {"diff": -0.3, "diff_ci_low": -0.4, "diff_ci_high": -0.2, "verdict": "worse"}
    masked = [one.model_copy(update=top | lost) for one in crafted.study_rows("masking")[:1]]
    made = [crafted.studied(CURVE, [one for one in areas if one.diff]), crafted.studied(MASKING, masked, "masking")]
    results = crafted.results(explored(), studies=made)
    html = "".join(first_screen.parts(results))
    result = crafted.checked(html)
    assert len(result.all("li")) == 3 and len(result.all("img")) == 3
    assert "50 %" in html and "best 10 % of heads switched off" in html and "0.146" in html
    assert "-0.300 [-0.400, -0.200]" in html
    difference = next(one.difference for one in made[0].rows["m"] if one.against == "snapkv" and one.diff)
    assert difference.text("+") in first_screen.all_models(results)
    assert "-0.300 [-0.400, -0.200]" in first_screen.size(results.models[0])
    assert "25 %" in first_screen.size(results.models[0])


def test_the_first_model_that_is_evidence_leads():
    """In the order of params.yaml, and test models never."""
    first, second = crafted.evaluated(share=0.5), crafted.evaluated((0.1, 0.2), key="n", share=0.9, number=1)
    noted = crafted.evaluated((0.1, 0.2), key="t", note="a test model", share=0.9)
    for others in ([first, second], [noted, first], [first]):
        html = "".join(first_screen.parts(crafted.results(*others)))
        assert "50 %" in html and "90 %" not in html
    assert first_screen.NOTHING in "".join(first_screen.parts(crafted.results(noted)))
    few = crafted.model([crafted.row(m, b, 0.5, n=1) for m, b in (("full", None), ("sparsemm", 8))])
    assert first_screen.TOO_FEW in "".join(first_screen.parts(crafted.results(few)))


def test_methods_are_compared_at_the_budget_in_the_middle():
    rows = [crafted.row("full", None, 0.9)]
    for budget, low in ((8, 0.1), (16, 0.2), (24, 0.3)):
        rows.append(crafted.row("sparsemm", budget, 0.6 + low, full=(-0.3, -0.2)))
        rows.append(crafted.row("sparsemm+peak", budget, 0.7 + low, (0.05, 0.15)))
        rows += [
            crafted.row(method, budget, value, (-0.5, -0.4)) for method, value in (("snapkv", 0.3), ("adakv", 0.2))
        ]
    text = first_screen.methods(crafted.model(rows))
    assert "at 16 slots" in text and "0.800 [" in text and "0.900 [0.800, 1.000] with sparsemm + peak" in text
    assert "sparsemm minus snapkv is +0.450 [+0.400, +0.500]" in text and "adakv" not in text
    assert first_screen.methods(crafted.model(rows[:2])) == ""


def test_size_names_the_budget_that_is_enough():
    def model(low, high):
        rows = [crafted.row("full", None, 0.9), crafted.row("sparsemm", 8, 0.5, full=(-0.5, -0.4))]
        return crafted.model([*rows, crafted.row("sparsemm", 16, 0.8, full=(low, high))])

    assert "-0.050 [-0.200, +0.100] on read at B = 16" in first_screen.size(model(-0.2, 0.1))
    assert "-0.150 [-0.200, -0.100] on read at B = 16, worse" in first_screen.size(model(-0.2, -0.1))
    rows = [crafted.timing(length=128, kept=50), crafted.timing(length=512, kept=10)]
    assert "10 %" in first_screen.size(crafted.model(timings=rows))


def test_the_explorer_has_labelled_controls_and_its_data():
    result = build(crafted.results(explored(), crafted.model(key="n", explorer={"reason": "too large"}, number=1)))
    labels = {one["for"] for one in result.all("label")}
    assert labels == {one["id"] for one in result.all("select")} and len(labels) == 7
    ids = [one["id"] for _, one in result.seen if "id" in one]
    assert len(ids) == len(set(ids))
    (data,) = [json.loads(text) for text in result.scripts if text.startswith('{"models"')]
    (model,) = data["models"]
    assert model["pages"][0]["id"] == "page-1" and model["hits"][0][0] == 9 and model["share"][0][0] == 0.5
    assert (
        data["colours"] == {"sparsemm": "#D55E00", "snapkv": "#0072B2"}
        and "n is not in the explorer: too large." in result.text
    )


def test_what_is_missing_is_said():
    result = build(crafted.results(crafted.model()))
    assert accuracy.NOT_EVALUATED in result.text and len(charts(result)) == 2 and not result.all("select")
    assert "explorer" not in {one["id"] for one in result.all("section")}


@pytest.mark.parametrize(("pages", "known"), [(1, False), (2, True)])
def test_one_page_has_no_verdict_anywhere(pages, known):
    model = crafted.evaluated((-0.2, -0.1))
    few = [row.model_copy(update={"pages": pages}) for row in model.accuracy]
    result = build(crafted.results(crafted.model(few)))
    assert ("better at B = 8" in result.text) == known == ("1 / 0 / 0" in result.text)
    assert ("[0." in result.text) == known and (accuracy.TOO_FEW in result.text) != known


def test_test_models_are_kept_apart_unless_there_are_no_others():
    test = crafted.evaluated(key="t", note="a declared test model", number=1)
    result = build(crafted.results(crafted.evaluated(), test))
    assert "a declared test model" in result.text and result.text.count("t *") >= 4
    names = {one["data-name"] for one in result.all("button") if one.get("role") == "tab"}
    assert names == set()  # one model is evidence: no tabs
    alone = build(crafted.results(test))
    assert "appendix" not in {one["id"] for one in alone.all("section")} and len(charts(alone)) == 4


def test_models_have_tabs_of_the_same_names_everywhere():
    result = build(crafted.results(*(crafted.evaluated(key=key, number=n) for n, key in enumerate("ab"))))
    groups = [one["aria-controls"].rpartition("-panel")[0] for one in result.all("button")]
    assert {group: groups.count(group) for group in groups} == {"accuracy": 2, "heads": 2, "cost": 2}
    assert {one["data-name"] for one in result.all("button")} == {"a", "b"}


def test_hostile_names_and_notes_stay_text():
    bad = '"><img src=x onerror=alert(1)></script><!--'
    result = build(
        crafted.results(crafted.evaluated(key=bad, explorer={"reason": bad}), crafted.evaluated(key="t", note=bad))
    )
    assert bad in result.text and not result.all("img")
    result = build(crafted.results(crafted.evaluated(key=bad, explorer=contents([pages.reading(bad)], pages.table()))))
    assert all(one["src"].startswith("data:image/") for one in result.all("img"))
    assert all("onerror" not in attributes for _, attributes in result.seen)
    (data,) = [json.loads(text) for text in result.scripts if text.startswith('{"models"')]
    assert data["models"][0]["key"] == data["models"][0]["pages"][0]["id"] == bad


def test_heads_show_other_data_sets_hit_rates_and_the_card():
    cells = {"covariate": "box_height_px", "bin": "8-16", "samples": 4, "tokens": 9, "top_heads": 0.875}
    rate = HitRate.model_validate(cells | {"ci_low": 0.8, "ci_high": 0.9, "all_heads": 0.25})
    other = crafted.heads(0.9)
    other.rates.append(rate)
    model = crafted.model(others={"e": other}, held_out={"one": HeldOut(word_accuracy=0.987, exact_match=1.0)})
    html = heads.of_model(crafted.results(model), model)
    assert "1.000" in html and html.count("data:") == 0 and "100%" in html
    assert "87.5%" in html and "80.0% to 90.0%" in html and "98.7%" in html
    one = rate.model_copy(update={"samples": 1})
    model.others["e"].rates[:] = [one]
    assert "80.0% to 90.0%" not in heads.of_model(crafted.results(model), model)


def test_one_sample_has_no_reliability():
    model = crafted.model()
    object.__setattr__(model.heads.metrics, "split_half", None)
    assert "r =" not in heads.concentration(model) and "nan" not in heads.concentration(model)


def test_nothing_is_said_of_documents_that_were_not_evaluated():
    given = crafted.PARAMS.replace(
        "methods: [full, sparsemm]", "methods: [full, sparsemm], tasks: [textcaps_val], source: d"
    )
    rows = [
        crafted.row(*one, task="textcaps_val", metric="textcaps_CIDEr")
        for one in (("full", None, 0.9), ("sparsemm", 8, 0.6))
    ]
    text = build(crafted.results(crafted.model(rows), params=given)).text
    assert "textcaps_val, 9 questions of its files in 'd'" in text and "was not checked" in text
    for wrong in ("another split", "word accuracy", "exact match", "pages of 'e'"):
        assert wrong not in text


def test_a_study_has_its_conclusion_charts_and_all_numbers():
    made = crafted.studied(RHO, crafted.study_rows("rho"), "rho")
    html = "".join(all_studies.parts(crafted.results(crafted.evaluated(), studies=[made])))
    result = crafted.checked(html)
    assert [one["id"] for one in result.all("h3")] == ["study-rho"]
    assert RHO.title in result.text and RHO.question in result.text and RHO.conclusion(made.rows["m"]) in result.text
    assert len(charts(result)) == 2
    assert ">sparsemm, read, B = 12, against snapkv</th>" in html and "+0.200 [" in html


def test_the_strongest_evidence_is_open_and_other_charts_are_folded():
    rows = [
        one.model_copy(update={"condition": "output zeroed", "setting": "top", "against": "random"})
        for one in crafted.study_rows()
    ]
    opened, folded = crafted.studied(MASKING, rows, "masking"), crafted.studied(RHO, crafted.study_rows("rho"), "rho")
    html = "".join(all_studies.parts(crafted.results(crafted.evaluated(), studies=[folded, opened])))
    assert html.index("study-masking") < html.index("study-rho")
    first, second = html.split('id="study-rho"')
    assert first.index('class="plot"') < first.index("<details") and second.index("<details") < second.index(
        'class="plot"'
    )


def test_what_all_models_show_leaves_test_models_out():
    made = crafted.studied(RHO, crafted.study_rows("rho", gain=-0.2) + crafted.study_rows("rho", "n"), "rho")
    models = [crafted.evaluated(note="a test model"), crafted.evaluated(key="n", number=1)]
    html = "".join(all_studies.parts(crafted.results(*models, studies=[made])))
    assert {
        name
        for one in charts(crafted.checked(html))[:1]
        for trace in one["panels"][0]["traces"]
        for name in [trace["name"]]
    } == {"n"}
    alone = build(crafted.results(*models, studies=[made]))
    assert f"{models[0].label}: studies" in alone.text


def test_published_numbers_stand_beside_the_same_task():
    rows = [
        one.model_copy(update={"budget": 256 if one.budget else None}) for one in crafted.study_rows(task="docvqa_val")
    ]
    made = [crafted.studied(CURVE, rows)]
    entry = "m: {checkpoint: Qwen/Qwen2-VL-7B-Instruct, family: qwen2_vl}"
    results = Results(parse_params(crafted.PARAMS % entry), [crafted.evaluated()], studies=made)
    assert "0.934" in "".join(all_studies.parts(results))
    assert "published" not in "".join(all_studies.parts(crafted.results(crafted.evaluated(), studies=made)))


def test_a_recipe_is_shown_with_its_reason_and_evidence():
    result = build(crafted.results(crafted.evaluated(recipe=recipe(pages.table()))))
    assert "The method for each model" in result.text and "sparsemm+peak won the search." in result.text
    assert "+0.100 [+0.050, +0.150]" in result.text
    assert "The method for each model" not in build(crafted.results(crafted.evaluated())).text


def test_the_evidence_of_recipes_is_folded_and_every_table_has_a_name_of_its_own():
    both = recipe(pages.table())
    both = both.model_copy(update={"scenarios": dict.fromkeys(both.scenarios, both.scenarios["known"])})
    result = build(crafted.results(crafted.evaluated(recipe=both)))
    names = [one["aria-label"] for one in result.all("div") if one.get("role") == "region"]
    assert len(set(names)) == len(names)
    html = "".join(sections.recipes.parts(crafted.results(crafted.evaluated(recipe=both))))
    assert html.count("<table>") == html.count("<details>") == 2


def test_headings_skip_no_level_and_tables_of_the_tables_in_git_have_names_of_their_own():
    result = build(read_results(load_params(ROOT / "params.yaml"), ROOT))
    levels = [int(tag[1]) for tag, _ in result.seen if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    names = [one["aria-label"] for one in result.all("div") if one.get("role") == "region"]
    assert len(names) > 20 and len(set(names)) == len(names)
