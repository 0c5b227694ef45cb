"""Views: pure, small, safe, readable aloud and in any light, and right in what they say."""
import json, re
from dataclasses import replace
from html.parser import HTMLParser
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jointseg_nb.fit import Shown
from jointseg_nb.fundus import GRADES, LESIONS, LESION_COLORS
from jointseg_nb.looks import AttentionStudy, Look, NoiseStudy, PhotoLook
from jointseg_nb.recipes import recipe
from jointseg_nb.snapshots import RunSummary, Snapshot, best_row
from jointseg_nb.views import (VIEWS, attention_words, calm_view, confusion_view, cooperation_view, describe, losses_view, markers, meter_words, noise_words, race_view, recent, running_mean,
                               runs_table, runs_view, scores_view, trend)

rng = np.random.default_rng(0)
evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>\'&amp;'

def history(n, every=10, level=0.3):
    "Rows as a session makes them."
    rows = [dict(step=k, clf_loss=2/k + 0.1*rng.random(), seg_loss=None if k % 3 == 0 else 1/k, cosine=rng.normal(0.2, 0.3), cosines=tuple(rng.normal([0.4, 0.2, 0, -0.2], 0.1))) for k in range(1, n + 1)]
    for r in rows[every - 1::every]:
        r |= dict(miou=level, lesion_miou=level + r['step']/10/n, top1=0.5, iou=dict(zip(LESIONS, [0.9, 0.5, 0., None, 0.3, 0.2, 0.1])))
    return tuple(rows)

scores = dict(miou=0.4, lesion_miou=0.3, top1=0.62, majority=0.5, kappa=None, iou=dict(zip(LESIONS, [0.9, 0.5, 0., None, 0.3, 0.2, 0.1])))

def attention(side=64):
    ratio = np.array([[4, 2, 1, 0], [2, 1, 0, 0], [1, 0, 0, 0]])
    effect = np.where(ratio > 0, rng.random((3, 4))/10, np.nan); effect[0, 1] = np.nan
    thumbs = {(int(k), int(i)): rng.integers(0, 256, (48, 48)).astype(np.uint8) for k, i in np.argwhere(ratio > 0)}
    return AttentionStudy(7, 0, (64, 32, 16, 8), (16, 32, 64), ratio, ratio > 0, (ratio > 0) & (rng.random((3, 4)) < 0.7), effect, np.where(np.isnan(effect), -1, 5), thumbs)

def noise(n=24, names=GRADES):
    pick = lambda: tuple(names[i] for i in rng.integers(0, 5, n))
    true, given, said = pick(), pick(), pick()
    return NoiseStudy(7, 0.8, 'uniform', 800, 512, (True, True, False, True, True), tuple(names), tuple(f'eye {i}' for i in range(n)), rng.integers(0, 256, (n, 48, 48, 3)).astype(np.uint8), true, given,
                      tuple(t != g for t, g in zip(true, given)), said, tuple(np.linspace(0, 1, n)))

def full(steps=300, side=64, grades=GRADES, lesions=LESIONS, name='mine.png', n_runs=2):
    "A snapshot in which everything is there; photographs of pure noise, the worst for any packing."
    r, masks = recipe('pocket'), rng.integers(0, 7, (4, side, side)).astype(np.uint8)
    shown = Shown(rng.integers(0, 256, (4, side, side, 3)).astype(np.uint8), masks, (grades[0], None, *grades[1:3]), tuple(lesions), LESION_COLORS)
    old = [RunSummary(f'run {k + 1}', replace(r, lr=0.1*(k + 1)), 'embedded eyes', 100, history(100, level=0.1*k % 0.9), (), best_row(history(100, level=0.1*k % 0.9)), scores) for k in range(n_runs)]
    changes = ((5, 'lr', 0.2, 0.1), (9, 'label_noise', 0., 0.8), (9, 'agents', 'both', 'segmenter'))
    photo = PhotoLook(name, 300, rng.integers(0, 256, (side, side, 3)).astype(np.uint8), masks[0], tuple(grades), (0.1, 0.2, 0.4, 0.2, 0.1), 'shrunk')
    return Snapshot(state='paused', message=name, remark=name, step=steps, total=600, recipe=r, data='embedded eyes', history=history(steps), scores={**scores, 'iou': dict(zip(lesions, scores['iou'].values()))}, scored=steps,
                    confusion=rng.integers(0, 9, (5, 5)), label_names=tuple(grades), changes=changes, values={}, waiting=('lr',), rates=dict(clf_M=1., clf_C=2., seg_M=3., seg_S=4.), shown=shown,
                    look=Look(steps, masks, ('mild',)*4, None, None), attention=attention(), noise=noise(names=grades), photo=photo, runs=tuple(old), speed=99.5, device='cpu', precision='float32', memory=512.3, saved=250)

