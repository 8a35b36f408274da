"""The live page in a real browser, while a sweep trains."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import trees
from helpers import REPOSITORY, TINY

selenium = pytest.importorskip("selenium", reason="needs resnests[browser]")
from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_window_size(1280, 900)
    yield driver
    driver.quit()


@pytest.fixture
def folder(tmp_path):
    """Return a folder whose runs/ has finished runs, and a hostile one."""
    for variant in ("standard", "resnest"):
        for seed in (0, 1):
            rows = trees.history_rows(90 + seed, 20)
            trees.add_run(
                tmp_path / "runs", 90 + seed, seed=seed, variant=variant, history=rows,
                trainer__epochs=20,
            )  # fmt: skip
    nasty = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    run = trees.add_run(tmp_path / "runs", seed=2, status="failed", record={"error": nasty})
    run.log_file.write_text(f"{nasty}\n")
    return tmp_path


@pytest.fixture
def started(folder):
    """Starts processes in the folder, and ends them."""
    environment = os.environ | {"RESNESTS_LOCK_DIR": str(folder / "leases")}
    processes = []

    def start(script, *words):
        command = [sys.executable, str(REPOSITORY / script), *words]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def until(driver, seen, timeout=120):
    """Return what `seen` finds once it finds something; the page may change meanwhile."""
    wait = WebDriverWait(driver, timeout, 0.3, [StaleElementReferenceException, IndexError])
    return wait.until(lambda _: seen())


def text_of(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector).text


def open_page(driver, started, *words):
    server = started("aggregate.py", "--serve", "0", *words)
    address = server.stdout.readline().split()[0]
    driver.get(address)
    until(driver, lambda: "done" in text_of(driver, "#progress"))
    return server, address


def complaints(driver):
    """Return what the console says, but that a server which was killed does not answer."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if not re.search("ERR_CONNECTION_|ERR_EMPTY_RESPONSE", entry["message"])
    ]


def test_it_opens_filters_sorts_and_opens_runs_and_cells(browser, started):
    _, address = open_page(browser, started)
    assert browser.title == "resnests: results"
    assert "1 failed" in text_of(browser, "#progress")
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#filter select"))
    variants = Select(browser.find_element(By.XPATH, "//label[contains(., 'variant')]/select"))
    variants.select_by_value("variant=resnest")
    browser.find_element(By.CSS_SELECTOR, "form button").click()
    until(browser, lambda: "2 of 2 done" in text_of(browser, "#progress"))
    rows = browser.find_elements(By.CSS_SELECTOR, "#runs tbody tr")
    assert len(rows) == 2
    heading = browser.find_element(By.ID, "sort-test_accuracy")
    heading.send_keys(Keys.ENTER)  # by keyboard
    first = until(browser, lambda: text_of(browser, "#runs th[aria-sort=descending]"))
    assert first.startswith("Test")
    assert "91" in text_of(browser, "#runs tbody tr")
    browser.find_element(By.CSS_SELECTOR, "#runs tbody tr a").send_keys(Keys.ENTER)
    until(browser, lambda: "optimizer.momentum" in text_of(browser, "#run"))
    assert "test: 91% after epoch 20" in text_of(browser, "#run")
    assert browser.find_elements(By.CSS_SELECTOR, "#run circle title")
    browser.find_element(By.CSS_SELECTOR, "#tables td a").click()
    until(browser, lambda: "Configuration and provenance" in text_of(browser, "#cells"))
    assert "seed 0 test" in text_of(browser, "#cells")
    browser.get(address)
    browser.find_element(By.CSS_SELECTOR, "#failed summary").click()
    assert "<script>alert(2)" in text_of(browser, "#failed details pre")
    assert not complaints(browser)  # no script but ours was tried, and no alert is open


def test_a_narrow_and_a_dark_screen_show_it(browser, started):
    open_page(browser, started)
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", ground)[:3])) < 60
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_curve_grows_while_a_sweep_trains_and_the_page_outlives_its_server(browser, started):
    long = ("trainer.epochs=5000", "trainer.device=cpu", "devices.slots=2")  # so that one waits
    started("run.py", "-m", *TINY, *long, "seed=0,1,2")
    server, _ = open_page(browser, started)
    browser.execute_script("window.neverLoadedAgain = true")

    def epoch():
        found = re.findall(r"after epoch (\d+)", text_of(browser, "#running"))
        return int(found[0]) if found else 0

    before = until(browser, epoch)
    fields = browser.find_element(By.CSS_SELECTOR, ".filter input")
    fields.send_keys("half a wo")  # what one types stays
    until(browser, lambda: epoch() > before)
    assert browser.execute_script("return window.neverLoadedAgain")
    assert fields.get_attribute("value") == "half a wo"
    assert "queued (waiting for a device)" in text_of(browser, "#progress")
    assert "trainer.epochs=5000" in text_of(browser, "#progress pre")
    server.kill()
    until(browser, lambda: "does not answer" in text_of(browser, "#connection"))
    assert epoch() > before
    assert not complaints(browser)
