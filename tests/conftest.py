"""What the tests share: the browser, and what happens where there is none."""
import os, shutil, tempfile
import pytest

flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()

def no_browser(
    why:str, # what is missing
):
    "Skip the test that needs a browser; under CI=true fail it."
    if os.environ.get('CI', '').lower() in ('1', 'true'): pytest.fail(f'{why}; CI=true, so browser tests may not be skipped', pytrace=False)
    pytest.skip(why)

def pytest_configure(config):
    "Prepared photographs go to a folder of this run, never to the user's cache."
    config.stash[cache] = tempfile.TemporaryDirectory(prefix='jointseg-cache-')
    os.environ['JOINTSEG_CACHE'] = config.stash[cache].name

def pytest_unconfigure(config): config.stash[cache].cleanup()

cache = pytest.StashKey()

def pytest_runtest_setup(item):
    "A test marked `browser` runs only where there is one."
    if item.get_closest_marker('browser') and not shutil.which('chromium'): no_browser('no chromium on this machine')

@pytest.fixture(scope='session')
def browser():
    "Chromium, headless, driven by Playwright."
    if not shutil.which('chromium'): no_browser('no chromium on this machine')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=shutil.which('chromium'), args=flags)
        yield chromium
        chromium.close()
