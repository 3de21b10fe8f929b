"""MLflow's own pages in a real browser: a version, its report, and two versions side by side."""

from __future__ import annotations

import json
import shutil
from urllib.parse import quote

import pytest
import yaml
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from sparsemm.registry.lockfile import md5_of
from sparsemm.registry.promote import promote
from sparsemm.registry.publish import publish
from tests.servers import registry_server

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver: see .ci/packages")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1400")
OPTIONS += ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@pytest.fixture(scope="module")
def browser():
    options = ChromeOptions()
    options.binary_location = BROWSER
    for option in OPTIONS:
        options.add_argument(option)
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def shows(browser, *texts):
    """Wait until the page, or a frame of it, shows all the texts."""

    def all_shown(driver):
        return all(text in driver.find_element(By.TAG_NAME, "body").text for text in texts)

    try:
        WebDriverWait(browser, 120).until(all_shown)
    except TimeoutException as error:
        pytest.fail(f"{texts} are not in {browser.find_element(By.TAG_NAME, 'body').text!r}: {error.msg}")


def test_a_version_its_report_and_a_comparison(local, browser):
    made = local("m")
    report = made.root / "artifacts" / "report"
    report.mkdir(parents=True)
    (report / "index.html").write_text("<!doctype html><title>r</title><h1>What was found</h1>", encoding="utf-8")
    lock = yaml.safe_load((made.root / "dvc.lock").read_text())
    entry = {"path": "artifacts/report", "md5": md5_of(report)}
    lock["stages"]["report"] = {"cmd": "sparsemm report", "deps": [], "outs": [entry]}
    (made.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    first = publish(made.params, "m", made.root)  # without a server
    promote(made.params, "m", made.root)
    made.ran("m", accuracy=0.88)
    second = publish(made.params, "m", made.root)
    with registry_server(made.root) as (address, _):
        base = "http://127.0.0.1:5000"
        browser.get(first.page.replace(base, address))
        shows(browser, "Version 1", "read: 0.900 at 24 slots", "pass: split-half correlation", "Gate: passed")
        picture = browser.find_element(By.CSS_SELECTOR, "img[src*='heads.png']")
        assert browser.execute_script("return arguments[0].naturalWidth", picture) > 50
        browser.get(first.report.replace(base, address))
        browser.refresh()  # only what follows the # has changed
        shows(browser, "m v1: checkpoint r1", "index.html")
        WebDriverWait(browser, 120).until(lambda d: d.find_elements(By.TAG_NAME, "iframe"))
        browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
        shows(browser, "What was found")
        browser.switch_to.default_content()
        runs = json.dumps({"1": first.run_id, "2": second.run_id})
        browser.get(f"{address}/#/compare-model-versions?name={quote(json.dumps('visual-heads.m'))}&runs={quote(runs)}")
        browser.refresh()
        shows(browser, "Comparing 2 Versions", "m v1: checkpoint r1", "accuracy/read/sparsemm", "0.88", "0.9")
