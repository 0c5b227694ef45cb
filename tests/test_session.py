"""The session: threads and waiting, resets in the middle, failures, photographs that cannot teach both agents, another network, what is watched, two at once."""
import json, os, signal, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest, torch

from jointseg_nb import session as session_room, training as room
from jointseg_nb.data import Source, embedded
from jointseg_nb.evaluate import load_model
from jointseg_nb.keeping import FolderBusy, Keeper
from jointseg_nb.looks import noise_study
from jointseg_nb.presets import PRESETS, read_setup, setup_string
from jointseg_nb.recipes import recipe
from jointseg_nb.runs import Run, read_history
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

def test_a_set_that_is_one_file(tmp_path):
    file = tmp_path/'retinamnist.npz'
    np.savez(file, train_images=np.random.default_rng(0).integers(0, 255, (40, 28, 28, 3), np.uint8), train_labels=np.arange(40)[:, None] % 5)
    session = Session(recipe('pocket', size=32, crop=32, steps=6, clf_batch=4, seg_batch=4), n_source=10).apply(data=str(file))
    snap = session.step()
    assert snap.step == 1 and 'classifier trains alone' in snap.remark and read_setup(session.to_string())['data'] == str(file)
    (tmp_path/'eyes.zip').touch()
    with pytest.raises(ValueError, match='no data set'): session.apply(data=tmp_path/'eyes.zip')


def test_apply_keeps_the_old_run_in_the_table(source):
    session = Session(SMALL, source).set(lr_ratio=2.)
    first = session.step(2)
    session.apply(net='small', crop=32, label_noise=0.5)
    runs = session.snapshot.runs
    assert len(runs) == 1 and runs[0].name == 'run 1' and runs[0].step == 2 and runs[0].recipe == SMALL
    assert [r['step'] for r in runs[0].history] == [1, 2] and (0, 'lr_ratio', 0.1, 2.0) in runs[0].changes
    snap = session.step()
    assert snap.step == 1 and snap.masks.shape == (4, 32, 32) and snap.values['lr_ratio'] == 2. and snap.values['label_noise'] == 0.5
    assert snap.recipe.crop == 32 and snap.film[0].step == 0 and len(snap.film) == 2
    session.reset()
    assert [r.recipe.crop for r in session.snapshot.runs[:2]] == [64, 32]
    session.reset()   # nothing was done: nothing to keep
    assert len(session.snapshot.runs) == 2

def test_apply_reads_other_photographs_and_goes_back(source, monkeypatch):
    drawn, calls = room.eyes, []
    monkeypatch.setattr(room, 'eyes', lambda n, **k: calls.append(n) or drawn(n, **k))
    session = Session(SMALL, source)
    session.step()
    session.apply(data='embedded', n_source=20)
    assert session.given.words == 'embedded' and len(session.step().runs) == 1 and len(session.setup.source) == 20 and sum(calls) == 20
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
    for k in range(1000): session.set(lr_ratio=0.1 + k/1000)
    assert not made
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

def test_news(source):
    session = Session(SMALL, source)
    snap = session.news(timeout=0)
    assert snap is session.snapshot and session.news(snap, timeout=0.01) is None
    session.set(lr=0.1)
    assert session.news(snap, timeout=0).values['lr'] == 0.1
    assert session.snapshot.seq > snap.seq and session.snapshot.at >= snap.at


# -- presets and strings

PLAIN = dict(moved={'encoder', 'classifier', 'decoder'}, ratio=0.1, noise='none', gates=6, masks=24, update='alternating', anew=False)
DOES = {
    'both agents': {},
    'no classifier': dict(moved={'encoder', 'decoder'}),
    'no segmenter': dict(moved={'encoder', 'classifier'}),
    '80% random labels': dict(noise='uniform'),
    '80% labels as frequent': dict(noise='prior'),
    'no attention': dict(gates=0),
    'same size only': dict(gates=3),
    'ratio 1': dict(ratio=1.),
    'ratio 30': dict(ratio=30.),
    'ratio 1/30': dict(ratio=0.0333),
    'few masks': dict(masks=8, anew=True),
    'few masks, no classifier': dict(moved={'encoder', 'decoder'}, masks=8, anew=True),
    'at the same time': dict(update='simultaneous', anew=True),
}

