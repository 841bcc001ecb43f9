"""Report, audit and comparison in a real browser: they fit a phone and paper, and are readable in light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from likelier.rundir import RunDir

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not (CHROMIUM.is_file() and DRIVER.is_file()):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER}")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def open_at(browser: Any, page: Path, width: int, scheme: str, media: str) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(page.as_uri())


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, media", [(390, "screen"), (1280, "screen"), (672, "print")])
@pytest.mark.parametrize("page", ["report", "audit", "comparison"])
def test_the_page_fits_and_is_readable(
    run: RunDir, audit_page: Path, comparison_page: Path, browser: Any, page: str, width: int, media: str, scheme: str
) -> None:
    open_at(browser, {"report": run.report, "audit": audit_page, "comparison": comparison_page}[page], width, scheme, media)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.execute_script("return document.documentElement.clientWidth") in (width, width - 15)  # less a scroll bar
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(OVERFLOWING) == []
    assert browser.execute_script(UNREADABLE) == []
    is_dark = scheme == "dark" and media == "screen"
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == ("rgb(22, 24, 27)" if is_dark else GROUND[media])
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_a_filmstrip_scrolls_by_itself_and_is_a_list_on_paper(run: RunDir, browser: Any) -> None:
    open_at(browser, run.report, 390, "light", "screen")
    assert browser.execute_script(FRAMES) == [True, True, 7]
    browser.execute_script("const strip = document.querySelector('.frames'); strip.focus(); strip.scrollLeft = 300")
    assert browser.execute_script("return document.activeElement.className + (document.querySelector('.frames').scrollLeft > 0)") == "framestrue"
    open_at(browser, run.report, 672, "light", "print")
    assert browser.execute_script(FRAMES) == [False, False, 6]  # the frame in which nothing changed is left out


@pytest.mark.browser
def test_on_paper_details_are_open(run: RunDir, browser: Any) -> None:
    height = "return document.querySelector('.sample details:not([open])').getBoundingClientRect().height"
    heights = []
    for media in ("screen", "print"):
        open_at(browser, run.report, 672, "light", media)
        heights.append(browser.execute_script(height))
    assert heights[1] > heights[0] + 10


FRAMES = """
const frames = [...document.querySelector('.frames').children].map(each => each.getBoundingClientRect()).filter(box => box.width);
return [frames[1].left > frames[0].right, frames[0].top == frames[1].top, frames.length];
"""

GROUND = {"screen": "rgb(251, 250, 247)", "print": "rgb(255, 255, 255)"}

OVERFLOWING = """
return [...document.querySelectorAll('body *')].filter(each => {
  const box = each.getBoundingClientRect();
  return box.width && !each.parentElement.closest('.frames') && (box.right > document.documentElement.clientWidth + 1 || box.left < -1);
}).map(each => each.outerHTML.slice(0, 200));
"""

UNREADABLE = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const light = color => {
  canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(x => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = each => {
  for (; each; each = each.parentElement) {
    const color = getComputedStyle(each).backgroundColor;
    if (color != 'rgba(0, 0, 0, 0)') return light(color);
  }
  return 1;
};
return [...document.querySelectorAll('body *')].filter(each => {
  if (![...each.childNodes].some(node => node.nodeType == 3 && node.data.trim())) return false;
  const style = getComputedStyle(each), text = each.closest('svg') ? style.fill : style.color;
  const [a, b] = [light(text), ground(each)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
}).map(each => each.outerHTML.slice(0, 200));
"""
