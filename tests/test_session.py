"""The session: threads and waiting, resets in the middle, failures, photographs that cannot teach both agents, another network, what is watched, two at once."""
import threading, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest, torch

from jointseg_nb import session as room
from jointseg_nb.data import Source, embedded
from jointseg_nb.recipes import recipe
from jointseg_nb.session import Session

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
    session.reset(masks=1000).run()
    assert session.wait().state == 'failed'
    session.set(label_noise=0.5).reset()
    assert (session.recipe.masks, session.recipe.lr_ratio, session.recipe.label_noise) == (0, 2., 0.5)
    is_fresh(session)

def test_what_is_refused_at_once_changes_nothing(source):
    session = Session(SMALL, source)
    session.step()
    for wrong in (dict(valid=-1.), dict(no_such_field=1), dict(size=32, crop=32), dict(crop=60), dict(data='no/such/folder'), dict(device='abacus'), dict(data=None, n_source=2)):
        with pytest.raises(ValueError): session.reset(**wrong)
    assert session.step().step == 2

def test_masks_without_labels(source):
    session = Session(SMALL, without(source, labels=False))
    snap = session.step(2)
    assert 'segmenter trains alone' in snap.remark and snap.values['agents'] == 'segmenter' and set(snap.grades) == {'–'}
    assert all(r['clf_loss'] is None and r['seg_loss'] > 0 for r in snap.history)
    with pytest.raises(ValueError, match='segmenter'): session.set(agents='both')
    assert session.reset().run().wait(timeout=120).state == 'finished'

def test_labels_without_masks(source):
    session = Session(SMALL, without(source, masks=False)).set(agents='segmenter', label_noise=0.5) # before anybody can know
    snap = session.run().wait(timeout=120)
    assert snap.state == 'finished', snap.error
    assert 'classifier trains alone' in snap.remark and snap.values['agents'] == 'classifier' and snap.values['label_noise'] == 0.5
    assert all(r['seg_loss'] is None and r['clf_loss'] > 0 for r in snap.history)
    assert snap.scores['top1'] is not None and snap.scores['miou'] is None

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


def test_apply_keeps_the_old_run_in_the_table(source):
    session = Session(SMALL, source).set(lr_ratio=2.)
    first = session.step(2)
    session.apply(net='small', crop=32, label_noise=0.5)
    runs = session.snapshot.runs
    assert len(runs) == 1 and runs[0].name == 'run 1' and runs[0].step == 2 and runs[0].recipe == SMALL
    assert [r['step'] for r in runs[0].history] == [1, 2] and (0, 'lr_ratio', 0.1, 2.0) in runs[0].changes
    assert np.array_equal(runs[0].frame.masks, first.masks)
    snap = session.step()
    assert snap.step == 1 and snap.masks.shape == (4, 32, 32) and snap.values['lr_ratio'] == 2. and snap.values['label_noise'] == 0.5
    assert snap.recipe.crop == 32 and snap.film[0].step == 0 and len(snap.film) == 2
    session.reset()
    assert 'crop 64 → 32' in session.snapshot.runs[1].differs
    session.reset()   # nothing was done: nothing to keep
    assert len(session.snapshot.runs) == 2

def test_apply_reads_other_photographs_and_goes_back(source, monkeypatch):
    drawn, calls = room.eyes, []
    monkeypatch.setattr(room, 'eyes', lambda n, **k: calls.append(n) or drawn(n, **k))
    session = Session(SMALL, source)
    session.step()
    session.apply(data='embedded', n_source=20)
    assert session.data == 'embedded' and len(session.step().runs) == 1 and len(session.setup.source) == 20 and sum(calls) == 20
    session.apply(lr=0.1).step()
    assert sum(calls) == 20   # not drawn again
    session.apply(data=source)
    assert session.step().data == source.title

def test_out_of_memory_says_what_to_lower(source):
    session = Session(SMALL, source)
    session.step()
    def hungry(): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
    session.setup.trainer.step = hungry
    snap = session.run().wait()
    assert snap.state == 'failed' and 'OutOfMemoryError' in snap.error
    assert all(word in snap.message for word in ('clf_batch', 'clf_accumulate', 'crop', 'net'))
    assert len(snap.history) == 1 and snap.look is not None and session.setup is not None
    session.apply(clf_accumulate=2)
    assert session.step().step == 1 and session.snapshot.runs[0].step == 1