class Reader(HTMLParser):
    "Tags, in order; complains of what is not closed."
    void = {'br', 'img'}
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ''
        self.feed(text); self.close()
        assert not self.open, f'never closed: {self.open}'
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void: self.open.append(tag)
    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-1:]}'
        self.open.pop()
    def handle_data(self, data):
        if self.open[-1:] != ['style']: self.text += data

each = pytest.mark.parametrize('view', VIEWS, ids=lambda v: v.name)
states = dict(empty=lambda: Snapshot(), preparing=lambda: Snapshot(state='preparing', message='reading', recipe=recipe('pocket'), total=600), first=lambda: replace(full(1, n_runs=0), scores={}, confusion=None, photo=None, attention=None, noise=None, look=None),
              full=full, long=lambda: replace(full(2000, side=224, n_runs=30), changes=tuple((k, 'lr', k*1., k + 1.) for k in range(2000))), evil=lambda: full(grades=tuple(f'{g}{evil}' for g in GRADES), lesions=tuple(f'{l}{evil}' for l in LESIONS), name=evil),
              one=lambda: replace(full(20), scores={**scores, 'top1': None, 'majority': None}, confusion=np.zeros((5, 5), int), noise=None))

@each
@pytest.mark.parametrize('state', states)
def test_every_view_in_every_state(view, state):
    "HTML that is whole, small, safe and readable aloud; or a chart that JSON can carry."
    snap = states[state]()
    made = view.make(snap)
    assert made == view.make(snap), 'the same snapshot, the same view'
    return check_chart(made) if isinstance(made, dict) else check_html(made)

def check_html(made):
    assert len(made.encode()) < 60_000
    r = Reader(made)
    tags = [t for t, _ in r.tags]
    assert not {'script', 'iframe', 'link', 'form'} & set(tags)
    for tag, a in r.tags:
        assert not [k for k in a if k.startswith('on')], a
        if tag == 'img': assert a['alt'].strip() and re.match(r'data:image/(png|jpeg);base64,', a['src'])
        if tag == 'th': assert a['scope'] in ('row', 'col')
        if a.get('role') == 'img': assert a['aria-label']
    assert tags.count('table') - tags.count('caption') in (0, 1)   # the rates alone go without
    assert 'http' not in re.sub('base64,[^"]*', '', made)

def check_chart(spec):
    assert set(spec) >= {'title', 'x', 'y', 'series', 'markers', 'note'} and spec['note'].strip()
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec
    for s in spec['series']:
        x, y = zip(*s['points'])
        assert 1 <= len(x) <= 200 and list(x) == sorted(set(x)) and np.isfinite(y).all()
        assert re.fullmatch(r'\d|currentColor', s['colour'])
    assert len(spec['markers']) <= 60 and all(m['text'] for m in spec['markers'])

def test_views_are_told_apart():
    assert len({v.name for v in VIEWS}) == len({v.title for v in VIEWS}) == len({v.question for v in VIEWS}) == len(VIEWS)
    assert all(v.question.endswith('?') and re.fullmatch('[a-z]+', v.name) for v in VIEWS)

@each
def test_no_view_names_a_colour_of_the_page(view):
    "Colours of text, lines and ground come from variables; what is left are shades that lie on any ground."
    made = view.make(full())
    if isinstance(made, dict): return
    bare = re.sub(r'base64,[^"]*', '', made)
    while '(' in bare and re.search(r'var\([^()]*\)', bare): bare = re.sub(r'var\([^()]*\)', '', bare)
    assert not re.search(r'(?<!&)#[0-9a-fA-F]{3,8}\b|\brgb\(|\b(?:white|black|red|grey)\s*[;}"]', bare), bare

