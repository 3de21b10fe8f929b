"""The page in a real browser: it draws, it answers, by mouse, keyboard and on a phone's width, without one error."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from sparsemm.explorer.stage import contents
from sparsemm.params import load_params
from sparsemm.report.html import page
from sparsemm.report.results import Machine, Shape, read_results
from sparsemm.report.sections import written
from sparsemm.studies.curve import AREA
from sparsemm.studies.curve import STUDY as CURVE
from sparsemm.studies.masking import STUDY as MASKING
from sparsemm.studies.parts import STUDY as PARTS
from tests.explorer import pages
from tests.report import crafted

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver: see .ci/packages")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
SCREEN = 900  # pixels
ROOT = Path(__file__).parents[2]


class Page:
    """The open page, and ways to look at it."""

    def __init__(self, driver):
        self.driver = driver

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def at(self, name):
        return self.driver.find_element(By.ID, f"explorer-{name}")

    def text(self, name):
        return self.at(name).text

    def chosen(self, name):
        return Select(self.at(name)).first_selected_option.text

    def change(self, act):
        """Do something, and wait until the explorer has drawn what follows."""
        before = self.at("app").get_attribute("data-drawn")
        act()
        self.wait(lambda: self.at("app").get_attribute("data-drawn") != before)

    def wait(self, condition):
        WebDriverWait(self.driver, 120, poll_frequency=0.02).until(lambda _: condition())

    def open_again(self):
        """The page as it is at first."""
        self.driver.refresh()
        self.wait(lambda: self.at("app").get_attribute("data-drawn"))

    def choose(self, name, text):
        if self.chosen(name) != text:
            self.change(lambda: Select(self.at(name)).select_by_visible_text(text))

    def press(self, *keys):
        for key in keys:
            self.change(lambda key=key: ActionChains(self.driver).send_keys(key).perform())

    def size(self, width, height, dark=False):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    @staticmethod
    def picture(element):
        return Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")

    def pixels(self, element):
        return np.asarray(self.picture(element))


def made():
    """Two models with two pages and one page, one that was not loaded, and a declared test model."""
    evaluation = [crafted.row("full", None, 0.9)]
    for method in ("sparsemm", "snapkv"):
        evaluation += [crafted.row(method, budget, 0.5, (-0.2, 0.1), (-0.5, -0.3)) for budget in (8, 16)]
    timings = [crafted.timing(), crafted.timing("snapkv", length=512)]
    first = contents([pages.reading(), pages.reading("page-2", (120, 40), 1)], pages.table())
    second = contents([pages.reading(seed=2, coarse=False)], pages.table(0.9))
    models = [
        crafted.model(evaluation, timings, key="one", explorer=first, others={"large": crafted.heads(0.7)}),
        crafted.model(evaluation, timings, key="two", share=0.9, explorer=second, number=1),
        crafted.model(key="big", explorer={"reason": "too large"}, number=2),
        crafted.model(evaluation, timings, key="test", note="a test model", number=3),
    ]
    lengths = [crafted.timing("transformers", length) for length in (2048, 32768)]
    areas = [one for key in ("one", "two") for one in crafted.study_rows(key=key)]
    areas = [one.model_copy(update={"budget": None, "condition": AREA}) for one in areas if one.budget != 24]
    long = {"setting": "window + uniform + score", "against": "window + uniform", "verdict": "better", "diff": 0.1}
    parts = [one.model_copy(update=long) for one in crafted.study_rows(key="one")[:2]]
    top = {"condition": "output zeroed", "setting": "top", "against": "random", "diff": -0.2, "verdict": "worse"}
    masked = [one.model_copy(update=top) for one in crafted.study_rows(key="two")[:2]]
    return crafted.results(
        *models,
        shapes=[Shape("vicuna-7b", lengths, Machine(device="a GPU"))],
        studies=[
            crafted.studied(CURVE, areas),
            crafted.studied(PARTS, parts, "parts"),
            crafted.studied(MASKING, masked, "masking"),
        ],
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """One browser for all tests, on a page of stand-in results."""
    path = tmp_path_factory.mktemp("browser") / "index.html"
    links, parts = written(made())
    path.write_text(page("Stand-in", links, "", *parts), encoding="utf-8")
    options = ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for option in OPTIONS:
        options.add_argument(option)
    driver = Chrome(options=options, service=Service(DRIVER))
    try:
        Page(driver).size(1100, 900)
        driver.get(path.as_uri())
        yield Page(driver)
    finally:
        driver.quit()


@pytest.fixture(autouse=True)
def errors(opened):
    """Every test begins on a fresh page and ends without a message on the console."""
    opened.size(1100, 900)
    opened.open_again()
    yield
    assert opened.driver.get_log("browser") == []


def test_it_begins_with_the_best_head(opened):
    assert (opened.chosen("model"), opened.chosen("layer"), opened.chosen("head")) == ("one", "0", "0")
    facts = opened.text("facts")
    assert "rank 1 of 20, 50 % of the visual score" in facts and "90 % of 10 tokens" in facts
    assert [option.text for option in Select(opened.at("model")).options] == ["one", "two"]
    assert opened.text("rest") == "3 more tokens are not shown. The whole answer: zip far<"
    assert "big is not in the explorer: too large." in opened.driver.find_element(By.ID, "explorer").text


def open_all(opened):
    """Everything that is folded, and every tab, one after the other."""
    opened.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


def draw_all(opened, width=1400):
    """Every chart of the tabs that are shown."""
    open_all(opened)
    for _ in range(2):  # the height depends on the width
        opened.size(width, opened.js("return document.documentElement.scrollHeight"))
    undrawn = """return [...document.querySelectorAll('.plot')].filter((one) => one.clientWidth
        && !one.querySelector('.main-svg')).length"""
    opened.wait(lambda: opened.js(undrawn) == 0)


def test_every_chart_is_drawn_and_none_is_empty(opened):
    draw_all(opened, 1100)
    whole = opened.picture(opened.driver.find_element(By.TAG_NAME, "html"))
    box = "const r = one.getBoundingClientRect(); return [one.ariaLabel, r.left, r.top, r.right, r.bottom];"
    shown = "[...document.querySelectorAll('.plot')].filter((one) => one.clientWidth)"
    plots = opened.js(f"return {shown}.map((one) => {{ {box} }})")
    # Accuracy, areas of all and of one model, curves, three heat maps, cost, two studies twice, explorer, test model.
    assert len(plots) == 1 + 2 + 1 + 3 + 1 + 4 + 3 + 3
    for label, *edges in plots:
        part = whole.crop([round(edge) for edge in edges])
        assert min(part.size) > 100 and len(part.getcolors(1 << 24)) > 10, label


@pytest.mark.parametrize("width", [390, 1400])
def test_labels_never_collide_and_nothing_is_cut_off(opened, width):
    draw_all(opened, width)
    assert_labels_are_apart(opened)


def assert_labels_are_apart(opened):
    """No label of a chart that is shown covers another one, or leaves its chart."""
    boxes = """return [...document.querySelectorAll('figure.chart .plot')]
        .filter((one) => one.clientWidth).map((one) => {
        const texts = [...one.querySelectorAll('.xtick text, .ytick text, .annotation text, text[class*=title]')];
        const own = one.getBoundingClientRect();
        const at = texts.map((text) => [text, text.getBoundingClientRect()]).filter(([, box]) => box.width);
        return [one.ariaLabel, own.left, own.right,
            at.map(([t, r]) => [t.textContent, r.left, r.top, r.right, r.bottom])];
    })"""
    seen = opened.js(boxes)
    assert len(seen) > 10
    for label, left, right, texts in seen:
        for number, (text, *one) in enumerate(texts):
            assert left - 1 <= one[0] and one[2] <= right + 1, (label, text)
            for other_text, *other in texts[number + 1 :]:
                across = min(one[2], other[2]) - max(one[0], other[0])
                down = min(one[3], other[3]) - max(one[1], other[1])
                assert across <= 1 or down <= 2, (label, text, other_text)


def test_the_page_is_a_few_screens_and_the_first_shows_the_picture(opened):
    opened.size(1400, SCREEN)
    opened.open_again()
    assert opened.js("return document.documentElement.scrollHeight") <= 12 * SCREEN
    bottom = opened.js("return document.querySelector('#found .pictures').getBoundingClientRect().bottom")
    assert bottom <= SCREEN and opened.js("return document.querySelectorAll('#found li').length") == 3


def test_the_page_of_the_tables_in_git_is_a_few_screens_too(opened, tmp_path):
    """The page of all results, but without the explorer, whose files are not in Git."""
    results = read_results(load_params(ROOT / "params.yaml"), ROOT)
    links, parts = written(replace(results, models=[replace(model, explorer={}) for model in results.models]))
    (tmp_path / "index.html").write_text(page("All results", links, "", *parts), encoding="utf-8")
    stand_in = opened.driver.current_url
    opened.size(1400, SCREEN)
    opened.driver.get((tmp_path / "index.html").as_uri())
    try:
        assert 3 * SCREEN < opened.js("return document.documentElement.scrollHeight") <= 12 * SCREEN
        draw_all(opened)
        assert_labels_are_apart(opened)
    finally:
        opened.driver.get(stand_in)
        opened.open_again()


def test_a_model_has_one_colour_in_every_chart(opened):
    draw_all(opened)
    colours = opened.js(
        """return [...document.querySelectorAll('figure.chart .plot')].filter((one) => one.data).flatMap((one) =>
        one.data.filter((trace) => ['one', 'two'].includes(trace.name))
        .map((trace) => [trace.name, trace.line.color]))"""
    )
    result = {name: {colour for key, colour in colours if key == name} for name in ("one", "two")}
    assert all(len(one) == 1 for one in result.values()) and result["one"] != result["two"]
    assert len([name for name, _ in colours if name == "two"]) >= 3


def test_a_tab_chooses_its_model_everywhere(opened):
    shown = "return [...document.querySelectorAll('[role=tabpanel]')].filter((o) => !o.hidden).map((o) => o.id)"
    before = opened.js(shown)
    tab = opened.driver.find_element(By.ID, "heads-tab-1")
    opened.js("arguments[0].scrollIntoView({block: 'center'})", tab)
    top = opened.js("return arguments[0].getBoundingClientRect().top", tab)
    tab.click()
    after = opened.js(shown)
    assert {"accuracy-panel-1", "heads-panel-1", "cost-panel-1"} <= set(after) and set(before) & set(after) <= {
        one for one in before if not one.endswith("-panel-0")
    }
    assert abs(opened.js("return arguments[0].getBoundingClientRect().top", tab) - top) <= 2
    opened.wait(lambda: opened.js("return Boolean(document.querySelector('#heads-panel-1 .main-svg'))"))
    tab.send_keys(Keys.ARROW_LEFT)
    assert "heads-panel-0" in opened.js(shown)
    assert opened.js("return document.activeElement.id") == "heads-tab-0"


def test_another_head_or_token_changes_what_is_drawn(opened):
    seen = [opened.pixels(opened.at("sight"))]
    facts = [opened.text("facts")]
    for name, text in (("head", "2"), ("layer", "3")):
        opened.choose(name, text)
        seen.append(opened.pixels(opened.at("sight")))
        facts.append(opened.text("facts"))
    opened.change(lambda: opened.at("tokens").find_elements(By.TAG_NAME, "button")[4].click())
    seen.append(opened.pixels(opened.at("sight")))
    facts.append(opened.text("facts"))
    assert "Layer 3, head 2" in facts[-1] and "“r<” of “far”" in facts[-1]
    assert len(set(facts)) == 4
    assert all((one != other).any() for one, other in zip(seen, seen[1:], strict=False))


def test_numbers_on_the_page_are_those_of_the_data(opened):
    data = pages.reading()
    for layer, head, token in ((0, 1, 0), (4, 3, 3)):
        opened.choose("layer", str(layer))
        opened.choose("head", str(head))
        opened.change(lambda token=token: opened.at("tokens").find_elements(By.TAG_NAME, "button")[token].click())
        shown = opened.js("return document.getElementById('explorer-sight').data[0].z.flat()")
        assert np.allclose(shown, 100 * (data.levels[layer, head, token, :24] / 255) ** 2, atol=1e-6)
        peak = data.peak[layer, head, token]
        where = "outside the page" if peak < 0 else "the thumbnail" if peak >= 24 else "page"
        where = "the right word" if peak in data.tokens[token].cells else where
        assert opened.text("facts").endswith(where + ".")
        hits = sum(peak in t.cells for peak, t in zip(data.peak[layer, head], data.tokens, strict=True))
        assert f"On this page, for {hits} of 4." in opened.text("facts")


def test_methods_fade_what_they_forget(opened):
    plain = opened.pixels(opened.at("sight"))
    opened.choose("method", "snapkv")
    kept = pages.reading().kept["snapkv", 16][0, 0]
    opened.choose("budget", "B = 16")
    assert (opened.pixels(opened.at("sight")) != plain).any()
    visual = int(kept[2:30].sum())
    assert f"the {visual} of 28 visual tokens that snapkv keeps" in opened.text("legend")
    marks = opened.js("return document.getElementById('explorer-sight').data.at(-1).x.length")
    assert marks == kept[2:26].sum()
    rows = opened.js("return document.getElementById('explorer-kept').data.map(t => [t.name, Array.from(t.x)])")
    assert dict(rows)["snapkv"] == np.flatnonzero(kept).tolist() and set(dict(rows)) == {"sparsemm", "snapkv"}
    opened.choose("view", "thumbnail")
    assert opened.js("return document.getElementById('explorer-sight').data.at(-1).x.length") == kept[26:30].sum()


def test_other_models_and_pages(opened):
    opened.choose("page", "2 (120 × 40)")
    assert opened.js("return document.getElementById('explorer-sight').layout.images[0].sizex") == 120
    opened.choose("model", "two")
    assert "rank 1 of 20, 90 %" in opened.text("facts") and opened.chosen("page") == "1 (60 × 40)"
    assert opened.at("view").get_attribute("disabled") and "thumbnail" not in opened.text("facts")


def test_the_keyboard_is_enough(opened):
    opened.js("document.getElementById('explorer-heads').focus()")
    outline = opened.js("return getComputedStyle(document.activeElement).outlineStyle")
    opened.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "Layer 1, head 2" in opened.text("facts") and outline == "solid"
    opened.press(Keys.ARROW_LEFT, Keys.ARROW_UP)
    assert "Layer 0, head 1" in opened.text("facts")
    opened.press(Keys.HOME, Keys.PAGE_DOWN)
    assert "rank 2 of 20" in opened.text("facts")
    opened.js("document.querySelector('#explorer-tokens [aria-checked=true]').focus()")
    opened.press(Keys.HOME, Keys.ARROW_RIGHT)
    assert "About to say “ip”" in opened.text("facts")
    focused = opened.js("return [document.activeElement.textContent, document.activeElement.ariaChecked]")
    assert focused == ["ip", "true"]
    assert opened.js("return document.querySelectorAll('#explorer-tokens [tabindex=\"0\"]').length") == 1
    opened.press(Keys.END, Keys.ARROW_RIGHT)  # the last one stays
    assert "“r<”" in opened.text("facts")


def test_a_click_on_a_heat_map_opens_the_head(opened):
    opened.js("document.getElementById('heads-tab-1').click()")
    figure = opened.driver.find_element(By.CSS_SELECTOR, "#heads-panel-1 figure[data-model]")
    opened.js("arguments[0].scrollIntoView({block: 'center'})", figure)
    opened.wait(lambda: figure.get_attribute("data-drawn"))
    cells = figure.find_element(By.CSS_SELECTOR, ".heatmaplayer image, .hm")
    opened.change(lambda: ActionChains(opened.driver).move_to_element_with_offset(cells, 1, 1).click().perform())
    assert opened.chosen("model") == "two" and (opened.chosen("layer"), opened.chosen("head")) == ("2", "2")


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows_on_a_phone(opened, dark):
    opened.size(360, 700, dark)
    opened.open_again()
    wide = """return [...document.querySelectorAll('body *')].filter((one) => !one.closest('.wide, nav, svg, script')
        && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80))"""
    assert opened.js("return document.documentElement.scrollWidth") <= 360
    assert opened.js(wide) == []
    background = opened.pixels(opened.driver.find_element(By.TAG_NAME, "h1"))[0, -1]
    assert (background.mean() < 60) == dark


@pytest.mark.parametrize("dark", [False, True])
def test_rows_keep_their_names_when_a_table_is_scrolled_on_a_phone(opened, dark):
    opened.size(390, 844, dark)
    opened.open_again()
    opened.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    seen = opened.js(
        """const wide = (one) => one.scrollWidth > one.clientWidth;
        return [...document.querySelectorAll('.wide')].filter(wide).map((one) => {
            one.scrollLeft = one.scrollWidth;
            const region = one.getBoundingClientRect();
            const names = [...one.querySelectorAll('tr > :first-child')].map((cell) => {
                cell.scrollIntoView({block: 'center'});
                const at = cell.getBoundingClientRect();
                const top = document.elementFromPoint(at.left + at.width / 2, at.top + at.height / 2);
                return [at.left - region.left, at.width / region.width, top === cell,
                        getComputedStyle(cell).backgroundColor === getComputedStyle(document.body).backgroundColor];
            });
            const caption = one.querySelector('caption > span').getBoundingClientRect();
            return [one.ariaLabel, one.scrollLeft, names, caption.left - region.left, caption.right - region.right];
        })"""
    )
    assert len(seen) > 3
    for label, moved, names, left, right in seen:
        assert moved > 0 and abs(left) < 1 and right < 1, label
        for at, share, on_top, covers in names:
            assert abs(at) < 1 and share < 0.6 and on_top and covers, label


def test_colours_follow_the_scheme_without_a_reload(opened):
    plot = opened.at("heads")
    colour = "return document.getElementById('explorer-heads')._fullLayout.font.color"
    before = opened.js(colour)
    opened.change(lambda: opened.size(1100, 900, dark=True))
    assert opened.js(colour) != before and plot.is_displayed()


def test_the_network_is_never_asked(opened):
    entries = opened.js("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert [name for name in entries if not name.startswith(("data:", "blob:"))] == []


def test_the_contents_stay_in_sight_and_hide_no_heading(opened):
    opened.js("location.hash = '#study-curve'")
    top = "return document.querySelector(arguments[0]).getBoundingClientRect()"
    opened.wait(lambda: opened.js(f"{top}.top", "#study-curve") < 200)
    assert opened.js(f"{top}.top", "body > nav") == 0
    assert opened.js(f"{top}.bottom", "body > nav") <= opened.js(f"{top}.top", "#study-curve")
