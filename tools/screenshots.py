"""Make the pictures of the live panel that README and site show: nbs/images/panel*.webp. Some minutes; run by `make pictures`.

    python tools/screenshots.py [--steps 300]
"""
import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent.parent/'nbs'/'images'
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --force-color-profile=srgb'.split()
LIMIT = 200_000 # bytes


def serve(folder, *options):
    "`jointseg-lab` in that folder: its process and address."
    own = {k: str(folder/k) for k in ('HOME', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')}
    env = {k: v for k, v in os.environ.items() if not k.startswith('JUPYTER_')} | own
    process = subprocess.Popen([str(Path(sys.executable).absolute().with_name('jointseg-lab')), '--no-browser', *options], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if found := re.search(r'The live panel: (\S+)', line): break
    else: raise RuntimeError('the server did not start')
    threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True).start()
    return process, found[1]


def go(page, url):
    "Open the address; the server may still be starting."
    for _ in range(200):
        try: return page.goto(url)
        except Exception: time.sleep(0.3)
    raise TimeoutError(url)


def wait_for_step(page, step):
    while int(re.search(r'step\s+(\d+)', page.inner_text('.jointseg-status'))[1]) < step: page.wait_for_timeout(500)


def keep(page, name, clip=None, width=1440):
    "Save what is on the screen as a WebP file of at most 200 kB."
    im = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert('RGB')
    if im.width > width: im = im.resize((width, round(im.height*width/im.width)), Image.Resampling.LANCZOS)
    for quality in (88, 80, 70, 60):
        im.save(IMAGES/f'{name}.webp', quality=quality, method=6)
        if (IMAGES/f'{name}.webp').stat().st_size < LIMIT: break
    print(f'{name}.webp: {im.width} x {im.height}, {(IMAGES/f"{name}.webp").stat().st_size/1000:.0f} kB')


def box(page, selector, pad=6):
    "Where an element is, with a little room around it, inside the window."
    page.locator(selector).first.scroll_into_view_if_needed()
    b, size = page.locator(selector).first.bounding_box(), page.viewport_size
    x, y = max(0, b['x'] - pad), max(0, b['y'] - pad)
    return dict(x=x, y=y, width=min(size['width'] - x, b['width'] + 2*pad), height=min(size['height'] - y, b['height'] + 2*pad))


def open_views(page, *names):
    "The tabs of these views, and no others."
    for tab in page.locator('.jointseg-views button[class*="jointseg-tab-"]').all():
        name = re.search(r'jointseg-tab-(\S+)', tab.get_attribute('class'))[1]
        if (page.locator(f'.jointseg-view-{name}').count() > 0) != (name in names): tab.click()
    page.wait_for_timeout(2500)


def notebook(chromium, folder, steps):
    "JupyterLab with the panel, after some hundred steps; then some of its parts."
    process, url = serve(folder)
    try:
        page = chromium.new_page(viewport=dict(width=1440, height=1180), device_scale_factor=1)
        page.set_default_timeout(300_000)
        go(page, url)
        page.wait_for_selector('.jp-CodeCell')
        page.wait_for_function("document.querySelector('#jp-main-statusbar')?.innerText.includes('Idle')")
        page.click('[data-command="notebook:run-cell-and-select-next"]')
        page.wait_for_selector('.jointseg-status')
        open_views(page, 'losses', 'lesions')
        wait_for_step(page, steps//2)
        page.locator('.jointseg-lr-ratio .noUi-handle').focus()
        for _ in range(6): page.keyboard.press('ArrowRight')
        wait_for_step(page, steps)
        page.wait_for_timeout(1500)
        page.locator('.jointseg').first.evaluate('e => e.scrollIntoView()')
        keep(page, 'panel')
        for name, views in dict(attention=('attention',), noise=('noise',), cooperation=('cooperation', 'confusion')).items():
            if name == 'noise':
                page.locator('.jointseg-label-noise .noUi-handle').focus()
                page.keyboard.press('PageUp'); page.keyboard.press('PageUp')
            open_views(page, *views)
            page.wait_for_timeout(30_000 if name == 'attention' else 8_000)  # its switches are tried one at a time
            keep(page, f'panel-{name}', box(page, '.jointseg-cards'), 1000)
        page.close()
    finally: end(process)


def app(chromium, folder, steps):
    "The app of its own."
    process, url = serve(folder, '--app')
    try:
        page = chromium.new_page(viewport=dict(width=1440, height=830), color_scheme='light')
        page.set_default_timeout(300_000)
        go(page, url)
        page.wait_for_selector('.jointseg-status')
        wait_for_step(page, steps)
        page.wait_for_timeout(1500)
        keep(page, 'panel-app')
        page.close()
    finally: end(process)


def end(process):
    process.terminate()
    try: process.wait(20)
    except subprocess.TimeoutExpired: process.kill()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=240, help='of the training before the first picture (default: 240)')
    ap.add_argument('--only', choices=['notebook', 'app'])
    a = ap.parse_args()
    if not shutil.which('chromium'): sys.exit('screenshots: no chromium on this machine')
    from playwright.sync_api import sync_playwright
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=shutil.which('chromium'), args=FLAGS)
        for make in (notebook, app):
            if a.only in (None, make.__name__):
                with tempfile.TemporaryDirectory() as folder: make(chromium, Path(folder), a.steps)
        chromium.close()


if __name__ == '__main__': main()