def weights(session): return {k: v.clone() for k, v in session.setup.trainer.model.named_parameters()}

def seen_to_happen(session):
    "One step, and what can be told of it from the network, the streams and the labels, not from the settings."
    if session.setup is None: session.prepare().wait()
    before, runs = weights(session), len(session.snapshot.runs)
    snap, t = session.step(), session.setup.trainer
    noise, r = noise_study(t, session.setup.source), snap.rates
    return dict(moved={k.split('.')[0] for k, v in weights(session).items() if not torch.equal(v, before[k])}, ratio=round(r['clf_M']/r['seg_M'], 4), gates=int(t.model.switches.sum()),
                noise=noise.kind if noise and noise.n_wrong else 'none', masks=len(t.streams['seg'].indices), update=t.recipe.update, anew=runs > 0)

@pytest.mark.parametrize('name', PRESETS)
def test_what_a_preset_does(source, name):
    session = Session(SMALL, source)
    session.step()
    session.preset(name)
    assert session.snapshot.preset == name and session.snapshot.step == (0 if DOES[name].get('anew') else 1)
    assert seen_to_happen(session) == PLAIN | DOES[name]
    session.preset('both agents')
    assert session.recipe == SMALL and seen_to_happen(session) | dict(anew=False) == PLAIN
    session.set(lr=0.1)
    assert session.snapshot.preset == ''

def test_a_set_up_goes_through_a_word(source):
    one = Session(SMALL, source, n_eyes=2).set(lr_ratio=3., noise_kind='prior', switches=[[0, 0, 1, 0], [0]*4, [1, 0, 0, 0]])
    for text in (one.to_string(), one.setup_json):
        two = Session.from_string(text, source=source)
        assert two.snapshot.values == one.snapshot.values and two.given.n_eyes == 2
        assert two.recipe == replace(SMALL, lr_ratio=3., noise_kind='prior')
    assert len(one.to_string()) < 300
    other = Session(replace(SMALL, seed=9))
    other.load(Session(recipe('pocket', lr=0.01), n_source=50).to_string())
    assert other.recipe == recipe('pocket', lr=0.01) and other.given.n_source == 50
    before = other.snapshot
    for bad in ('', 'js1:', 'js1:!!', 'nonsense', setup_string('[1]'), setup_string('{'), setup_string(json.dumps(dict(format=1, recipe='pocket', changes=dict(crop=60)))), 'js1:' + 'A'*30000):
        with pytest.raises(ValueError): other.load(bad)
    assert other.snapshot is before

def test_a_word_that_unpacks_without_end_is_refused():
    with pytest.raises(ValueError, match='cut off or was altered'): read_setup(setup_string('{"a": "' + 'b'*10**7 + '"}'))

# -- kept in a folder

KEPT = replace(SMALL, steps=100000)
PROCESS = '''
import sys
from dataclasses import replace
from jointseg_nb import session as session_room, training as room
from jointseg_nb.data import embedded
from jointseg_nb.recipes import recipe
from jointseg_nb.session import Session
room.EVERY, room.KEEPING = 0.2, 0.9
r = recipe('pocket', steps=100000, clf_batch=4, seg_batch=4, precision='float32')
s = Session(r, embedded(30, size=64), folder=sys.argv[1])
'''

