"""The live lab in JupyterLab, driven in a real browser: every knob, every view, and what must never lose a run."""
import io, json, os, re
from pathlib import Path
import pytest
from PIL import Image

pytestmark = pytest.mark.browser
RUN = '[data-command="notebook:run-cell-and-select-next"]'

def names():
    "Knobs and views, without which there is nothing to try; empty where the package cannot be imported."
    from jointseg_nb.knobs import live_settings
    from jointseg_nb.views import VIEWS
    return live_settings(), [v.name for v in VIEWS if v.name not in ('status', 'rates', 'log')] # these are always shown

SETTINGS, VIEWS = names()

@pytest.fixture(scope='module')
def lab(tmp_path_factory, tools, small):
    folder = tmp_path_factory.mktemp('lab')
    (folder/'small.json').write_text(json.dumps(small))
    lab = tools.Lab(folder, '--recipe', 'small.json')
    yield lab
    lab.stop()

def idle(page): page.page.wait_for_function("document.querySelector('#jp-main-statusbar')?.innerText.includes('Idle')")

def started(page):
    "The cell has made a panel; if it has failed, say how."
    page.page.wait_for_selector('.jointseg-status, .jp-OutputArea-output [data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]')
    assert page.page.locator('.jointseg-status').count(), page.page.inner_text('.jp-OutputArea-output')

@pytest.fixture(scope='module')
def page(browser, lab, tools):
    "The notebook of `jointseg-lab`, its cell run by one click."
    page = tools.Page(browser, lab, Path(os.environ.get('JOINTSEG_SHOTS') or lab.folder)).open()
    try:
        page.page.wait_for_selector('.jp-CodeCell')
        page.page.wait_for_selector(RUN)
        assert not page.page.query_selector_all('.jp-Dialog')
        idle(page)
        page.page.click(RUN)
        started(page)
        yield page
    finally: page.close()

@pytest.fixture
def kernel(lab, tools):
    kernel = tools.Kernel(lab.kernels()[-1])
    yield kernel
    kernel.close()

# --- it starts

def test_one_click_and_it_trains(page):
    page.shot('painted')
    page.until(lambda: page.step >= 1)

def test_eyes_are_drawn_and_change(page):
    page.page.wait_for_selector('.jointseg-grid-of-eyes canvas')
    page.until(lambda: page.pictures() and not any(p['blank'] for p in page.pictures()))
    assert [p['width'] > 90 for p in page.pictures()] == [True]*4
    before = page.sums()
    page.until(lambda: all(a != b for a, b in zip(page.sums(), before)))
    assert 'no knob has moved' in page.text('log') # though 0.2 is off the slider's grid
    page.shot('running')

def test_kernel_is_free(page):
    page.page.click('.jp-CodeCell >> nth=1')
    page.page.keyboard.press('Shift+Enter')
    page.page.wait_for_selector('.jp-CodeCell >> nth=1 >> .jp-OutputArea-output >> text=running')

# --- knobs

def logged(page, act, words):
    "Do something; it must be in the log, as a step that took it up."
    page.until(lambda: page.text('status').startswith('running'))
    act()
    page.until(lambda: words in page.text('log')) # how soon is measured in benchmarks/lab.py

def move(page, setting):
    "Move a knob, as its kind is moved."
    part = page.one(setting.name.replace('_', '-'))
    if setting.kind in ('log', 'slide'): part.locator('.noUi-handle').focus(); page.page.keyboard.press('ArrowLeft' if setting.name == 'augment' else 'ArrowRight')
    elif setting.kind in ('number', 'whole'): part.locator('input').fill('0.001' if setting.name == 'weight_decay' else '4'); page.page.keyboard.press('Enter')
    elif setting.kind == 'choice':
        select = part.locator('select')
        select.select_option(index=(select.evaluate('s => s.selectedIndex') + 1) % select.evaluate('s => s.options.length'))
    else: part.locator('button').last.click()

@pytest.mark.parametrize('setting', SETTINGS, ids=lambda s: s.name)
def test_live_knob(page, setting):
    page.unfold('knobs')
    logged(page, lambda: move(page, setting), f'{setting.name} ')

def test_all_agents_again(page):
    logged(page, lambda: page.one('agents').locator('button').first.click(), '→ both')