def test_a_burst_of_moves_makes_one_snapshot_and_keeps_the_last(source, monkeypatch):
    made, woken = [], []
    class Counted(room.Snapshot):
        def __new__(cls, *a, **k): made.append(1); return super().__new__(cls)
    session = Session(SMALL, source)
    session.step()
    monkeypatch.setattr(room, 'Snapshot', Counted)
    session._listeners.append(lambda: woken.append(1))
    start = time.monotonic()
    for k in range(1000): session.set(lr_ratio=0.1 + k/1000)
    assert time.monotonic() - start < 1 and not made
    assert session.snapshot.values['lr_ratio'] == 0.1 + 0.999 and len(made) == 1
    assert session.step().changes == ((1, 'lr_ratio', 0.1, 0.1 + 0.999),)

def test_moves_from_many_threads_while_it_trains(source):
    session = Session(replace(SMALL, steps=10000), source).run()
    session.wait(step=1)
    def move(name, values):
        for v in values: session.set(**{name: v})
    movers = [threading.Thread(target=move, args=(name, [k/500 for k in range(500)])) for name in ('label_noise', 'augment')]
    for t in movers: t.start()
    for t in movers: t.join()
    session.wait(step=session.snapshot.step + 2)
    snap, values = session.stop().wait(), session.setup.trainer.values
    assert not snap.waiting and all(snap.values[k] == values[k] == 499/500 for k in ('label_noise', 'augment'))
    assert len(snap.changes) <= 2*snap.step

def test_two_sessions_at_once_are_the_bits_of_each_alone(source):
    other = replace(SMALL, seed=5, lr=0.1)
    def alone(r):
        s = Session(r, source)
        s.step(3); s.set(label_noise=0.5); s.step(3)
        return s.snapshot.history, torch.cat([v.double().flatten() for v in s.setup.trainer.model.state_dict().values()])
    def losses(history): return [(r['clf_loss'], r['seg_loss']) for r in history]
    want = [alone(r) for r in (SMALL, other)]
    both = [Session(r, source).prepare() for r in (SMALL, other)]
    for s in both: s.step(3, wait=False)
    for s in both: s.wait()
    torch.rand(7)   # somebody uses the global generator
    for s in both: s.set(label_noise=0.5).run()
    for s, (history, weights) in zip(both, want):
        snap = s.wait(timeout=120)
        assert losses(snap.history) == losses(history)
        assert torch.equal(torch.cat([v.double().flatten() for v in s.setup.trainer.model.state_dict().values()]), weights)
        assert snap.changes == ((3, 'label_noise', 0.0, 0.5),)

def test_several_steps_are_looked_at_once(source):
    session = Session(SMALL, source).prepare()
    session.wait()
    before = len(session.snapshot.film)
    session._run.looking.least = 1e9
    snap = session.step(4)
    assert snap.step == snap.seen == 4 and snap.state == 'paused' and len(snap.film) == before + 2   # after the first, and at the end

def test_looking_keeps_to_its_share(source, monkeypatch):
    monkeypatch.setattr(room, 'SCORING', 0.05)
    session = Session(replace(SMALL, steps=100000), source, evaluate_every=10**9).prepare()
    session.wait()
    session.watch('attention', 'noise', 'probabilities')
    spent, run = [], session._run
    left = run.looking.__class__.__exit__
    monkeypatch.setattr(run.looking.__class__, '__exit__', lambda pace, *a: (left(pace, *a), spent.append(pace.costs[-1])))
    session.run()
    session.wait(step=session.snapshot.step + 5)
    spent.clear(); start = time.monotonic()
    time.sleep(6)
    took = time.monotonic() - start
    session.stop().wait()
    assert spent and sum(spent)/took < 0.03, (sum(spent), took)

def test_news(source):
    session = Session(SMALL, source)
    snap = session.news(timeout=0)
    assert snap is session.snapshot and session.news(snap, timeout=0.01) is None
    session.set(lr=0.1)
    assert session.news(snap, timeout=0).values['lr'] == 0.1
    assert session.snapshot.seq > snap.seq and session.snapshot.at >= snap.at