def process(folder, code, **how):
    "A process of its own with a session on the folder."
    torch.set_num_threads(1)
    return subprocess.Popen([sys.executable, '-c', PROCESS + code, str(folder)], stdout=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'), **how)

def state(session):
    return torch.cat([v.double().flatten() for v in session.setup.trainer.model.state_dict().values()])

def test_another_process_goes_on_bit_for_bit(source, tmp_path):
    p = process(tmp_path/'lab', "s.step(3); s.set(label_noise=0.5, noise_kind='prior'); s.step(2); s.set(lr=0.1)")
    assert p.wait(120) == 0
    session = Session(KEPT, source, folder=tmp_path/'lab')
    there = session.prepare().wait()
    assert (there.state, there.step, there.saved, len(there.history), there.film[0].step, there.film[-1].step) == ('paused', 5, 5, 5, 0, 5)
    assert there.waiting == ('lr',) and there.values['lr'] == 0.1 and there.changes == ((3, 'label_noise', 0.0, 0.5), (3, 'noise_kind', 'uniform', 'prior'))
    session.step(3)
    plain = Session(KEPT, source)
    plain.step(3); plain.set(label_noise=0.5, noise_kind='prior'); plain.step(2); plain.set(lr=0.1); plain.step(3)
    strip = lambda snap: [(r['step'], r['clf_loss'], r['seg_loss'], r['cosine']) for r in snap.history]
    assert strip(session.snapshot) == strip(plain.snapshot) and torch.equal(state(session), state(plain))
    assert session.snapshot.film[0].step == 0 and np.array_equal(session.snapshot.masks, plain.snapshot.masks)
    session.release()

@pytest.mark.parametrize('run', ['s.run()', 'from jointseg_nb.duel import Turns; Turns((s, s.rival(lr_ratio=3.))).run()'])
def test_the_interpreter_ends_in_peace_and_loses_no_step(source, tmp_path, run):
    p = process(tmp_path/'lab', run + '\nwhile s.snapshot.step < 3: s.news(s.snapshot)\nprint(s.snapshot.step)', stderr=subprocess.PIPE)
    out, err = p.communicate(timeout=120)
    assert (p.returncode, err) == (0, '')
    session = Session(KEPT, source, folder=tmp_path/'lab')
    assert session.prepare().wait().step >= int(out)
    session.release()

@pytest.mark.parametrize('after', [0.5, 1.1])
def test_a_kill_loses_seconds_and_nothing_else(source, tmp_path, after):
    folder = tmp_path/'lab'
    p = process(folder, "s.run(); s.wait(step=2); print('go', flush=True); s.wait(timeout=100)")
    assert p.stdout.readline() == 'go\n'
    time.sleep(after)
    until(lambda: list(folder.glob('run-0001/checkpoints/step-*.json')))
    p.send_signal(signal.SIGKILL); p.wait()
    session = Session(KEPT, source, folder=folder)
    there = session.prepare().wait()
    assert there.state == 'paused' and there.step >= 1 and there.step == there.saved and there.remark == ''
    plain = Session(KEPT, source)
    plain.step(there.step)
    assert torch.equal(state(session), state(plain)) and len(there.history) == there.step
    assert sum(1 for _ in open(folder/'run-0001/history.csv')) == there.step + 1
    session.release()

def test_a_busy_folder_is_refused_and_a_free_one_is_not(source, tmp_path):
    p = process(tmp_path/'lab', "s.step(); print('go', flush=True); import time; time.sleep(100)")
    try:
        assert p.stdout.readline() == 'go\n'
        with pytest.raises(FolderBusy, match='another process is at work'): Session(KEPT, source, folder=tmp_path/'lab')
    finally: p.kill(); p.wait()
    session = Session(KEPT, source, folder=tmp_path/'lab')
    assert session.prepare().wait().step == 1
    session.release()

def test_the_same_cell_again_goes_on(source, tmp_path):
    first = Session(KEPT, source, folder=tmp_path/'lab').run()
    first.wait(step=2)
    second = Session(KEPT, source, folder=tmp_path/'lab')
    done = first.snapshot.step
    assert first.snapshot.state == 'stopped' and 'not kept' in first.snapshot.remark
    assert second.step().step == done + 1
    first.step()   # it can still be played with
    assert second.snapshot.saved == done + 1
    second.release()

def test_another_recipe_begins_beside_and_the_first_is_found_again(source, tmp_path):
    folder = tmp_path/'lab'
    one = Session(KEPT, source, folder=folder)
    one.step(2)
    one.apply(lr=0.1).step(3)
    two = Session(replace(KEPT, seed=7), source, folder=folder)
    assert two.step().step == 1 and [r.step for r in two.snapshot.runs] == [2, 3]
    assert sorted(p.name for p in folder.glob('run-*')) == ['run-0001', 'run-0002', 'run-0003']
    again = Session(KEPT, source, folder=folder).prepare()
    assert again.wait().step == 3 and again.recipe.lr == 0.1
    any_run = Session(None, source, folder=folder).prepare()   # no recipe: the newest, whatever it is
    assert any_run.wait().step == 1 and any_run.recipe.seed == 7
    any_run.release()

def test_a_foreign_folder_is_left_alone(source, tmp_path):
    (tmp_path/'thesis.tex').write_text('...')
    session = Session(KEPT, source, folder=tmp_path).run()
    snap = session.wait()
    assert snap.state == 'failed' and "no session's" in snap.error and [p.name for p in tmp_path.iterdir()] == ['thesis.tex']

@pytest.mark.parametrize('spoil', ['tensors', 'json', 'recipe', 'photographs'])
def test_what_cannot_be_gone_on_with_stays_and_a_new_run_begins(source, tmp_path, spoil):
    folder = tmp_path/'lab'
    first = Session(KEPT, source, folder=folder)
    first.step(2); first.release()
    states = folder/'run-0001/checkpoints'
    if spoil == 'tensors':
        for f in states.glob('*.safetensors'): f.write_bytes(f.read_bytes()[:-100])
    elif spoil == 'json':
        for f in states.glob('*.json'): f.write_text('{')
    elif spoil == 'recipe': (folder/'run-0001/recipe.json').write_text('{')
    before = {f: f.read_bytes() for f in states.iterdir()}
    other = embedded(31, size=64).subset(range(1, 31), title=source.title) if spoil == 'photographs' else source
    session = Session(KEPT, other, folder=folder)
    snap = session.step()
    assert snap.step == 1 and snap.saved == 1 and 'a new run begins' in snap.remark
    assert {f: f.read_bytes() for f in before} == before and (folder/'run-0002/checkpoints').is_dir()
    session.release()

def test_a_full_disk_is_said_and_the_training_goes_on(source, tmp_path, monkeypatch):
    session = Session(KEPT, source, folder=tmp_path/'lab')
    session.step()
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(session._run.place.__class__, 'save', full)
    snap = session.step(2)
    assert snap.step == 3 and snap.saved == 1 and 'not kept since step 1' in snap.remark and 'No space left' in snap.remark
    monkeypatch.undo()
    assert session.step().saved == 4
    assert [r['step'] for r in read_history(tmp_path/'lab/run-0001')] == [1, 2, 3, 4]
    session.release()

def test_a_network_that_cannot_be_saved_by_itself_is_said(source, tmp_path, monkeypatch):
    session = Session(KEPT, source, folder=tmp_path/'lab')
    session.step()
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(session.setup.trainer.model.__class__, 'save', full)
    snap = session.step()
    assert (snap.state, snap.saved) == ('paused', 2) and 'No space left' in snap.remark
    monkeypatch.undo()
    session.step(0)
    assert torch.equal(load_model(tmp_path/'lab/run-0001').state_dict()['decoder.head.bias'], session.setup.trainer.model.state_dict()['decoder.head.bias'])
    session.release()

def test_a_kept_run_is_a_run_folder(source, tmp_path):
    session = Session(SMALL, source, folder=tmp_path/'lab')
    session.run().wait(timeout=120)
    run = tmp_path/'lab/run-0001'
    assert load_model(run).config == session.setup.trainer.model.config
    assert [r['step'] for r in read_history(run)] == [1, 2, 3, 4, 5, 6]
    session.release()


# -- a run that is replaced: kept to its last step, with nothing of the next one

def written(session): session._keeper.hand.submit(lambda: None).result(60)

def is_kept(path, step, session):
    "A run folder holds everything up to this step, and so does the table."
    checkpoint, told = Run(path, resume=True).latest(), json.loads((path/'summary.json').read_text())
    lab = json.loads(checkpoint['state']['lab'])
    assert checkpoint['step'] == told['step'] == step and [p.stem for p in (path/'checkpoints').glob('*.json')] == [f'step-{step:08d}']
    assert [[int(r['step']) for r in rows] for rows in (lab['rows'], told['history'], read_history(path))] == [[*range(1, step + 1)]]*3
    assert checkpoint['recipe'] == told['recipe'] and lab['values']['lr'] == checkpoint['state']['trainer']['values']['lr']
    saved = load_model(path).state_dict()
    assert all(torch.equal(saved[k], v) for k, v in checkpoint['state']['trainer']['model'].items())
    assert [(r.step, r.recipe.lr, len(r.history)) for r in session.snapshot.runs if r.name == told['name']] == [(step, told['recipe']['lr'], step)]

def in_a_step(session):
    "The session, in the middle of a step; the gate that lets it go on."
    gate = session.setup.trainer.step = Gate(session.setup.trainer.step)
    session.run()
    assert gate.inside.wait(60)
    return gate

REPLACED = dict(apply=lambda s: s.apply(lr=0.01), reset=lambda s: s.reset(seed=1), preset=lambda s: s.preset('few masks'), load=lambda s: s.load(Session(recipe('pocket', lr=0.01), n_source=50).to_string()))

@pytest.mark.parametrize('due', [False, True])
@pytest.mark.parametrize('way', REPLACED)
def test_replaced_during_a_step_it_is_kept_to_that_step(source, tmp_path, way, due):
    session = Session(KEPT, source, folder=tmp_path/'lab')
    session.step(2)
    old, gate = session._run, in_a_step(session)
    REPLACED[way](session)
    if due: old.keeping.forget()
    gate.go.set()
    until(lambda: session.snapshot.runs[0].step == 3)
    session.stop().wait()
    written(session)
    is_kept(tmp_path/'lab/run-0001', 3, session)
    assert session.recipe != KEPT and session.snapshot.step == 0
    session.release()

@pytest.mark.parametrize('wait', [0, 1, 7])
def test_replaced_while_it_trains_it_is_kept_to_its_last_step(source, tmp_path, wait):
    session = Session(KEPT, source, folder=tmp_path/'lab').run()
    session.wait(step=wait + 1)
    trainer = session.setup.trainer
    session.apply(lr=0.01).run().wait(step=2)
    session.apply(seed=1).stop().wait()
    written(session)
    is_kept(tmp_path/'lab/run-0001', trainer.step_done, session)
    is_kept(tmp_path/'lab/run-0002', session.snapshot.runs[1].step, session)
    assert trainer.step_done > wait
    session.release()

def test_who_replaces_a_run_waits_neither_for_its_step_nor_for_the_disk(source, tmp_path, monkeypatch):
    session = Session(KEPT, source, folder=tmp_path/'lab')
    session.step(2)
    slow = Gate(Keeper.write)
    monkeypatch.setattr(Keeper, 'write', lambda *args: slow(*args))
    gate = in_a_step(session)
    session.apply(lr=0.01)   # the step is still under way
    gate.go.set()
    assert slow.inside.wait(60)
    session.apply(seed=1).run().wait(step=1)   # the disk is still busy, and the next training begins
    slow.go.set()
    session.stop().wait()
    written(session)
    is_kept(tmp_path/'lab/run-0001', 3, session)
    session.release()

def test_a_folder_that_is_taken_meanwhile_holds_the_last_step(source, tmp_path):
    first = Session(KEPT, source, folder=tmp_path/'lab')
    first.step(2)
    gate = in_a_step(first)
    first.apply(lr=0.01)
    threading.Timer(0.2, gate.go.set).start()
    second = Session(KEPT, source, folder=tmp_path/'lab')
    is_kept(tmp_path/'lab/run-0001', 3, first)
    assert second.prepare().wait().step == 3 and second.recipe == KEPT   # the other run never had a network
    first.apply(seed=1).step()
    second.release()

def test_an_interrupted_step_is_kept_by_who_replaces_the_run(source, tmp_path):
    session = Session(KEPT, source, folder=tmp_path/'lab')
    session.step()
    step = session.setup.trainer.step
    def interrupted():
        if session.snapshot.step == 3: raise KeyboardInterrupt
        return step()
    session.setup.trainer.step = interrupted
    with pytest.raises(KeyboardInterrupt): session.step(5)
    assert session.snapshot.saved == 1
    session.apply(lr=0.01)
    assert session._thread is None and session.setup is None   # nobody asked for the next one yet
    written(session)
    is_kept(tmp_path/'lab/run-0001', 3, session)
    session.release()

def test_a_step_in_this_cell_is_kept_when_another_thread_replaces_the_run(source, tmp_path):
    session = Session(KEPT, source, folder=tmp_path/'lab')
    session.step(2)
    step = session.setup.trainer.step
    def replaced():
        other = threading.Thread(target=session.apply, kwargs=dict(lr=0.01))
        other.start(); other.join(60)
        return step()
    session.setup.trainer.step = replaced
    assert session.step(5).step == 0
    written(session)
    is_kept(tmp_path/'lab/run-0001', 3, session)
    session.release()

@pytest.mark.parametrize('alone', [True, False])
def test_half_a_step_is_not_kept(source, tmp_path, alone):
    "The checkpoint before stays; the network by itself, if it is there, stays that of this checkpoint."
    session, path = Session(KEPT, source, folder=tmp_path/'lab'), tmp_path/'lab/run-0001'
    session.step(2)
    if not alone: session._run.network = (path/'model.safetensors').unlink()
    gate = in_a_step(session)
    gate.error = FloatingPointError('the old run')
    session.apply(lr=0.01)
    gate.go.set()
    session.stop().wait()
    written(session)
    assert session.error is None and (path/'model.safetensors').exists() == alone
    if alone: is_kept(path, 2, session)
    assert Run(path, resume=True).latest()['step'] == json.loads((path/'summary.json').read_text())['step'] == 2
    session.release()

def test_knobs_of_a_replaced_run_stay_its_own(source, tmp_path):
    session = Session(KEPT, source, folder=tmp_path/'lab')
    session.step(2)
    hold = threading.Event()
    session._keeper.hand.submit(hold.wait, 60)
    session.set(lr_ratio=3.).apply().set(lr_ratio=5.)
    hold.set()
    written(session)
    knobs = json.loads((tmp_path/'lab/run-0001/knobs.json').read_text())
    assert (knobs['step'], knobs['values']['lr_ratio']) == (2, 3.)
    session.release()

def test_that_a_replaced_run_could_not_be_kept_is_said(source, tmp_path, monkeypatch):
    session = Session(KEPT, source, folder=tmp_path/'lab')
    session.step(2)
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Run, 'save', full)
    gate = in_a_step(session)
    session.apply(lr=0.01)
    gate.go.set()
    until(lambda: session.snapshot.remark == "the run before is not kept since step 2: [Errno 28] No space left on device")
    monkeypatch.undo()
    session.stop().wait()
    assert 'the run before' in session.step().remark and session.snapshot.saved == 1
    session.release()

