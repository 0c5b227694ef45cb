"""The session and its painter: what a reset in the middle, a failure, or photographs without labels do."""
import threading, time
from dataclasses import replace
from pathlib import Path
import pytest, torch
from jointseg_nb import lab, session as room, views
from jointseg_nb.data import Source, embedded
from jointseg_nb.lab import Painter, live
from jointseg_nb.session import Session
from jointseg_nb.recipes import recipe

SMALL = recipe('pocket', steps=6, clf_batch=4, seg_batch=4, precision='float32')
IDRID = Path(__file__).parents[2]/'shared/data/idrid_original_layout'

@pytest.fixture(scope='module')
def source(): return embedded(30, size=64)

def without(source, labels=True, masks=True):
    "The same photographs, with less known of them."
    return Source(source.images, source.masks if masks else None, labels=source.labels if labels else None)

class Gate:
    "A call that waits in the middle until it is let go, and may then raise."
    def __init__(self, call, error=None): self.call, self.error, self.inside, self.go = call, error, threading.Event(), threading.Event()

    def __call__(self, *args, **kwargs):
        self.inside.set()
        assert self.go.wait(60)
        if self.error: raise self.error
        return self.call(*args, **kwargs)

def until(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, 'it did not come to that'
        time.sleep(0.01)

def is_fresh(session):
    s = session.wait()
    assert (s.state, s.step, s.error, s.history, s.scores) == ('ready', 0, '', (), {}) and session.error is None
    assert session.run().wait(timeout=120).state == 'finished'
    assert [r['step'] for r in session.snapshot.history] == [1, 2, 3, 4, 5, 6]

@pytest.mark.parametrize('error', [None, FloatingPointError('the old run')])
def test_reset_during_a_step(source, error):
    session = Session(SMALL, source)
    session.step()
    gate = session.setup.trainer.step = Gate(session.setup.trainer.step, error)
    session.run()
    assert gate.inside.wait(60)
    session.reset(seed=1)
    gate.go.set()
    is_fresh(session)

@pytest.mark.parametrize('error', [None, RuntimeError('the old run')])
@pytest.mark.parametrize('part', ['set_up', 'show_eyes'])
def test_reset_during_the_build(source, monkeypatch, part, error):
    gate = Gate(getattr(room, part), error)
    monkeypatch.setattr(room, part, gate)
    session = Session(SMALL, source).run()
    assert gate.inside.wait(60)
    monkeypatch.setattr(room, part, gate.call)
    session.reset(seed=1)
    gate.go.set()
    is_fresh(session)
    assert session.recipe.seed == 1

def test_reset_during_the_finish(source, monkeypatch):
    session = Session(replace(SMALL, steps=1), source)
    gate = session._leave = Gate(session._leave)
    session.run()
    assert gate.inside.wait(60)
    session.reset(steps=6)
    gate.go.set()
    is_fresh(session)

def test_reset_while_drawing_eyes(monkeypatch):
    gate = Gate(room.eyes)
    monkeypatch.setattr(room, 'eyes', gate)
    session = Session(SMALL, n_source=60).run()
    assert gate.inside.wait(60)
    session.reset(seed=1)
    gate.go.set()
    is_fresh(session)
    drawn = embedded(60, size=64)
    assert all(torch.equal(getattr(session.setup.source, k), getattr(drawn, k)) for k in ('images', 'masks', 'labels'))
    assert session.setup.source.names == drawn.names

def test_reset_and_stop_in_one(source):
    session = Session(SMALL, source).run()
    session.wait(step=1)
    gate = session.setup.trainer.step = Gate(session.setup.trainer.step)
    assert gate.inside.wait(60)
    session.stop().reset()
    gate.go.set()
    is_fresh(session)

def test_a_step_raises_and_the_snapshot_says_so(source):
    for prepare in (False, True):
        session = Session(SMALL, 'no/such/folder')
        if prepare: session._listeners.append(lambda: None); session.run()
        with pytest.raises((RuntimeError, ValueError), match='is not there'): session.step()
        assert session.snapshot.state == 'failed' and 'is not there' in session.snapshot.error
        with pytest.raises(RuntimeError, match='starts over'): session.step()

def test_an_interrupted_step_can_go_on(source):
    session = Session(SMALL, source)
    session.step()
    step = session.setup.trainer.step
    def interrupted(): raise KeyboardInterrupt
    session.setup.trainer.step = interrupted
    with pytest.raises(KeyboardInterrupt): session.step()
    session.setup.trainer.step = step
    assert session.snapshot.state == 'paused' and session.step().step == 2

def test_what_cannot_be_built_does_not_stick(source):
    session = Session(SMALL, source).set(lr_ratio=2.)
    session.step()
    session.reset(size=32, crop=32).run()
    assert session.wait().state == 'failed'
    session.set(label_noise=0.5).reset()
    assert (session.recipe.size, session.recipe.lr_ratio, session.recipe.label_noise) == (64, 2., 0.5)
    is_fresh(session)

def test_what_is_refused_at_once_changes_nothing(source):
    session = Session(SMALL, source)
    session.step()
    for wrong in (dict(valid=-1), dict(no_such_field=1)):
        with pytest.raises((ValueError, TypeError)): session.reset(**wrong)
    assert session.step().step == 2

def test_a_named_session_that_failed_is_not_found_again(source, tmp_path):
    first = live('failing', recipe=SMALL, source=tmp_path/'eyes')
    assert first.wait().state == 'failed'
    second = live('failing', recipe=SMALL, source=tmp_path/'eyes')
    assert second is not first and second.wait().state == 'failed'
    assert live('works', recipe=SMALL, source=source) is live('works', recipe=SMALL, source=source)
    live('works', recipe=SMALL, source=source).stop().wait()

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

def test_masks_without_labels(source):
    session = Session(SMALL, without(source, labels=False))
    snap = session.step(2)
    assert 'segmenter trains alone' in snap.remark and snap.values['agents'] == 'segmenter' and set(snap.grades) == {'–'}
    assert all(r['clf_loss'] is None and r['seg_loss'] > 0 for r in snap.history)
    with pytest.raises(ValueError, match='segmenter'): session.set(agents='both')
    panel = session.panel()
    panel.knobs['agents'].value = 'both'
    assert 'nothing to learn from' in panel.texts['error'].value and panel.knobs['agents'].value == 'segmenter'
    panel.close()
    assert session.reset().run().wait(timeout=120).state == 'finished'

def test_labels_without_masks(source):
    session = Session(SMALL, without(source, masks=False)).set(agents='segmenter', label_noise=0.5) # before anybody can know
    snap = session.run().wait(timeout=120)
    assert snap.state == 'finished', snap.error
    assert 'classifier trains alone' in snap.remark and snap.values['agents'] == 'classifier' and snap.values['label_noise'] == 0.5
    assert all(r['seg_loss'] is None and r['clf_loss'] > 0 for r in snap.history)
    lab._png(views.eyes_view(snap)); lab._png(lab.curves(snap.history, snap.changes))
    assert 'Top-1' in views.scores_view(snap)

def test_scored_eyes_hold_masks_and_labels(source):
    half = torch.arange(30) < 15
    mixed = Source(source.images, torch.where(half[:, None, None], torch.tensor(255, dtype=torch.uint8), source.masks), has_mask=~half,
                   labels=torch.where(half, source.labels, -1))
    snap = Session(SMALL, mixed, evaluate_every=1).step()
    assert snap.scores['miou'] is not None and snap.scores['top1'] is not None

@pytest.mark.skipif(not IDRID.is_dir(), reason='no IDRiD on this machine')
def test_idrid_as_published():
    session = Session(replace(SMALL, steps=2), IDRID)
    snap = session.run().wait(timeout=120)
    assert snap.state == 'finished', snap.error
    assert 'segmenter trains alone' in snap.remark and snap.values['agents'] == 'segmenter'
