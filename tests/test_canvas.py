"""The eyes and the chart in a real browser: pixels, time line, keyboard, themes, reload, and how fast they are."""
import json, runpy, time
from base64 import b64decode, b64encode
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jointseg_nb.canvas import Chart, EyesCanvas, chart_points, script
from jointseg_nb.data import embedded
from jointseg_nb.fit import show_eyes
from jointseg_nb.looks import Look, make_frame

GRADES = ('no DR', 'mild', 'moderate', 'severe', 'proliferative')
EYES = '.jointseg-grid-of-eyes canvas'


def looks(shown, steps):
    "Looks that come closer to the truth: a band of the truth moves down the eyes."
    n, h, w = shown.masks.shape
    truth = np.where(shown.masks == 255, 0, shown.masks)
    for i, step in enumerate(steps):
        masks = np.where((np.arange(h) < h*(i + 1)/len(steps))[:, None], truth, 0).astype(np.uint8)
        sure = np.full((n, 5), 0.1, np.float32)
        sure[:, i%5] = 0.6
        yield Look(step, masks, (GRADES[i%5],)*n, sure, np.stack([np.where(masks == c, 250, 0).astype(np.uint8) for c in range(7)], 1))


def run(n=4, size=64, steps=range(0, 50, 10)):
    "A snapshot of a run that has been looked at at these steps."
    shown = show_eyes(embedded(12, seed=3, size=size), torch.arange(n), crop=size)
    seen = list(looks(shown, steps))
    return SimpleNamespace(seq=7, shown=shown, looks=seen, look=seen[-1], film=tuple(map(make_frame, seen)), changes=())