def test_runs_replaced_by_many_threads_are_all_kept(source, tmp_path):
    session, end = Session(KEPT, source, folder=tmp_path/'lab').run(), time.monotonic() + 60
    def play(seed):
        draw = np.random.default_rng(seed)
        while len(session.snapshot.runs) < 6 and time.monotonic() < end:
            wish = draw.choice(['apply', 'set', 'run', 'pause', 'stop', 'step', 'wait'], p=[.1, .2, .3, .1, .1, .1, .1])
            if wish == 'wait': time.sleep(float(draw.uniform(0, 0.3)))
            else: getattr(session, wish)(**dict(apply=dict(lr=float(draw.uniform(0.01, 0.1))), set=dict(augment=float(draw.uniform(0, 1))), step=dict(wait=False)).get(wish, {}))
    players = [threading.Thread(target=play, args=(k,)) for k in range(3)]
    for t in players: t.start()
    for t in players: t.join(120)
    last = session.pause().wait()
    session.apply(seed=1).stop().wait()
    written(session)
    assert session.error is None and not session._replaced and last.remark == ''
    done = [p for p in sorted((tmp_path/'lab').glob('run-*')) if read_history(p)]
    assert len(done) == len(session.snapshot.runs) > 1
    for path, run in zip(done, session.snapshot.runs): is_kept(path, run.step, session)
    session.release()

