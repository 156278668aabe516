"""The page in a browser: a study is chosen, looked at and judged, by mouse, by keyboard alone and on a narrow screen."""

from __future__ import annotations

import base64
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@pytest.fixture
def page(browser, url):
    """The page, in which nothing may go wrong and nothing may be asked of others."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: None if asked.url.startswith((url, "data:")) else wrong.append(asked.url))
    opened.goto(url)
    opened.wait_for_selector("#samples:not([hidden])")
    yield opened
    context.close()
    assert [words for words in wrong if "422" not in words] == []  # which is what a study that is refused is answered by


@pytest.fixture
def exam(mrnet_root) -> Path:
    return min((mrnet_root / "valid" / "axial").glob("*.npy"))


def pixels(page) -> np.ndarray:
    """The canvas, (H,W,3)."""
    url = page.eval_on_selector("#canvas", "c => c.toDataURL()")
    data = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def to(page, selector: str, value: float) -> None:
    page.eval_on_selector(selector, "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", str(value))


def upload(page, *files: Path) -> None:
    page.set_input_files("#files", [str(file) for file in files])
    page.wait_for_selector("#result:not([hidden]), #error:not([hidden])", timeout=60_000)


def test_a_study_is_chosen_looked_at_and_judged(page, exam):
    upload(page, exam)
    volume = np.load(exam)
    assert page.inner_text("#of") == f"Result of {exam.stem} (synthetic sample)"
    assert page.locator("#findings tbody tr").count() == 2
    to(page, "#overlay", 0)
    for k in range(len(volume)):
        to(page, "#image", k + 1)
        assert np.array_equal(pixels(page)[..., 0], volume[k])
        assert page.inner_text("#image-value") == f"{k + 1} of {len(volume)}"
    page.locator("#decisive button").first.click()
    bare = pixels(page)
    to(page, "#overlay", 1)
    assert not np.array_equal(pixels(page), bare)
    to(page, "#overlay", 0)
    page.check("#invert")
    assert np.array_equal(pixels(page), 255 - bare)
    page.click("#reset")
    to(page, "#width", 2)
    assert np.array_equal(pixels(page)[..., 0], np.where(bare[..., 0] < 128, 0, 255))
    to(page, "#threshold", 0)
    playwright.expect(page.locator("#would")).to_contain_text("positive. On valid")
    to(page, "#threshold", 1)
    playwright.expect(page.locator("#would")).to_contain_text("called negative.")
    assert "sensitivity" in page.inner_text("#would")


def test_another_findings_maps_are_asked_for_when_they_are_wanted(page, exam):
    upload(page, exam)
    shown = page.inner_text("#what-if .shown")
    other = next(name for name in ("acl", "meniscus") if name != shown)
    page.click(f"[data-finding={other}]")
    playwright.expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile(f"to {other}$"))
    assert page.get_attribute(f"[data-finding={other}]", "aria-pressed") == "true"
    assert page.inner_text("#what-if .shown") == other


def test_what_is_refused_is_said_and_another_study_goes_on(page, exam, tmp_path):
    broken = tmp_path / "<img src=x onerror=alert(1)>.png"
    broken.write_bytes(b"broken")
    upload(page, broken)
    assert "not a whole image" in page.inner_text("#error")
    assert "<img" in page.inner_text("#error")
    assert not page.is_visible("#result")
    page.set_input_files("#files", str(exam))
    page.wait_for_selector("#result:not([hidden])", timeout=60_000)
    assert not page.is_visible("#error")


def test_a_sample_is_predicted_by_the_keyboard_alone(page):
    def to_focus(name: str) -> None:
        for _ in range(40):
            if page.evaluate("document.activeElement.id") == name:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{name} is not reached by Tab")

    to_focus("sample")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])", timeout=60_000)
    playwright.expect(page.locator("#of")).to_be_focused()
    to_focus("point")
    to_focus("threshold")
    before = page.inner_text("#threshold-value")
    page.keyboard.press("End")
    playwright.expect(page.locator("#threshold-value")).not_to_have_text(before)
    to_focus("image")
    page.keyboard.press("Home")
    assert page.inner_text("#image-value").startswith("1 of")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#image-value").startswith("2 of")
    to_focus("invert")
    page.keyboard.press("Space")
    assert page.is_checked("#invert")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_overflows_and_axe_finds_no_violation(browser, url, exam, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    for path in ("/", "/docs", "/"):
        page.goto(f"{url}{path}")
        if path == "/":
            page.wait_for_selector("#samples:not([hidden])")
            upload(page, exam)
        found = axe.Axe().run(page).response["violations"]
        assert [(of["id"], [node["html"] for node in of["nodes"]]) for of in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    if place := os.environ.get("XRAYLAB_SCREENSHOTS"):  # to look at
        page.screenshot(path=f"{place}/page_{width}.png", full_page=True)
    context.close()