@given(st.lists(st.floats(-1e3, 1e3), max_size=40), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_running_mean_against_its_definition(values, over):
    assert running_mean(values, over) == pytest.approx([np.mean(values[max(0, k - over + 1):k + 1]) for k in range(len(values))], abs=1e-6)

def test_recent_and_trend():
    v = list(rng.normal(1, 2, 100))
    m, e, n = recent(v + [None]*5, 30)
    assert (m, e, n) == (pytest.approx(np.mean(v[-25:])), pytest.approx(2*np.std(v[-25:], ddof=1)/5), 25) or recent([x for x in v + [None]*5 if x is not None][-30:])[2] == 30
    assert recent([None, 1., 2.]) is None and trend([1.]*4) == 'has just begun' and trend([1.]*40) in ('stands still', 'falls', 'rises')
    right = sum(trend(list(rng.normal(0, 1, 400))) == 'stands still' for _ in range(200))
    assert right > 160     # of 200 curves of noise around 0; 95% expected

@pytest.mark.parametrize('now, said', [((0.3, 0.1, 30), 'help'), ((-0.3, 0.1, 30), 'hinder'), ((0.05, 0.1, 30), 'neither'), ((-0.05, 0.1, 30), 'neither'), ((0.005, 0.001, 30), 'neither'), (None, 'needs both')])
def test_the_meter_speaks_only_when_sure(now, said): assert said in meter_words(now)

def test_the_meter_names_the_levels():
    snap = full(600)
    spec = cooperation_view(snap)
    assert [s['name'] for s in spec['series']] == ['whole encoder', 'E1, 64 px', 'E2, 32 px', 'E3, 16 px', 'E4, 8 px']
    assert 'agree most at E1' in spec['note'] and 'least at E4' in spec['note'] and 'help' in spec['note']
    plain = replace(snap, history=tuple({k: v for k, v in r.items() if k != 'cosines'} for r in snap.history))
    assert len(cooperation_view(plain)['series']) == 1
    alone = replace(snap, history=tuple({**r, 'cosine': None, 'cosines': None} for r in snap.history))
    assert cooperation_view(alone)['series'] == [] and 'needs both' in cooperation_view(alone)['note']

def test_losses_are_means_of_those_that_were_measured():
    snap = full(500)
    named = {s['name']: s for s in losses_view(snap)['series'] if s['name']}
    known = [r['seg_loss'] for r in snap.history if r['seg_loss'] is not None]
    assert named['segmenter']['points'][-1] == [500, pytest.approx(np.mean(known[-10:]), abs=1e-4)]

def test_markers_of_one_step_stand_together():
    assert markers(full()) == [dict(x=5, text='lr 0.2 → 0.1'), dict(x=9, text='label_noise 0 → 0.8; agents both → segmenter')]
    assert markers(full(), ('lr',)) == [dict(x=5, text='lr 0.2 → 0.1')]

def test_switches_are_told_cell_by_cell():
    levels = {16: [4, 2], 32: [2, 1]}
    assert describe((3, 'switches', [[True, False], [True, True]], [[True, True], [False, True]]), levels) == 'attention 16 px +E2, 32 px −E1'

def test_calm_compares_before_and_after():
    rows = tuple(dict(step=k, top1=0.6 if k < 9 else 0.4, lesion_miou=0.3, cosine=None) for k in range(1, 20))
    note = calm_view(replace(full(), history=rows))['note']
    assert 'from 0.00 to 0.80 at step 9' in note and 'Top-1 0.40 → 0.40' in note and 'lesion mIoU 0.30 → 0.30' in note
    assert 'Top-1 0.60 → 0.40' in calm_view(replace(full(), history=rows, changes=((8, 'label_noise', 0., 0.8),)))['note']

def cells(html): return [[re.sub('<[^>]*>', '', c) for c in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row)] for row in re.findall(r'<tr>(.*?)</tr>', html)]

def test_confusion_says_every_count():
    snap = full()
    rows = cells(confusion_view(snap))[1:]
    assert [[int(c) for c in row[1:6]] for row in rows] == snap.confusion.tolist() and [int(r[6]) for r in rows] == snap.confusion.sum(1).tolist()

def test_the_last_two_runs_get_a_difference():
    a, b = full().runs
    a, b = replace(a, scores={**scores, 'lesion_miou': 0.31}), replace(b, scores={**scores, 'lesion_miou': 0.25, 'top1': None})
    rows = {r[0]: r[1:] for r in cells(runs_table([a, b]))}
    assert rows['lr'] == ['0.1', '0.2', ''] and rows['last lesion mIoU'] == ['0.31', '0.25', '−0.06'] and rows['last Top-1'] == ['0.62', '–', '']
    assert '<b>0.31</b>' in runs_table([a, b]) and '<b>0.25</b>' not in runs_table([a, b])