def test_a_run_that_was_seen_off_is_not_stepped_any_more(source, tmp_path, monkeypatch):
    "Replaced just before it is seen off, with its first step asked for: either that is done before, or not at all; what it did stands in the table."
    session = Session(KEPT, source, folder=tmp_path/'lab').prepare()
    session.wait()
    first, see_off, asked = session._run, session._see_off, []
    def replaced_just_before():
        if session._mode == 'run' and not asked: asked.append(session.apply(lr=.05).run())
        see_off()
    monkeypatch.setattr(session, '_see_off', replaced_just_before)
    session.run()
    until(lambda: asked and session.snapshot.step >= 1)
    session.stop().wait()
    assert first.setup.trainer.step_done == sum(r.step for r in session.snapshot.runs)
    session.release()

def test_when_the_pools_take_nothing_more_what_was_asked_before_is_done_before(tmp_path, monkeypatch):
    "The interpreter ends while the hand is at work: two writers at once would spoil a checkpoint."
    import concurrent.futures.thread as pools
    keeper, done, slow = Keeper(tmp_path/'lab'), [], threading.Event()
    def job(n): slow.wait(.05); done.append(n); slow.wait(.05); done.append(n)
    for n in (1, 2): keeper.ask(job, n)
    monkeypatch.setattr(pools, '_shutdown', True)
    others = [threading.Thread(target=keeper.ask, args=(job, n)) for n in (3, 4)]
    for t in others: t.start()
    for t in others: t.join()
    monkeypatch.undo()
    keeper.close()
    assert done[:4] == [1, 1, 2, 2] and done[4:] in ([3, 3, 4, 4], [4, 4, 3, 3])