class Stage:
    "A widget and a bare page that shows it: what Jupyter does between the two, and no more."
    def __init__(self, browser, widget, module, traits, **context):
        self.page, self.widget, self.module, self.traits, self.out, self.sent = browser.new_page(**context), widget, module, traits, [], 0
        self.errors = []
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        self.page.expose_function('kernel', self.hear)
        widget.send = lambda words, buffers=(): self.out.append((words, buffers or ()))
        self.open()

    def open(self):
        "Load the page, as a reload does: the traits as the kernel knows them, nothing else."
        self.page.goto('about:blank')
        self.page.set_content(f'<!doctype html><style>{self.widget._css}</style><div id="here"></div>')
        self.page.add_script_tag(type='module', content=script(self.module).replace('export default', 'const widget =') + script('page.js').replace('export ', '') + f'''
            window.model = lonely({json.dumps({t: getattr(self.widget, t) for t in self.traits})}, words => kernel(words));
            const made = widget(), here = document.getElementById('here');
            made.initialize({{ model }});
            window.leave = made.render({{ model, el: here }});''')

    def hear(self, words):
        "A message or new traits from the page."
        if words['kind'] != 'traits': return self.widget.hear(words)
        for t in self.traits:
            if words['traits'].get(t) != getattr(self.widget, t): self.widget.set_trait(t, words['traits'][t])

    def until(self, what, seconds=20):
        "Carry messages to the page until something is true."
        end = time.monotonic() + seconds
        while True:
            while self.out:
                words, buffers = self.out.pop(0)
                self.sent += len(json.dumps(words)) + sum(map(len, buffers))
                self.page.evaluate('m => model.hear(m[0], m[1])', [words, [b64encode(b).decode() for b in buffers]])
            if what(): return
            assert time.monotonic() < end and not self.errors, self.errors
            self.page.wait_for_timeout(15)

    def js(self, code, arg=None): return self.page.evaluate(code, arg)
    def frame(self): return self.page.inner_text('.jointseg-frame')
    def layer(self, name, on): self.page.set_checked(f'.jointseg-layer-{name}', on)

    def wind(self, i):
        "Put the time line on frame `i`, as a hand does."
        self.js("i => { const t = document.querySelector('.jointseg-timeline'); t.value = i; t.dispatchEvent(new Event('input', {bubbles: true})) }", i)

    def pixels(self, eye=0, rest=True):
        "What is drawn of an eye: (H,W,3)."
        if rest: self.js("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        w, h, data = self.js('''([css, i]) => { const c = document.querySelectorAll(css)[i], d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let s = ''; for (const v of d) s += String.fromCharCode(v); return [c.width, c.height, btoa(s)] }''', [EYES, eye])
        return np.frombuffer(b64decode(data), np.uint8).reshape(h, w, 4)[..., :3]


def eyes_stage(browser, snap=None, **context):
    "The eyes on a page, with all of the run there."
    stage = Stage(browser, EyesCanvas(), 'eyes.js', ('options', 'view', 'at', 'wanted', 'painted'), **{'viewport': dict(width=900, height=900)} | context)
    stage.snap = snap or run()
    stage.widget.update(stage.snap)
    stage.until(lambda: stage.frame() == f'step {stage.snap.look.step}')
    return stage


@pytest.fixture
def stage(browser):
    made = eyes_stage(browser)
    yield made
    assert not made.errors
    made.page.close()


pytestmark = pytest.mark.browser


def at_eye_size(pixels, size=64):
    "The colour in the middle of each pixel of the eye."
    where = ((np.arange(size) + 0.5)*len(pixels)/size).astype(int)
    return pixels[where][:, where]


def test_only_the_prediction_is_the_label_map_in_colour(stage):
    for name in ('photograph', 'truth'): stage.layer(name, False)
    stage.widget.options = stage.widget.options | dict(layers=dict(photograph=dict(on=False), truth=dict(on=False), prediction=dict(on=True, opacity=1)))
    stage.js("o => model.set('options', o)", stage.widget.options)
    for eye in range(4):
        expected = stage.snap.shown.mask_colors[stage.snap.look.masks[eye]]
        assert (at_eye_size(stage.pixels(eye)) == expected).all()


def test_photograph_alone_is_the_photograph(stage):
    for name in ('prediction', 'truth'): stage.layer(name, False)
    seen = at_eye_size(stage.pixels(2)).astype(int)
    assert np.abs(seen - stage.snap.shown.images[2]).mean() < 8 # smoothed when enlarged


def test_every_layer_and_every_choice_changes_the_picture(stage):
    truth = stage.snap.shown.masks
    eye = int(((truth > 0) & (truth < 255)).sum((1, 2)).argmax())
    two = np.bincount(truth[eye].ravel(), minlength=256)[1:7].argsort()[-2:] + 1
    page, seen = stage.page, [stage.pixels(eye)]
    def changed(act):
        act()
        seen.append(stage.pixels(eye))
        assert seen[-1].shape != seen[-2].shape or (seen[-1] != seen[-2]).any()
    stage.wind(3)
    for name in ('photograph', 'prediction', 'disagreement', 'truth'): changed(lambda name=name: stage.layer(name, not page.is_checked(f'.jointseg-layer-{name}')))
    stage.layer('truth', True)
    for css, value in (('truth-as', 'area'), ('palette', 'safe'), ('arrangement', 'apart')): changed(lambda css=css, value=value: page.select_option(f'.jointseg-{css}', value))
    page.select_option('.jointseg-arrangement', 'together')
    stage.layer('photograph', True)
    changed(lambda: page.check('.jointseg-patterns'))
    changed(lambda: page.click('.jointseg-large'))
    for c in two: changed(lambda c=c: page.click(f'.jointseg-class-{c}'))
    stage.until(lambda: stage.widget.options.get('hidden') == two.tolist()) # and the kernel knows
    changed(lambda: page.evaluate("() => { const r = document.querySelector('.jointseg-opacity-photograph'); r.value = 0.3; r.dispatchEvent(new Event('input')) }"))


def test_hatches_tell_classes_apart_without_colour(stage):
    for name in ('photograph', 'truth'): stage.layer(name, False)
    stage.page.click('.jointseg-large')
    plain = [len(np.unique(stage.pixels(eye).reshape(-1, 3), axis=0)) for eye in range(4)]
    stage.page.check('.jointseg-patterns')
    hatched = [len(np.unique(stage.pixels(eye).reshape(-1, 3), axis=0)) for eye in range(4)]
    assert all(h >= 2*p - 1 for h, p in zip(hatched, plain)) # full and faint of each class, and black


def test_disagreement_goes_where_truth_and_prediction_differ(stage):
    for name in ('photograph', 'prediction', 'truth'): stage.layer(name, False)
    stage.layer('disagreement', True)
    assert not stage.pixels().any() # the last look is the truth
    stage.wind(0)
    seen = at_eye_size(stage.pixels()).any(2)
    truth = np.where(stage.snap.shown.masks[0] == 255, 0, stage.snap.shown.masks[0])
    assert (seen == (truth != stage.snap.looks[0].masks[0])).all()


def test_time_line(stage):
    page, last = stage.page, len(stage.snap.film) - 1
    assert page.get_attribute('.jointseg-live', 'aria-pressed') == 'true'
    stage.wind(1)
    stage.until(lambda: stage.frame() == 'step 10')
    assert page.get_attribute('.jointseg-live', 'aria-pressed') == 'false'
    stage.until(lambda: stage.widget.at == 10)
    more = list(looks(stage.snap.shown, range(50, 70, 10)))
    stage.snap.look, stage.snap.film = more[-1], stage.snap.film + tuple(map(make_frame, more))
    stage.widget.update(stage.snap)
    stage.until(lambda: page.get_attribute('.jointseg-timeline', 'max') == str(last + 2))
    assert stage.frame() == 'step 10' # the run goes on, the reader looks back
    page.click('.jointseg-live')
    stage.until(lambda: stage.frame() == 'step 60')


def test_plays_to_the_end(stage):
    stage.js("() => { window.steps = []; document.querySelector('.jointseg-canvas').addEventListener('jointseg-painted', e => steps.push(e.detail.step)) }")
    stage.page.click('.jointseg-play')
    stage.until(lambda: stage.js('() => steps.at(-1)') == 40 and stage.page.get_attribute('.jointseg-play', 'aria-label') == 'play the film')
    steps = stage.js('() => steps')
    assert sorted(steps) == steps and set(steps) == {0, 10, 20, 30, 40}


def test_a_moved_knob_leaves_a_tick(stage):
    stage.snap.changes = ((20, 'lr_ratio', 1., 30.),)
    stage.widget.update(stage.snap)
    stage.until(lambda: stage.page.locator('.jointseg-ticks i').count() == 1)
    assert stage.page.get_attribute('.jointseg-ticks i', 'title') == 'lr_ratio 1 → 30'
    tick, line = (stage.page.locator(f'.jointseg-{s}').bounding_box() for s in ('ticks i', 'timeline'))
    assert abs(tick['x'] + tick['width']/2 - line['x'] - line['width']/2) < 2 # frame 3 of 5


def test_thinned_frames_leave_the_browser(stage):
    stage.snap.film = stage.snap.film[:1] + stage.snap.film[-1:]
    stage.widget.update(stage.snap)
    stage.until(lambda: stage.page.get_attribute('.jointseg-timeline', 'max') == '1')


def test_zoom_and_pan_move_all_eyes(stage):
    page, before = stage.page, [stage.pixels(i) for i in range(4)]
    page.mouse.move(*centre(page))
    page.mouse.wheel(0, -400)
    assert (stage.pixels() == before[0]).all() # the page scrolls over eyes that were not clicked
    page.mouse.down()
    page.mouse.up()
    page.mouse.wheel(0, -800)
    stage.until(lambda: stage.widget.view.get('zoom', 1) > 1.5)
    zoomed = [stage.pixels(i) for i in range(4)]
    assert all((a != b).any() for a, b in zip(before, zoomed))
    page.mouse.down()
    page.mouse.move(centre(page)[0] + 40, centre(page)[1] + 10, steps=3)
    page.mouse.up()
    assert all((a != b).any() for a, b in zip(zoomed, (stage.pixels(i) for i in range(4))))
    page.click('.jointseg-zoom-reset')
    assert all((stage.pixels(i) == b).all() for i, b in enumerate(before))


def centre(page, css=EYES):
    box = page.locator(css).first.bounding_box()
    return box['x'] + box['width']/2, box['y'] + box['height']/2


def test_keyboard_alone(stage):
    page, before = stage.page, stage.pixels()
    page.keyboard.press('Tab')
    assert page.evaluate("() => document.activeElement.className.includes('jointseg-grid-of-eyes')")
    for key in ('+', '+', 'ArrowRight', 'ArrowDown'):
        page.keyboard.press(key)
        seen = stage.pixels()
        assert (seen != before).any(), key
        before = seen
    page.keyboard.press('0')
    page.keyboard.press('Tab')
    page.keyboard.press('Tab')
    page.keyboard.press('Home') # on the time line
    stage.until(lambda: stage.frame() == 'step 0')
    page.keyboard.press('ArrowRight')
    stage.until(lambda: stage.frame() == 'step 10')
    assert page.get_attribute('.jointseg-timeline', 'aria-valuetext') == 'step 10, frame 2 of 5'


def test_everything_has_a_name(stage):
    "Each control says what it is, and the eyes say what they show."
    nameless = stage.js('''() => [...document.querySelectorAll('button, input, select, [role=img], [tabindex]')]
        .filter(e => !e.getAttribute('aria-label') && !e.closest('label') && !e.textContent.trim()).map(e => e.className)''')
    assert nameless == []
    label = stage.page.get_attribute(EYES, 'aria-label')
    assert 'predicted proliferative' in label and ('truth' in label or 'no lesions' in label)
    assert 'at step 40' in stage.page.inner_text('[aria-live=polite]')


def test_probability_is_asked_for_and_comes(stage):
    for name in ('photograph', 'prediction', 'truth'): stage.layer(name, False)
    c = int(np.bincount(stage.snap.look.masks[0].ravel(), minlength=7)[1:].argmax()) + 1
    stage.layer('probability', True)
    stage.page.select_option('.jointseg-probability-of', str(c))
    stage.until(lambda: stage.widget.wanted == [f'probability:{c}'] and at_eye_size(stage.pixels()).any())
    assert (at_eye_size(stage.pixels()).any(2) == (stage.snap.look.masks[0] == c)).all()
    stage.wind(0)
    stage.until(lambda: 'latest look' in stage.page.inner_text('.jointseg-canvas-note'))


def test_reload_finds_everything_again(stage):
    stage.page.click('.jointseg-class-2')
    stage.wind(2)
    stage.until(lambda: stage.widget.options.get('hidden') == [2] and stage.widget.at == 20)
    before = stage.pixels()
    stage.open()
    stage.until(lambda: stage.frame() == 'step 20' and stage.page.get_attribute('.jointseg-timeline', 'max') == '4')
    assert stage.page.get_attribute('.jointseg-class-2', 'aria-pressed') == 'false'
    assert (stage.pixels() == before).all()


def test_a_beginning_that_was_lost_is_asked_for_again(stage):
    "As for a second tab whose first answer a busy server has dropped: what comes later is of no use to it, so it says hello once more."
    stage.open()
    stage.page.wait_for_function("() => window.model")
    while not stage.out: stage.page.wait_for_timeout(15)
    stage.out.clear()
    stage.snap.look, = looks(stage.snap.shown, [60])
    stage.snap.film += (make_frame(stage.snap.look),)
    stage.widget.update(stage.snap)
    stage.until(lambda: stage.widget.tell() or stage.frame() == 'step 60')
    assert stage.page.locator(EYES).count() == 4 and stage.page.get_attribute('.jointseg-timeline', 'max') == '5'


def test_another_run_begins_anew(stage):
    stage.wind(2)
    other = run(n=3, steps=[0])
    stage.widget.update(other)
    stage.until(lambda: stage.page.locator(EYES).count() == 3 and stage.frame() == 'step 0')
    assert stage.page.get_attribute('.jointseg-live', 'aria-pressed') == 'true'


def test_a_run_that_begins_while_there_is_no_room_is_drawn_once_there_is(stage):
    "As where a page or a card is only being opened: as yet it is in sight and has no width."
    room = "width => { document.getElementById('here').style.width = width }"
    stage.js(room, '0')
    stage.page.wait_for_timeout(100)
    stage.widget.update(run(n=3, steps=[0]))
    stage.until(lambda: not stage.out)
    stage.page.wait_for_timeout(300)
    assert not stage.errors
    stage.js(room, '')
    stage.until(lambda: stage.page.locator(EYES).count() == 3 and stage.frame() == 'step 0')
    assert stage.pixels().any()


def test_follows_the_theme(stage):
    root = '.jointseg-canvas'
    assert stage.page.get_attribute(root, 'data-theme') == 'light'
    stage.js("() => { document.body.style.setProperty('--jp-ui-font-color1', 'rgba(255, 255, 255, 1)'); document.body.setAttribute('data-jp-theme-light', 'false') }")
    stage.until(lambda: stage.page.get_attribute(root, 'data-theme') == 'dark')


@pytest.mark.parametrize('width', [420, 700, 1024])
def test_fits_its_box(browser, width):
    stage = eyes_stage(browser, viewport=dict(width=width, height=768))
    assert stage.js('() => document.documentElement.scrollWidth <= window.innerWidth')
    boxes = stage.js("() => [...document.querySelectorAll('.jointseg-canvas :is(button, input, select, canvas)')].filter(e => e.offsetParent).map(e => e.getBoundingClientRect().right)")
    assert max(boxes) <= width
    stage.page.close()


def test_files_are_made_and_saved(stage):
    for kind, start in (('gif', b'GIF89a'), ('html', b'<!doctype html>')):
        got = []
        stage.page.once('download', lambda d: got.append(d))
        stage.page.click(f'.jointseg-export-{kind}')
        stage.until(lambda: got, seconds=60)
        with open(got[0].path(), 'rb') as f: assert f.read(15).startswith(start)


def test_saved_page_works_alone(browser, tmp_path):
    widget = EyesCanvas()
    widget.update(run())
    (tmp_path/'film.html').write_text(widget.page(), encoding='utf-8')
    page, asked = browser.new_page(), []
    page.on('request', lambda r: asked.append(r.url))
    page.goto((tmp_path/'film.html').as_uri())
    page.wait_for_function("() => document.querySelector('.jointseg-frame')?.textContent === 'step 40'")
    page.focus('.jointseg-timeline')
    page.keyboard.press('Home')
    page.wait_for_function("() => document.querySelector('.jointseg-frame').textContent === 'step 0'")
    assert [u for u in asked if not u.startswith('file:')] == [] and not page.is_visible('.jointseg-export-gif')
    page.close()


def test_nothing_is_drawn_or_answered_while_unseen(browser):
    "Eyes above the screen: the kernel hears nothing, so it sends one message and waits."
    stage = eyes_stage(browser)
    stage.js("() => { document.body.style.paddingTop = '3000px'; window.draws = 0; document.querySelector('.jointseg-canvas').addEventListener('jointseg-painted', () => draws++) }")
    stage.page.wait_for_timeout(200)
    seen, number = stage.js('() => draws'), stage.widget._number
    for look in looks(stage.snap.shown, range(50, 90, 10)):
        stage.snap.look, stage.snap.film = look, stage.snap.film + (make_frame(look),)
        stage.widget.update(stage.snap)
        stage.until(lambda: not stage.out)
        stage.page.wait_for_timeout(50)
    assert stage.widget._number == number + 1 and stage.js('() => draws') == seen
    stage.js("() => { document.body.style.paddingTop = '0' }")
    stage.until(lambda: stage.frame() == 'step 80' and stage.page.get_attribute('.jointseg-timeline', 'max') == '8')
    stage.page.close()


SCRUB = '''seconds => new Promise(done => {
    const root = document.querySelector('.jointseg-canvas'), line = root.querySelector('.jointseg-timeline'), start = performance.now(), ms = [];
    root.addEventListener('jointseg-painted', e => ms.push(e.detail.ms));
    let i = 0;
    const move = now => {
        if (now - start > 1000*seconds) return done({painted: ms.length, asked: i});
        line.value = i = (i + 1) % (Number(line.max) + 1);
        line.dispatchEvent(new Event('input', {bubbles: true}));
        requestAnimationFrame(move);
    };
    requestAnimationFrame(move);
})'''


def test_eight_large_eyes_scrub(browser):
    "8 eyes of 224 px, moved at every frame of the screen: what is asked for faster than it can be drawn is left out, the last is shown. How fast: `benchmarks/lab.py`."
    stage = eyes_stage(browser, run(8, 224, range(0, 300, 10)))
    seen = stage.js(SCRUB, 2)
    assert seen['painted'] > 1
    stage.until(lambda: stage.frame() == f'step {10*seen["asked"]}')
    stage.page.close()


def test_the_film_of_the_benchmark():
    "What `benchmarks/lab.py` scrubs through can be shown."
    made, film = {}, runpy.run_path(str(Path(__file__).parents[1]/'benchmarks'/'lab.py'))['FILM']
    exec('FRAMES = 3' + film, made)
    assert len(made['canvas']._film) == 3


# the chart

@pytest.fixture
def chart(browser):
    spec = dict(title='Losses', x='step', y='loss', markers=[dict(x=60, text='ratio 1 → 30')],
                series=[dict(name='classifier', points=[[x, 1/(1 + x/20)] for x in range(101)]), dict(name='segmenter', points=[[x, None if x%2 else 0.5] for x in range(101)], colour='2', dash=True),
                        dict(name='speed', points=[[x, 100. + x] for x in range(101)], colour='3', side='right')])
    stage = Stage(browser, Chart(spec), 'chart.js', ('hidden', 'painted'), viewport=dict(width=700, height=400))
    stage.until(lambda: stage.page.locator('.jointseg-plot svg .series').count() == 3)
    yield stage
    assert not stage.errors
    stage.page.close()


def test_chart_says_what_it_shows(chart):
    label = chart.page.get_attribute('.jointseg-plot svg', 'aria-label')
    assert label == 'Losses, loss against step: classifier 0.167, segmenter 0.5, speed 200 at step 100; 1 marker'


def test_chart_is_read_by_keys_and_by_the_pointer(chart):
    page = chart.page
    page.focus('.jointseg-plot')
    for key, x in (('ArrowLeft', '100'), ('ArrowLeft', '99'), ('Home', '0'), ('PageDown', '10')):
        page.keyboard.press(key)
        assert page.inner_text('.jointseg-read b') == f'step {x}'
    assert page.text_content('[aria-live=polite]') == 'step 10: classifier 0.667, segmenter 0.5, speed 110'
    page.keyboard.press('Escape')
    assert not page.is_visible('.jointseg-read')
    box = page.locator('.jointseg-plot').bounding_box()
    page.mouse.move(box['x'] + 46 + (box['width'] - 92)*0.6, box['y'] + 80)
    assert page.inner_text('.jointseg-read b') == 'step 60' and 'ratio 1 → 30' in page.inner_text('.jointseg-read')


def test_legend_switches_series(chart):
    chart.page.click('.jointseg-legend button >> nth=2')
    chart.until(lambda: chart.page.locator('.jointseg-plot svg .series').count() == 2 and chart.widget.hidden == ['speed'])
    assert chart.page.get_attribute('.jointseg-legend button >> nth=2', 'aria-pressed') == 'false'
    chart.open() # a reload
    chart.until(lambda: chart.page.locator('.jointseg-plot svg .series').count() == 2)


def test_chart_keeps_up_with_the_last_value(chart):
    for i in range(200): chart.widget.spec = dict(x='step', y='loss', series=[dict(name='a', points=[[0, 0], [1, i]])])
    chart.until(lambda: ': a 199 at' in (chart.page.get_attribute('.jointseg-plot svg', 'aria-label') or ''))
    assert chart.widget._number < 8 # most of the 200 never left the kernel


def test_chart_without_points(chart):
    chart.widget.spec = dict(title='Nothing', x='step', y='loss', series=[dict(name='a', points=[])])
    chart.until(lambda: 'no values yet' in chart.page.get_attribute('.jointseg-plot svg', 'aria-label'))


def test_points_are_thinned_without_losing_a_spike():
    points = [[i, float(i == 777)] for i in range(3000)]
    few = chart_points(points)
    assert len(few) <= 400 and max(y for _, y in few) == 1 and few[0][0] == 0 and few[-1][0] == 2999
    assert chart_points([]) == [] and chart_points([[1, None]]) == [[1., None]]
