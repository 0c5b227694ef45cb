"""The panel, its painter, knobs, views and duel, without a browser: what a panel that fails does to the others, and what a named session is."""
import html, io, threading, time
from datetime import datetime
from dataclasses import replace
import pytest
import ipywidgets as widgets
from PIL import Image
from jointseg_nb import commands, lab
from jointseg_nb.data import Source, embedded
from jointseg_nb.duel import Duel, Turns, apart
from jointseg_nb.fundus import eyes
from jointseg_nb.knobs import Switches, knob, live_settings, new_settings, place, same, sized
from jointseg_nb.lab import Painter, Panel, Shelf, live
from jointseg_nb.presets import PRESETS
from jointseg_nb.session import Session
from jointseg_nb.snapshots import Snapshot
from jointseg_nb.recipes import RECIPES, recipe
from jointseg_nb.views import View

SMALL = recipe('pocket', steps=6, clf_batch=4, seg_batch=4, precision='float32')

@pytest.fixture(scope='module')
def source(): return embedded(30, size=64)

@pytest.fixture
def panel(source):
    session = Session(SMALL, source)
    made = session.panel()
    session.wait()
    yield made
    made.close()
    session.stop().wait()

def until(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, 'it did not come to that'
        time.sleep(0.01)

# knobs

@pytest.mark.parametrize('setting', live_settings(), ids=lambda s: s.name)
def test_every_live_knob_reaches_the_session(panel, setting):
    w, s = panel.knobs[setting.name], panel.session
    new = dict(agents='segmenter', noise_kind='prior', ratio_on='agent').get(setting.name) or (0.5 if hasattr(w, 'min') and not hasattr(w, 'base') else 1.)
    w.value = new # the browser's state of a choice is an index, so the value is set here
    assert s.snapshot.values[setting.name] == new
    snap = s.step()
    assert [c[1:] for c in snap.changes if c[1] == setting.name][-1][2] == new

@pytest.mark.parametrize('setting', new_settings(), ids=lambda s: s.name)
def test_every_other_setting_has_a_widget_that_takes_its_default(setting):
    w = knob(setting)
    if hasattr(RECIPES['pocket'], setting.name):
        for r in RECIPES.values():
            place(w, getattr(r, setting.name))
            assert w.value == getattr(r, setting.name)
    assert w.description and w.tooltip

def test_a_thousand_moves_lose_no_last_value(panel):
    for i in range(1000): panel.knobs['label_noise'].set_state({'value': (i % 21)/20})
    assert panel.session.snapshot.values['label_noise'] == (999 % 21)/20

def test_two_panels_agree(panel):
    other = panel.session.panel()
    panel.knobs['lr_ratio'].set_state({'value': 10.})
    other.switches.rows[0][1].set_state({'value': False})
    until(lambda: other.knobs['lr_ratio'].value == 10. and not panel.switches.rows[0][1].value)
    other.close()

def test_a_refused_move_is_taken_back(source):
    session = Session(SMALL, Source(source.images, source.masks))
    session.step()
    panel = session.panel()
    panel.knobs['agents'].value = 'both'
    assert 'nothing to learn from' in panel.texts['error'].value and panel.knobs['agents'].value == 'segmenter'
    panel.close()

def test_switches_that_follow_say_nothing():
    moved = []
    gate = Switches([8, 4], {4: [2, 1], 8: [1, 0]}, ((True, True), (True, False)), moved.append)
    gate.place(((True, False), (True, False)))
    assert not moved and gate.value == ((True, False), (True, False)) and gate.rows[1][1].disabled

# the form for a new run

def test_the_form_applies_what_was_changed_and_keeps_the_old_run(panel):
    panel.session.step(2)
    panel.form.fields['seed'].set_state({'value': 7})
    panel.form.fields['seg_batch'].set_state({'value': 2})
    panel.form.button.click()
    s = panel.session
    assert (s.recipe.seed, s.recipe.seg_batch) == (7, 2)
    assert [r.step for r in s.wait().runs] == [2] and s.snapshot.step == 0
    until(lambda: not panel.form.changes)

def test_a_run_under_way_goes_on_after_apply(source):
    session = Session(replace(SMALL, steps=100_000), source)
    panel = session.panel()
    session.run().wait(step=1)
    panel.form.fields['seed'].set_state({'value': 7})
    panel.form.button.click()
    until(lambda: session.snapshot.runs and session.snapshot.step > 0)
    assert session.snapshot.state == 'running'
    session.stop().wait()
    panel.close()

def test_a_preset_goes_on_if_the_run_did(panel):
    panel.preset.value = 'few masks'
    panel.preset_set.click()
    assert panel.session.wait().state == 'ready' and panel.session.recipe.masks == 8
    panel.session.run().wait(step=1)
    panel.preset.value = 'both agents'
    panel.preset_set.click()
    assert panel.session.wait(timeout=120).state == 'finished' and panel.session.recipe.masks == 0

def test_what_cannot_be_is_refused_and_nothing_is_lost(panel):
    panel.session.step()
    panel.form.fields['data'].set_state({'value': 'no/such/folder'})
    panel.form.button.click()
    assert 'is not there' in panel.texts['error'].value and panel.session.snapshot.step == 1
    panel.form.undo.click()
    assert not panel.form.changes and panel.session.step().step == 2

@pytest.mark.parametrize('name', RECIPES)
@pytest.mark.parametrize('size', [32, 48, 96, 224, 500])
def test_sizes_that_are_offered_make_a_recipe(name, size):
    r = replace(RECIPES[name], **sized(RECIPES[name], size))
    assert r.size == size and r.crop % 16 == 0

# presets, and a set-up as a string

@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_is_told_first_and_then_moves_the_knobs(panel, name):
    panel.preset.value = name
    assert panel.texts['preset-line'].value == html.escape(PRESETS[name].look_for) and panel.session.snapshot.preset == ''
    panel.preset_set.click()
    now = panel.session.snapshot
    assert not panel._complaint and now.preset == name
    until(lambda: panel.switches.value == now.values['switches'] and all(same(w, w.value, now.values[k]) for k, w in panel.knobs.items()))

def test_a_string_sets_up_another_panel():
    first = Session(SMALL, n_source=20).set(lr_ratio=3.).panel()
    first.parts[3].head.set_state({'value': True})
    text = first.share.value
    assert text.startswith('js1:') and first.copy.text == text
    second = Session(n_source=20).panel()
    second.load.set_state({'value': text})
    second.load_set.click()
    third = Panel.from_string(text)
    for p in (second, third):
        assert p.session.snapshot.values['lr_ratio'] == 3. and replace(p.session.recipe, lr_ratio=3.) == replace(SMALL, lr_ratio=3.)
        until(lambda: p.knobs['lr_ratio'].value == 3.)
    for p in (first, second, third):
        p.session.stop().wait()
        p.close()

def test_a_string_that_is_none_is_refused(panel):
    panel.session.step()
    panel.load.set_state({'value': 'js1:nonsense'})
    panel.load_set.click()
    assert 'set-up' in panel.texts['error'].value and panel.session.snapshot.step == 1

# views

def counting(name='count', needs=()):
    made = []
    return View(name, name, 'How often?', lambda snap: made.append(snap) or f'{len(made)}', needs), made

def test_only_open_views_are_made():
    (one, made_one), (two, made_two) = counting('one'), counting('two')
    shelf = Shelf((one, two), opened=['one'])
    shelf.paint(Snapshot())
    assert (len(made_one), len(made_two)) == (1, 0)
    shelf.tabs['two'].set_state({'value': True})
    shelf.tabs['one'].set_state({'value': False})
    shelf.paint(Snapshot())
    assert (len(made_one), len(made_two)) == (1, 2) and shelf.body('two').value == '2'

def test_a_view_may_turn_from_words_into_a_chart():
    chart = dict(title='t', x='x', y='y', series=[], markers=[], note='<now>')
    shelf = Shelf((View('v', 'V', '?', lambda snap: chart if snap.step else 'wait'),), opened=['v'])
    shelf.paint(Snapshot())
    assert shelf.body('v').value == 'wait'
    shelf.paint(Snapshot(step=1))
    assert shelf.body('v').spec == chart and '&lt;now&gt;' in shelf.cards['v'].children[-1].value

def test_every_view_can_be_open_at_once(panel):
    for tab in panel.shelf.tabs.values(): tab.set_state({'value': True})
    panel.session.step(2)
    until(lambda: 'step <b>2</b>' in panel.texts['status'].value)
    for v in panel.shelf.views.values():
        body = panel.shelf.body(v.name)
        assert body.spec if hasattr(body, 'spec') else body.value, v.name
        assert 'could not be made' not in getattr(body, 'value', ''), v.name

def test_the_session_studies_what_is_open_in_any_panel(panel):
    s, other = panel.session, panel.session.panel()
    panel.shelf.tabs['attention'].set_state({'value': True})
    other.shelf.tabs['noise'].set_state({'value': True})
    other.eyes.wanted = ['probability:2']
    assert set(s._watched) == {'attention', 'noise', 'probabilities'}
    other.close()
    assert set(s._watched) == {'attention'}
    panel.shelf.tabs['attention'].set_state({'value': False})
    assert not s._watched

def test_what_has_not_changed_is_not_sent(panel, monkeypatch):
    snap, sent = panel.session.step(), []
    panel.paint(snap)
    monkeypatch.setattr(widgets.Widget, 'send_state', lambda self, key=None: sent.append((type(self).__name__, key)))
    panel.paint(snap)
    assert not sent

def photograph(size=300):
    file = io.BytesIO()
    Image.fromarray(eyes(1, seed=9, size=size)[0][0]).save(file, 'JPEG')
    return file.getvalue()

def upload(panel, content, name): panel.upload.value = [dict(name=name, type='image/jpeg', size=len(content), content=memoryview(content), last_modified=datetime.now())]

def test_ones_own_photograph(panel):
    panel.shelf.tabs['photo'].set_state({'value': True})
    panel.session.step()
    upload(panel, photograph(), 'mine.jpg')
    until(lambda: panel.session.snapshot.photo is not None)
    assert panel.session.snapshot.photo.name == 'mine.jpg'
    assert not panel.upload.value # or it would lie in the saved notebook
    until(lambda: 'mine.jpg' in panel.shelf.body('photo').value)
    upload(panel, b'no photograph', 'mine.txt')
    assert 'mine.txt' in panel.texts['error'].value

# the painter

def test_the_painter_survives_a_failing_panel(source):
    session = Session(SMALL, source)
    bad, good = session.panel(), session.panel()
    painted = bad.paint
    def broken(snap): raise OSError('no ink')
    bad.paint = broken
    session.step()
    until(lambda: 'step <b>1</b>' in good.texts['status'].value and 'no ink' in bad.texts['error'].value)
    bad.paint = painted
    session.step()
    until(lambda: 'step <b>2</b>' in good.texts['status'].value and 'step <b>2</b>' in bad.texts['status'].value and not bad.texts['error'].value)
    good.close(); bad.close()

def test_a_painter_whose_panel_is_beyond_words(source):
    session = Session(SMALL, source)
    painter, seen = Painter(session), []
    class Dead:
        def paint(self, snap): raise OSError
    class Alive:
        def paint(self, snap): seen.append(snap.step)
    painter.panels += [Dead(), Alive()]
    session._listeners.append(painter.wake)
    session.step(2)
    until(lambda: 2 in seen)
    assert [type(p) for p in painter.panels] == [Alive]
    painter.panels.clear()
    until(lambda: painter.thread is None)

def test_a_painter_that_ends_badly_makes_room_for_another(source):
    painter = Painter(Session(SMALL, source))
    class Worst:
        def paint(self, snap): raise SystemExit
    painter.panels.append(Worst())
    painter.thread = threading.current_thread()
    with pytest.raises(SystemExit): painter.work()
    assert painter.thread is None

def test_the_fifth_panel_closes_the_first(source):
    session = Session(SMALL, source)
    panels = [session.panel() for _ in range(5)]
    assert [p.comm is None for p in panels] == [True] + [False]*4
    for p in panels: p.close()
    session.stop().wait()

# a session with a name

def test_a_named_session_that_failed_is_not_found_again(source, tmp_path):
    first = live('failing', recipe=SMALL, source=tmp_path/'eyes', folder=None)
    assert first.wait().state == 'failed'
    second = live('failing', recipe=SMALL, source=tmp_path/'eyes', folder=None)
    assert second is not first and second.wait().state == 'failed'
    works = dict(recipe=SMALL, source=source, folder=None)
    assert live('works', **works) is live('works', **works)
    live('works', **works).stop().wait()

def test_a_named_session_goes_on_in_another_kernel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = dict(recipe=replace(SMALL, steps=1000), n_source=20)
    first = live('kept', **asked)
    first.wait(step=2)
    first.pause().wait()
    done = first.set(lr_ratio=3.).step().step
    first.stop().wait()
    monkeypatch.setattr(lab, '_SESSIONS', {}) # what a new kernel knows
    second = live('kept', **asked)
    assert second is not first
    snap = second.wait(step=done + 1)
    assert snap.values['lr_ratio'] == 3. and snap.history[0]['step'] == 1 and (tmp_path/'runs'/'lab'/'kept').is_dir()
    second.stop().wait()

def test_the_folder_is_not_nested(tmp_path, monkeypatch):
    (tmp_path/'runs'/'lab').mkdir(parents=True)
    for here in (tmp_path, tmp_path/'runs'/'lab'):
        monkeypatch.chdir(here)
        assert lab.lab_folder('x') == tmp_path/'runs'/'lab'/'x'

# two sessions side by side

@pytest.fixture
def duel(source):
    a = Session(replace(SMALL, steps=8), source)
    made = Duel(a, a.rival(lr_ratio=3.))
    yield made
    made.close()
    for s in made.sessions: s.stop().wait()

def test_what_is_different_is_not_linked(duel):
    a, b = duel.sessions
    assert apart(a, b) == dict(lr_ratio=(0.1, 3.)) and 'lr ratio 0.1 / 3' in duel.said.value
    assert not duel.links['lr_ratio'].value and all(t.value for n, t in duel.links.items() if n != 'lr_ratio')

def test_linked_knobs_move_both_and_the_rest_one(duel):
    one, two = duel.panels
    one.knobs['lr'].set_state({'value': 0.1})
    two.switches.rows[0][0].set_state({'value': False})
    one.knobs['lr_ratio'].set_state({'value': 10.})
    a, b = (s.snapshot.values for s in duel.sessions)
    assert a['lr'] == b['lr'] == 0.1 and a['switches'] == b['switches'] and not a['switches'][0][0]
    assert (a['lr_ratio'], b['lr_ratio']) == (10., 3.)
    duel.links['lr'].set_state({'value': False})
    two.knobs['lr'].set_state({'value': 0.01})
    assert [s.snapshot.values['lr'] for s in duel.sessions] == [0.1, 0.01]

def test_in_turn_they_end_together(duel):
    duel.turns.few = 3
    duel.how.value = 'in turn'
    duel.buttons['run'].click()
    duel.turns.thread.join(120)
    assert [s.snapshot.step for s in duel.sessions] == [8, 8] and duel.turns.error is None
    until(lambda: 'B − A' in duel.table.value and '8' in duel.table.value)

def test_at_once_both_run_and_rest(duel):
    duel.buttons['run'].click()
    until(lambda: all(s.snapshot.step > 0 for s in duel.sessions))
    duel.buttons['pause'].click()
    states = [s.wait().state for s in duel.sessions]
    assert all(x in ('paused', 'finished') for x in states)
    duel.buttons['reset'].click()
    assert [s.wait().step for s in duel.sessions] == [0, 0]

def test_two_sessions_do_not_mix(source):
    alone = Session(SMALL, source)
    alone.step(4)
    a = Session(SMALL, source)
    turns = Turns((a, a.rival(lr_ratio=3., seed=5)), few=1)
    turns.run()
    turns.thread.join(120)
    rows = lambda s: [(r['clf_loss'], r['seg_loss']) for r in s.snapshot.history[:4]]
    assert rows(a) == rows(alone) != rows(turns.sessions[1])

def test_a_failure_in_a_turn_is_kept(source):
    a = Session(SMALL, source)
    b = Session(SMALL, 'no/such/folder')
    turns = Turns((a, b), few=1)
    turns.run()
    turns.thread.join(60)
    assert not turns.running and 'is not there' in str(turns.error) and b.snapshot.state == 'failed'

def test_in_turn_runs_of_different_lengths_both_end(source):
    a = Session(replace(SMALL, steps=4), source)
    turns, asked, step = Turns((a, a.rival(steps=11)), few=2), [], a.step
    a.step = lambda n: asked.append(n) or step(n)
    turns.run()
    turns.thread.join(60)
    assert not turns.running and [s.snapshot.step for s in turns.sessions] == [4, 11] and asked == [2, 2]

def test_why_the_turns_ended_is_said_until_they_begin_again(duel):
    broken, step = duel.sessions[1], duel.sessions[1].step
    def fails(n): raise RuntimeError('no <more>')
    broken.step, duel.how.value = fails, 'in turn'
    duel.buttons['run'].click()
    duel.turns.thread.join(60)
    assert 'the turns ended: RuntimeError: no &lt;more&gt;' in duel.said.value and 'lr ratio 0.1 / 3' in duel.said.value
    broken.step = step
    duel.buttons['run'].click()
    duel.turns.thread.join(120)
    assert [s.snapshot.step for s in duel.sessions] == [8, 8] and 'the turns ended' not in duel.said.value

def test_a_duel_that_is_taken_away_in_the_middle_of_a_turn(duel):
    duel.how.value = 'in turn'
    duel.buttons['run'].click()
    until(lambda: all(s.snapshot.step > 0 for s in duel.sessions))
    duel.close()
    duel.turns.thread.join(60)
    assert duel.turns.error is None and not duel.turns.running

# the command

def options(*words): return commands.lab_parser().parse_args(words)

@pytest.mark.parametrize('words, says', [(('--setup', 'js1:x', '--recipe', 'pocket'), 'do not go together'), (('--setup', 'hello'), 'set-up'), (('--recipe', 'huge'), 'huge'), (('--data', 'nowhere'), "data='nowhere' is not there")])
def test_what_the_command_refuses(words, says):
    with pytest.raises(ValueError, match=says): commands.check_lab(options(*words))

def test_where_the_command_finds_photographs(tmp_path):
    (tmp_path/'retinamnist.npz').touch()
    for place in (tmp_path, tmp_path/'retinamnist.npz', 'embedded'): commands.check_lab(options('--data', str(place)))
    assert 'source=' in commands.live_cell(str(tmp_path)) and 'source=' not in commands.live_cell('embedded')

def test_the_app_wants_voila(monkeypatch):
    found = commands.importlib.util.find_spec
    monkeypatch.setattr(commands.importlib.util, 'find_spec', lambda name: None if name == 'voila' else found(name))
    with pytest.raises(ValueError, match=r'jointseg_nb\[app\]'): commands.check_lab(options('--app'))
    commands.check_lab(options())

@pytest.mark.parametrize('given', [{}, dict(setup='js1:abc'), dict(recipe='paper', name='app'), dict(recipe='my.json', data='eyes', label='grade')])
def test_the_first_cell_is_python(given):
    compile(commands.live_cell(**given), 'cell', 'exec')
    assert ("'app'" in commands.live_cell(**given)) == ('name' in given)