def test_ratio_by_drag(page):
    handle, bar = (page.one('lr-ratio').locator(s).first.bounding_box() for s in ('.noUi-handle', '.noUi-base'))
    def drag():
        y = handle['y'] + handle['height']/2
        page.page.mouse.move(handle['x'] + handle['width']/2, y)
        page.page.mouse.down()
        page.page.mouse.move(bar['x'] + bar['width'], y, steps=5)
        page.page.mouse.up()
    logged(page, drag, '→ 100')
    page.one('lr-ratio').locator('.noUi-handle').focus()
    logged(page, lambda: page.page.keyboard.press('Home'), '→ 0.01') # or the classifier would diverge before long

def test_switch(page):
    page.unfold('gate')
    logged(page, lambda: page.click('switch-16-E1'), 'attention 16 px −E1')
    page.shot('switched')

# --- views

@pytest.mark.parametrize('name', VIEWS)
def test_view(page, name):
    page.until(lambda: page.text('status').startswith('running'))
    card = page.view(name)
    body = card.locator('.jointseg-body')
    def filled():
        if 'could not be made' in body.inner_text(): raise AssertionError(body.inner_text())
        return len(body.inner_text().strip()) > 3 or body.locator('svg, canvas').count()
    page.until(filled)
    assert 'None' not in body.inner_text() and 'undefined' not in body.inner_text() and 'nan' not in body.inner_text().lower().split()
    card.scroll_into_view_if_needed()
    page.shot(f'view-{name}')
    page.view(name, on=False)

def test_chart_is_a_picture_and_can_be_read_out(page):
    chart = page.view('losses').locator('.jointseg-body')
    page.until(lambda: chart.locator('svg path, svg polyline, canvas').count() > 0)
    chart.scroll_into_view_if_needed()
    step = page.step
    read = lambda: chart.locator('svg[role=img]').first.get_attribute('aria-label')
    page.until(lambda: max([0, *map(int, re.findall(r'step (\d+)', read()))]) >= step)
    box = chart.bounding_box()
    assert box['width'] > 250 and box['height'] > 100

# --- the eyes

def test_layers(page):
    page.pause()
    page.one('grid-of-eyes').scroll_into_view_if_needed() # what nobody sees is not drawn
    page.one('timeline').fill('0') # an untrained network paints something; a young one may paint nothing for a while
    page.page.wait_for_timeout(500)
    seen = {tuple(page.sums())}
    def changed():
        now = tuple(page.sums())
        if now in seen: return False
        seen.add(now)
        return True
    for layer in ('prediction', 'truth', 'disagreement'):
        page.one(f'layer-{layer}').click()
        page.until(changed)
    page.one('layer-prediction').click()
    page.until(changed)
    page.one('opacity-prediction').fill('1')
    page.until(changed)
    page.one('layer-truth').click()
    page.until(changed)
    page.one('palette').select_option('safe') # where only some colours are others
    page.one('patterns').check()
    page.until(changed)
    page.shot('patterns')
    page.one('patterns').uncheck()
    page.one('class-1').click() # background is 0
    assert page.one('class-1').get_attribute('aria-pressed') == 'false'
    page.one('class-1').click()
    n = len(page.pictures())
    page.one('arrangement').select_option('apart')
    page.until(lambda: len(page.pictures()) > n and not any(p['blank'] for p in page.pictures()))
    page.shot('side-by-side')
    page.one('arrangement').select_option('together')
    page.until(lambda: len(page.pictures()) == n)
    page.click('live')

def test_probability_of_a_class(page):
    page.run()
    page.one('layer-probability').click()
    page.one('probability-of').select_option(index=3)
    page.until(lambda: 'probabilities' not in page.text('canvas-note'))
    page.shot('probability')
    page.one('layer-probability').click()

def test_zoom_together(page):
    page.pause()
    page.one('grid-of-eyes').focus()
    page.page.wait_for_timeout(300)
    before = page.sums()
    page.page.keyboard.press('+')
    page.until(lambda: all(a != b for a, b in zip(page.sums(), before)))
    page.page.keyboard.press('ArrowRight')
    page.shot('zoomed')
    page.page.keyboard.press('0')
    page.until(lambda: page.sums() == before)

