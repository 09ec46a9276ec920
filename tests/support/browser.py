"""A headless Chromium for tests: Debian's, driven by playwright (`apt-get install chromium`; playwright is in the extra `test`); tests are skipped without."""

import contextlib
import shutil

import pytest


@contextlib.contextmanager
def page():
    """A new page; errors of scripts and of loading are gathered in `page.errors`."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium: apt-get install chromium")
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        found = browser.new_page()
        found.set_default_timeout(120_000)
        found.errors = []
        found.on("pageerror", lambda error: found.errors.append(str(error)))
        found.on(
            "console",
            lambda message: found.errors.append(message.text) if message.type == "error" else None,
        )
        yield found
        browser.close()


def pictures(found) -> list[bool]:
    """Of each picture whether it is there to see."""
    return found.evaluate(
        "() => Array.from(document.images).map(i => i.complete && i.naturalWidth > 0 && i.getBoundingClientRect().width > 10)"
    )