def test_this_run_stands_last():
    rows = cells(runs_view(full(n_runs=9)))
    assert rows[0] == ['setting or score', 'run 5', 'run 6', 'run 7', 'run 8', 'run 9', 'run 10', 'run 10 − run 9']
    spec = race_view(full(n_runs=2))
    assert [s['name'] for s in spec['series']] == ['run 1', 'run 2', 'run 3'] and 'At step 100, which all have reached, run 3 leads' in spec['note']

def test_noise_counts_who_is_fooled():
    study = noise()
    wrong = [(t, g, s) for t, g, s in zip(study.true, study.given, study.said) if t != g]
    text = noise_words(study)
    assert f"the {len(wrong)} with a wrong label" in text and f'truth for {sum(t == s for t, g, s in wrong)}, what it was taught for {sum(g == s for t, g, s in wrong)}' in text
    assert 'moderate is most often something else' in text and '512 of 800' in text

def test_attention_names_what_matters_most():
    study = attention()
    k, i = np.argwhere(study.effect == np.nanmax(study.effect))[0]
    assert f'E{i + 1} ({study.sizes[i]} px) in the decoder at {study.levels[k]} px' in attention_words(study)
    assert 'No switch' in attention_words(replace(study, effect=np.full((3, 4), np.nan)))
    assert 'reads no' in attention_words(replace(study, possible=np.zeros((3, 4), bool)))

@pytest.mark.parametrize('top1, majority, said', [(0.62, 0.5, '12 points more often'), (0.4, 0.5, '10 points less often'), (0.5, 0.5, 'as often right'), (None, None, 'Nobody grades')])
def test_accuracy_is_compared(top1, majority, said): assert said in scores_view(replace(full(), scores={**scores, 'top1': top1, 'majority': majority}))

# ---- in a browser

light = '--jp-ui-font-color1:rgba(0,0,0,.87);--jp-ui-font-color2:rgba(0,0,0,.54);--jp-border-color2:#e0e0e0;--jp-brand-color1:#1976d2;background:#fff'
dark = '--jp-ui-font-color1:rgba(255,255,255,1);--jp-ui-font-color2:rgba(255,255,255,.7);--jp-border-color2:#424242;--jp-brand-color1:#2196f3;background:#212121'
grounds = dict(light=light, dark=dark, plain='background:#fff;color:#000', night='background:#1e1e1e;color:#ddd')

CONTRAST = '''() => {
  const ctx = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const over = (...layers) => { ctx.clearRect(0, 0, 1, 1); for (const c of layers) { ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1); } return [...ctx.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const lum = rgb => { const [r, g, b] = rgb.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126*r + 0.7152*g + 0.0722*b; };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || el.closest('style')) continue;
    const grounds = []; for (let e = el; e; e = e.parentElement) grounds.unshift(getComputedStyle(e).backgroundColor);
    const back = over(...grounds), front = over(...grounds, getComputedStyle(el).color), [a, b] = [lum(back), lum(front)].sort((x, y) => y - x);
    found.push([(a + 0.05)/(b + 0.05), text]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}'''

@pytest.mark.browser
@pytest.mark.parametrize('ground', grounds)
def test_text_can_be_read_on_every_page(browser, ground):
    "Contrast of every word at least 4.5 (WCAG AA), nothing wider than a box of 420 px but what scrolls by itself, pictures loaded."
    made = ''.join(f'<section class="{v.name}" style="width:420px">{v.make(full())}</section>' for v in VIEWS if isinstance(v.make(full()), str))
    page = browser.new_page(viewport=dict(width=900, height=700))
    asked = []
    page.on('request', lambda r: asked.append(r.url) if not r.url.startswith('data:') else None)
    page.set_content(f'<!doctype html><html><body style="{grounds[ground]}">{made}</body></html>')
    found = page.evaluate(CONTRAST)
    assert len(found) > 150 and found[0][0] >= 4.5, found[:5]
    assert page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth)')
    wide = page.evaluate("[...document.querySelectorAll('section')].filter(s => s.scrollWidth > 421).map(s => s.className)")
    assert wide == [] and asked == []
    page.close()

@pytest.mark.browser
def test_tables_are_announced(browser):
    page = browser.new_page()
    page.set_content(confusion_view(full()))
    assert page.get_by_role('table', name='Held-out eyes at step 300: true grade down, said across').count() == 1
    assert page.get_by_role('rowheader').count() == 5 and page.get_by_role('columnheader').count() == 7
    page.close()