def test_time_line(page):
    last = page.shown
    early = page.sums()
    page.one('timeline').fill('0')
    page.until(lambda: page.shown < last and page.sums() != early)
    assert page.one('live').get_attribute('aria-pressed') == 'false'
    page.one('speed').fill('60')
    page.click('play')
    page.until(lambda: page.shown == last) # to the end of the film
    page.one('timeline').fill('0')
    step = page.step
    page.run()
    page.until(lambda: page.step > step + 3)
    assert page.shown < last # the run goes on, the past stays in view
    page.click('live')
    page.until(lambda: page.shown > last)

@pytest.mark.parametrize('kind', ['gif', 'html'])
def test_film_to_take_along(page, browser, kind):
    with page.page.expect_download() as download: page.click(f'export-{kind}')
    path = Path(download.value.path())
    if kind == 'gif':
        film = Image.open(io.BytesIO(path.read_bytes()))
        assert film.format == 'GIF' and film.n_frames > 3
        return
    kept = page.lab.folder/'film.html'
    kept.write_bytes(path.read_bytes())
    context = browser.new_context(offline=True)
    alone = context.new_page()
    alone.goto(f'file://{kept}')
    alone.wait_for_selector('.jointseg-grid-of-eyes canvas')
    alone.wait_for_function("document.querySelector('.jointseg-frame').innerText.includes('step')")
    alone.wait_for_timeout(300)
    from conftest import PIXELS
    before = alone.eval_on_selector_all('.jointseg-grid-of-eyes canvas', PIXELS)
    assert len(before) == 4 and not any(p['blank'] for p in before)
    alone.fill('.jointseg-timeline', '0')
    alone.wait_for_timeout(300)
    assert alone.eval_on_selector_all('.jointseg-grid-of-eyes canvas', PIXELS) != before
    context.close()

# --- what one brings, and takes

def test_own_photograph(page):
    card = page.view('photo')
    page.upload('notes.png', b'no photograph')
    page.until(lambda: 'notes.png' in page.text('error') + card.inner_text())
    from jointseg_nb.fundus import eyes
    file = io.BytesIO()
    Image.fromarray(eyes(1, seed=77, size=96)[0][0]).save(file, 'PNG')
    page.upload('mine.png', file.getvalue())
    page.until(lambda: 'mine.png' in card.inner_text() and card.locator('img').count() > 0)
    assert card.locator('img').first.evaluate('i => i.naturalWidth') > 16
    page.shot('photo')
    page.view('photo', on=False)

def test_preset(page):
    options = page.one('preset').locator('option').all_inner_texts()
    assert len(options) > 4
    page.one('preset').locator('select').select_option(index=1)
    page.until(lambda: len(page.text('preset-line').strip()) > 20)
    page.click('preset-set')
    page.until(lambda: page.step >= 0 and not page.text('error').strip())
    page.shot('preset')

def test_setup_as_a_string(page):
    page.unfold('sharing')
    take = lambda: page.one('share').locator('input, textarea').input_value()
    page.until(lambda: take().startswith('js1:'))
    text = take()
    page.until(lambda: page.step > 3)
    ratio = page.text('lr-ratio')
    page.one('lr-ratio').locator('.noUi-handle').focus()
    for _ in range(4): page.page.keyboard.press('ArrowLeft')
    page.until(lambda: page.text('lr-ratio') != ratio and take() != text)
    page.one('load').locator('input, textarea').fill('js1:nonsense')
    page.page.keyboard.press('Tab')
    page.one('load-set').press('Enter') # by keyboard: an error that comes or goes moves the button
    page.until(lambda: 'set-up' in page.text('error'))
    page.one('load').locator('input, textarea').fill(text)
    page.page.keyboard.press('Tab')
    page.one('load-set').press('Enter')
    page.until(lambda: page.text('lr-ratio') == ratio and not page.text('error').strip())
    page.shot('shared')

