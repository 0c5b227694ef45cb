"""The panel as an app of its own, `jointseg-lab --app`, driven in a real browser."""
import importlib.util, io, json, os
from pathlib import Path
import pytest
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.skipif(importlib.util.find_spec('voila') is None, reason="Voilà is in the extra 'app'")]

@pytest.fixture(scope='module')
def page(browser, tmp_path_factory, tools, small):
    folder = tmp_path_factory.mktemp('app')
    (folder/'small.json').write_text(json.dumps(small))
    lab = tools.Lab(folder, '--app', '--recipe', 'small.json')
    page = None
    try:
        page = tools.Page(browser, lab, Path(os.environ.get('JOINTSEG_SHOTS') or folder)).open()
        page.one('status').wait_for()
        yield page
    finally:
        if page: page.close()
        lab.stop()

def test_it_trains_without_a_notebook(page):
    assert page.page.locator('.jp-InputArea, .jp-CodeMirrorEditor').count() == 0 # no code in sight
    page.until(lambda: page.step >= 1)
    page.until(lambda: page.pictures() and not any(p['blank'] for p in page.pictures()))
    before = page.sums()
    page.until(lambda: page.sums() != before)
    page.shot('app')

def test_a_knob(page):
    page.one('lr-ratio').locator('.noUi-handle').focus()
    page.page.keyboard.press('ArrowRight')
    page.until(lambda: 'lr_ratio 0.1 → 0.112' in page.text('log'))

def test_a_chart_and_a_table(page):
    chart, table = page.view('losses'), page.view('scores')
    page.until(lambda: chart.locator('svg path, svg polyline, canvas').count())
    page.until(lambda: any(c.isdigit() for c in table.locator('.jointseg-body').inner_text()))

def test_own_photograph(page):
    from jointseg_nb.fundus import eyes
    file = io.BytesIO()
    Image.fromarray(eyes(1, seed=78, size=96)[0][0]).save(file, 'PNG')
    card = page.view('photo')
    page.upload('mine.png', file.getvalue())
    page.until(lambda: 'mine.png' in card.inner_text() and card.locator('img').count())

def test_reload_shows_a_panel_that_trains(page):
    page.page.reload()
    page.one('status').wait_for()
    page.until(lambda: page.step >= 1 and page.pictures() and not any(p['blank'] for p in page.pictures()))
    page.shot('app-reloaded')

LIGHT = """() => {
    const light = e => { const [r, g, b] = getComputedStyle(e)[e === document.body ? 'backgroundColor' : 'color'].match(/[0-9.]+/g).map(Number); return (0.3 * r + 0.6 * g + 0.1 * b) / 255 };
    return {page: light(document.body), words: light(document.querySelector('.jointseg-status')), drawn: [...document.querySelectorAll('.jointseg-canvas, .jointseg-chart')].map(e => e.dataset.theme)} }"""

@pytest.mark.parametrize('theme', ['dark', 'light'])
def test_theme(page, theme):
    page.open(f'{page.lab.url}&theme={theme}')
    page.one('status').wait_for()
    page.until(lambda: page.page.locator('.jointseg-canvas, .jointseg-chart').count() > 1)
    page.until(lambda: set(page.page.evaluate(LIGHT)['drawn']) == {theme})
    found = page.page.evaluate(LIGHT)
    assert found['words'] - found['page'] > 0.5 if theme == 'dark' else found['page'] - found['words'] > 0.5, found
    page.shot(f'app-{theme}')

def test_keyboard_alone(page):
    "Every button, knob and tab is reached by the Tab key and says what it is."
    page.page.keyboard.press('Home')
    page.page.evaluate('document.activeElement.blur()')
    seen, unnamed = set(), []
    for _ in range(160):
        page.page.keyboard.press('Tab')
        found = page.page.evaluate('''() => { const e = document.activeElement, own = e.closest('[class*="jointseg-"]');
            return [own && [...own.classList].filter(c => c.startsWith('jointseg-')).join(' '), (e.getAttribute('aria-label') || e.title || e.innerText || e.labels?.[0]?.innerText || e.parentElement?.title || '').trim(), e.outerHTML.slice(0, 160)] }''')
        if found[0]:
            seen |= set(found[0].split())
            if not found[1]: unnamed.append(found[2])
    for name in 'pause stop reset lr-ratio label-noise timeline play tab-scores'.split(): assert f'jointseg-{name}' in seen, (name, sorted(seen))
    assert not unnamed, unnamed[:3]

def test_nothing_is_asked_of_other_machines(page):
    assert not page.outside(), page.outside()
    assert not page.errors, page.errors[:3]