def test_the_interpreter_ends_while_a_run_is_replaced(source, tmp_path):
    p = process(tmp_path/'lab', "s.run(); s.wait(step=3); t = s.setup.trainer; s.apply(lr=0.01); import atexit; atexit.register(lambda: print(t.step_done))", stderr=subprocess.PIPE)
    out, err = p.communicate(timeout=120)
    assert (p.returncode, err) == (0, '')
    run = Run(tmp_path/'lab/run-0001', resume=True)
    assert run.latest()['step'] >= max(3, int(out)) and json.loads((run.path/'summary.json').read_text())['step'] == run.latest()['step'] and load_model(run.path)

def test_nobody_who_rests_keeps_threads(source, monkeypatch):
    "The thread that asks gives its OpenMP team back, and the session's thread its own when it rests."
    gave = []
    monkeypatch.setattr(session_room, 'release_threads', lambda: gave.append(threading.current_thread().name))
    session = Session(replace(SMALL, steps=100), source).run()
    assert gave == [threading.current_thread().name]
    session.wait(step=1, timeout=60)
    session.pause()
    until(lambda: gave[1:] == ['jointseg-session'])
    session.stop()


KERNEL = """
from jointseg_nb.engine import release_threads
from jointseg_nb.session import Session
before = release_threads in get_ipython().events.callbacks['post_execute']
for _ in range(2): Session().prepare().stop()
after = get_ipython().events.callbacks['post_execute'].count(release_threads)
"""

def test_in_a_notebook_neither_does_the_main_thread():
    "After each cell it gives its team back, from the first session on."
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel()
    try: reply = client.execute_interactive(KERNEL, user_expressions=dict(found='before, after'), timeout=120)['content']
    finally: client.stop_channels(), manager.shutdown_kernel(now=True)
    assert reply['status'] == 'ok', reply
    assert reply['user_expressions']['found']['data']['text/plain'] == '(False, 1)'