def test_apply_keeps_the_old_run(page):
    page.go_on()
    page.until(lambda: page.step > 3)
    table = page.view('runs')
    before = table.locator('tr').count()
    page.unfold('new')
    page.one('rebuild-seed').locator('input').fill('7')
    page.page.keyboard.press('Enter')
    page.click('apply')
    page.until(lambda: table.locator('tr').count() > before)
    page.until(lambda: 'seed' in table.inner_text())
    page.go_on()
    page.until(lambda: page.step >= 1)
    page.shot('applied')
    page.view('runs', on=False)

def test_apply_refuses_before_anything_is_lost(page):
    step = page.step
    page.unfold('new')
    page.one('rebuild-data').locator('input').fill('no/such/folder')
    page.page.keyboard.press('Enter')
    page.click('apply')
    page.until(lambda: 'no/such/folder' in page.text('error'))
    page.until(lambda: page.step > step)
    page.click('undo')
    page.click('open-new')

# --- never lost

def test_pause(page):
    page.pause()
    step = page.step
    page.page.wait_for_timeout(1500)
    assert page.step == step
    page.click('step')
    page.until(lambda: page.step == step + 1)

def test_two_tabs_agree(page, browser, lab, tools):
    page.run()
    page.page.wait_for_timeout(3000) # the notebook saves itself
    two = tools.Page(browser, lab, page.shots)
    two.context.close()
    two.context, two.page = page.context, page.context.new_page()
    two.open()
    two.page.bring_to_front()
    two.one('status').wait_for()
    two.until(lambda: two.pictures() and not any(p['blank'] for p in two.pictures()))
    two.one('label-noise').locator('.noUi-handle').focus()
    two.page.keyboard.press('End')
    for p in (two, page): p.until(lambda: '1.00' in p.text('label-noise') and 'label_noise' in p.text('log'))
    step = page.step
    two.page.close() # a closed tab takes nothing away
    page.page.bring_to_front()
    page.until(lambda: page.step > step)

def test_notebook_7_shows_the_same_run(page, browser, lab, tools):
    pytest.importorskip('notebook')
    page.pause()
    seven = tools.Page(browser, lab, page.shots)
    try:
        seven.open(lab.url.replace('/doc/tree/', '/notebooks/'))
        seven.page.wait_for_selector('.jp-NotebookPanel')
        seven.until(lambda: seven.pictures() and not any(p['blank'] for p in seven.pictures()))
        assert seven.page.locator('#jp-main-dock-panel').count() == 0 # it is not JupyterLab
        step = seven.step
        seven.click('step')
        for p in (seven, page): p.until(lambda: p.step == step + 1)
        seven.shot('notebook-7')
    finally: seven.close()
    page.page.bring_to_front()
    page.run()

def test_reload_finds_the_run(page):
    page.until(lambda: 'next step' not in page.text('log'))
    log, step = page.text('log').splitlines()[0], page.step
    page.page.wait_for_timeout(3000) # the notebook saves itself
    page.page.reload()
    page.one('status').wait_for()
    page.until(lambda: page.step > step)
    assert log in page.text('log')
    page.until(lambda: page.pictures() and not any(p['blank'] for p in page.pictures()))
    page.until(lambda: int(page.one('timeline').get_attribute('max')) > 2) # the film came back too
    page.shot('reloaded')

def test_the_same_cell_finds_the_same_run(page):
    page.until(lambda: 'next step' not in page.text('log'))
    log, step = page.text('log').splitlines()[0], page.step
    page.page.click('.jp-CodeCell >> nth=0 >> .jp-InputArea-editor')
    page.page.keyboard.press('Shift+Enter')
    page.page.wait_for_timeout(1500)
    page.one('status').wait_for()
    page.until(lambda: page.step >= step)
    assert log in page.text('log')

def test_a_failure_is_shown_and_the_run_stays(page, kernel):
    page.until(lambda: page.step >= 3)
    kernel('def broken(*_, **__): raise RuntimeError("out of luck")\nsession.setup.trainer.step = broken')
    page.until(lambda: 'failed' in page.text('status') and 'out of luck' in page.text('error'))
    assert not any(p['blank'] for p in page.pictures()) and page.step >= 3
    page.shot('failed')
    page.click('reset')
    page.until(lambda: 'failed' not in page.text('status') and not page.text('error').strip())
    page.go_on()
    page.until(lambda: page.step >= 1)

