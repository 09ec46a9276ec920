"""A headless Chromium for tests, driven by playwright.

`apt-get install chromium`; playwright is in the extra `test`. Tests are skipped without them.
"""

import contextlib
import shutil

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VISIBLE = """() => Array.from(document.images).map(
    i => i.complete && i.naturalWidth > 0 && i.getBoundingClientRect().width > 10)"""


@contextlib.contextmanager
def chromium_browser():
    """playwright's browser; skips the test if there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def page():
    """A new page; `page.errors` collects errors of scripts and of loading."""
    with chromium_browser() as browser:
        new_page = browser.new_page()
        new_page.set_default_timeout(120_000)
        errors = new_page.errors = []

        def on_console(message):
            if message.type == "error":
                errors.append(message.text)

        new_page.on("pageerror", lambda error: errors.append(str(error)))
        new_page.on("console", on_console)
        yield new_page


def pictures(page) -> list[bool]:
    """For each image of the page, whether it is visible."""
    return page.evaluate(VISIBLE)