def test_kernel_restart_goes_on_from_the_checkpoint(page, kernel):
    page.run()
    page.until(lambda: page.step > 20)
    page.pause() # which saves
    step = page.step
    page.until(lambda: kernel('', 'session.snapshot.saved') >= step)
    page.page.click('[data-command="notebook:restart-kernel"], jp-button[title*="Restart"], [title^="Restart the kernel"]')
    page.page.click('.jp-Dialog .jp-mod-accept')
    page.page.wait_for_timeout(2000)
    idle(page)
    page.page.click('.jp-CodeCell >> nth=0 >> .jp-InputArea-editor')
    page.page.click(RUN)
    started(page)
    page.until(lambda: page.step >= step)
    assert page.step < step + 200, page.step
    page.until(lambda: int(page.one('timeline').get_attribute('max')) > 2)
    page.shot('restarted')

# --- two runs

def test_duel(page):
    page.page.click('.jp-CodeCell >> nth=1 >> .jp-InputArea-editor')
    page.page.keyboard.press('Control+A')
    page.page.keyboard.insert_text('session.pause()\nfrom jointseg_nb.duel import Duel\nDuel(session, session.rival(lr_ratio=30.))')
    page.page.keyboard.press('Shift+Enter')
    page.one('duel-run').wait_for()
    page.one('duel-run').scroll_into_view_if_needed()
    page.one('how').locator('button').last.click() # in turn
    page.click('duel-run')
    steps = lambda: [int(re.search(r'step\s+(\d+)', page.page.inner_text(f'.jointseg-{x} .jointseg-status'))[1]) for x in 'ab']
    start = steps()
    page.until(lambda: all(now > before + 4 for now, before in zip(steps(), start)))
    page.until(lambda: all(pictures and not any(p['blank'] for p in pictures) for pictures in (page.pictures(f'.jointseg-{x} .jointseg-grid-of-eyes') for x in 'ab')))
    page.page.locator('.jointseg-a .jointseg-label-noise .noUi-handle').focus() # linked: B follows
    page.page.keyboard.press('Home')
    page.page.keyboard.press('ArrowRight')
    page.until(lambda: all('0.05' in page.page.inner_text(f'.jointseg-{x} .jointseg-label-noise') for x in 'ab'))
    assert page.page.inner_text('.jointseg-a .jointseg-lr-ratio') != page.page.inner_text('.jointseg-b .jointseg-lr-ratio')
    page.shot('duel')
    page.click('duel-pause')

# --- everywhere

def test_small_screen_and_dark_theme(page):
    page.page.set_viewport_size(dict(width=1024, height=768))
    page.page.locator('.jointseg').first.scroll_into_view_if_needed()
    page.page.wait_for_timeout(500)
    wide = page.page.eval_on_selector_all('.jointseg *', 'all => all.filter(e => { const b = e.getBoundingClientRect(); return b.width && b.right > innerWidth + 1 && !e.closest("[hidden], .jointseg-hidden") }).map(e => e.className).slice(0, 5)')
    assert not wide, wide
    page.shot('small')
    status = page.page.evaluate('''async () => {
        const xsrf = (document.cookie.match(/_xsrf=([^;]+)/) || [])[1], body = JSON.stringify({raw: JSON.stringify({theme: 'JupyterLab Dark'})});
        return (await fetch('/lab/api/settings/@jupyterlab/apputils-extension:themes', {method: 'PUT', body, headers: {'X-XSRFToken': xsrf, 'Content-Type': 'application/json'}})).status }''')
    assert status < 300, status
    page.page.wait_for_timeout(3000) # the notebook saves itself
    page.page.reload()
    page.one('status').wait_for()
    page.page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.page.wait_for_timeout(1500)
    light = '''(root => { const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number); return .3*r + .6*g + .1*b };
        return [...root.querySelectorAll('.widget-html-content, .widget-label, .jointseg-frame, .jointseg-head')].filter(e => e.innerText.trim() && e.offsetWidth).map(e => light(getComputedStyle(e).color)) })'''
    colours = page.page.locator('.jointseg').first.evaluate(light)
    assert colours and min(colours) > 110, colours
    page.shot('dark')

def test_nothing_is_asked_of_other_machines(page):
    assert not page.outside(), page.outside()
    assert not page.errors, page.errors[:3]
