"""Nothing is lost: kills, signals, full disks, losses that are no numbers, damaged and foreign checkpoints; and a resumed run is the run that was never stopped."""
import errno, json, os, random, shutil, signal, threading, time, warnings
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis.strategies as st
import pytest, torch
from hypothesis import given, settings
from PIL import Image
from safetensors.torch import load_file

from jointseg_nb import fit as room
from jointseg_nb.agents import JointSeg
from jointseg_nb.data import embedded
from jointseg_nb.fit import Interrupted, asked_to_stop, fit
from jointseg_nb.recipes import recipe
from jointseg_nb.runs import Run, RunFailed, RunWarning, _json_sha256, pack, read_checkpoint, read_history, tensor_files, unpack, write_checkpoint

import processes
from processes import QUIET, TINY, at_step

pytestmark = pytest.mark.filterwarnings('ignore:.*the masks are almost all background')   # so they are, after so few steps


@pytest.fixture(scope='module')
def eyes(): return processes.eyes()


@pytest.fixture(scope='module')
def straight(eyes, tmp_path_factory):
    "A run that nothing ever stopped."
    out = tmp_path_factory.mktemp('runs')/'straight'
    fit(TINY, out, eyes, **QUIET)
    return out


@pytest.fixture(autouse=True)
def plain_pictures(request, monkeypatch):
    if 'real_pictures' not in request.fixturenames: processes.plain_pictures(monkeypatch)


@pytest.fixture
def real_pictures(): pass


def lines(out): return [{k: v for k, v in row.items() if k != 'seconds'} for row in read_history(out)]


def metrics(out): return {k: v for k, v in json.loads((out/'metrics.json').read_text()).items() if k != 'seconds'}


def assert_same_run(a, b):
    "Every line of the history, both networks, the scores and the film."
    assert lines(a) == lines(b)
    assert metrics(a) == metrics(b)
    for name in ('model.safetensors', 'best.safetensors'):
        x, y = load_file(a/name), load_file(b/name)
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), name
    assert (a/'film.gif').read_bytes() == (b/'film.gif').read_bytes()


def assert_whole(out):
    "No file is half there: each one that is not marked as a part can be read."
    for f in out.rglob('*'):
        if f.is_dir() or '.part' in f.name or f.name == '.lock' or not f.exists(): continue
        if f.suffix == '.json': json.loads(f.read_text())
        elif f.suffix == '.safetensors' or f.name.endswith('.safetensors.refused'): load_file(f)
        elif f.suffix in ('.png', '.gif'): Image.open(f).load()
        else: assert f.name == 'history.csv', f
    for f in (out/'checkpoints').glob('step-*.json'): read_checkpoint(f)


def press(signum):
    "The signal, to this very thread: to the process, it may come some time later."
    return lambda: signal.raise_signal(signum)


def stop_at(n, out, eyes, recipe=TINY, signum=signal.SIGINT, **more):
    with pytest.raises(Interrupted) as e: fit(recipe, out, eyes, listeners=[at_step(n, press(signum))], **QUIET | more)
    return e.value


# The same bits

def test_resumed_five_times_it_equals_the_uninterrupted_run(eyes, straight, tmp_path, real_pictures):
    out = tmp_path/'run'
    stop_at(2, out, eyes)
    for n in (3, 5, 8, 11):
        torch.rand(3)
        stop_at(n, out, eyes, recipe=None, resume=True)
        assert [int(r['step']) for r in read_history(out)] == list(range(1, n + 1))
    fit(None, out, eyes, resume=True, **QUIET)
    assert_same_run(out, straight)


@pytest.mark.parametrize('changes', [dict(update='simultaneous', norm='agent', momentum=0.), dict(precision='bfloat16', norm='group', attention='learned', flips=False),
                                     dict(average=0.9, clip=1., clf_accumulate=3, warmup=3), dict(agents='segmenter', seg_loss='ce+dice'), dict(agents='classifier', label_noise=0.5)])
def test_every_reading_resumes(eyes, tmp_path, changes):
    r = replace(TINY, steps=7, **changes)
    fit(r, tmp_path/'a', eyes, **QUIET)
    stop_at(3, tmp_path/'b', eyes, recipe=r)
    fit(None, tmp_path/'b', eyes, resume=True, **QUIET)
    assert_same_run(tmp_path/'b', tmp_path/'a')


def test_knobs_turned_before_the_stop_still_hold_after_it(eyes, tmp_path):
    knobs = dict(lr_ratio=2., label_noise=0.5, augment=0.5, switches=[[False]*4]*3)
    def turn(training): return at_step(2, lambda: training.trainer.knobs.set(**knobs))
    def begin(out, stop):
        run = Run(out)
        run.start(TINY, dict(every=4))
        training = room.Training(room.set_up(TINY, eyes, 'cpu'), run, every=4)
        return training.train(listeners=[turn(training)] + [at_step(5, press(signal.SIGTERM))]*stop)
    begin(tmp_path/'a', stop=False)
    with pytest.raises(Interrupted): begin(tmp_path/'b', stop=True)
    run = Run(tmp_path/'b', resume=True)
    training = room.Training(room.set_up(TINY, eyes, 'cpu'), run, every=4)
    training.go_on()
    assert training.trainer.values['lr_ratio'] == 2. and [x[1] for x in training.trainer.log] == list(knobs)
    training.train()
    assert_same_run(tmp_path/'b', tmp_path/'a')


def test_a_live_knob_may_be_turned_on_resume_and_is_logged(eyes, tmp_path):
    stop_at(4, tmp_path/'a', eyes)
    fit(None, tmp_path/'a', eyes, resume=True, knobs=dict(lr=0.05), **QUIET)
    rows = read_history(tmp_path/'a')
    assert rows[4]['knobs'] == 'lr=0.05' and rows[4]['lr_seg_M'] < rows[3]['lr_seg_M']/3
    assert read_checkpoint(Run(tmp_path/'a', resume=True).checkpoints()[-1])['state']['trainer']['log'] == [[4, 'lr', TINY.lr, 0.05]]


def test_an_early_stop_comes_at_the_same_step(eyes, tmp_path):
    r = replace(TINY, steps=200, patience=8, lr=1e-6)
    kept = fit(r, tmp_path/'a', eyes, **QUIET)
    assert kept['steps'] < 60
    stop_at(6, tmp_path/'b', eyes, recipe=r)
    assert fit(None, tmp_path/'b', eyes, resume=True, **QUIET)['steps'] == kept['steps']
    assert_same_run(tmp_path/'b', tmp_path/'a')
    assert fit(None, tmp_path/'b', eyes, resume=True, **QUIET) == kept | dict(seconds=json.loads((tmp_path/'b'/'metrics.json').read_text())['seconds'])


def test_stopped_before_the_first_checkpoint_it_begins_again(eyes, straight, tmp_path):
    with pytest.raises(SystemExit): fit(TINY, tmp_path/'a', eyes, listeners=[at_step(3, lambda: exit('power'))], **QUIET)
    assert not Run(tmp_path/'a', resume=True).checkpoints()
    with pytest.warns(RunWarning, match='begins at step 0'): fit(None, tmp_path/'a', eyes, resume=True, **QUIET)
    assert_same_run(tmp_path/'a', straight)


def test_a_finished_run_stays_as_it_is(eyes, straight):
    before = {f: f.stat().st_mtime_ns for f in straight.rglob('*') if f.is_file() and f.name not in ('.lock', 'history.csv')}
    fit(None, straight, eyes, resume=True, **QUIET)
    assert before == {f: f.stat().st_mtime_ns for f in before}


def test_what_was_not_yet_written_at_the_end_is_written(eyes, straight, tmp_path):
    out = shutil.copytree(straight, tmp_path/'a')
    for name in ('metrics.json', 'film.gif', 'model.safetensors'): (out/name).unlink()
    fit(None, out, eyes, resume=True, **QUIET)
    assert_same_run(out, straight)


def test_the_best_network_is_the_best_of_the_history(straight):
    looks = [(r['lesion_miou'], -r['step']) for r in read_history(straight) if r['lesion_miou'] is not None]
    score, step = max(looks)
    best = JointSeg.load(straight/'best.safetensors')
    assert (best.meta['lesion_miou'], best.meta['step']) == (score, -step)
    assert Run(straight, resume=True).best()['step'] == -step == metrics(straight)['best']['step']


def test_a_best_network_of_steps_that_are_undone_goes_with_them(straight, tmp_path):
    out = shutil.copytree(straight, tmp_path/'a')
    run = Run(out, resume=True)
    step = run.best()['step']
    run.rewind(step)
    assert run.best()['step'] == step
    run.rewind(step - 1)
    assert run.best() is None and (out/'best.safetensors.refused').exists()


def test_the_run_folder_loads_at_any_time(eyes, tmp_path):
    stop_at(5, tmp_path/'a', eyes)
    assert JointSeg.load(tmp_path/'a').meta['step'] == 5


# Kills

def begins(p, history):
    "Wait until a process writes the history, or ends."
    before = history.stat().st_mtime_ns if history.exists() else 0
    while p.is_alive() and not (history.exists() and history.stat().st_mtime_ns != before): time.sleep(0.005)


def kill_loop(out, kills, steps, chance):
    "Kill a training at random moments, again and again, until it is through; how often it was killed."
    killed, kept = 0, 0
    while True:
        p = processes.start(processes.train_tiny, out, steps, (out/'recipe.json').exists())
        if killed < kills:
            begins(p, out/'history.csv')
            p.join(chance.uniform(0, 0.5))
        else: p.join(240)
        p.kill()
        p.join()
        if p.exitcode == 0: return killed
        assert p.exitcode == -signal.SIGKILL
        killed += 1
        assert_whole(out)
        if not (out/'recipe.json').exists(): continue
        states, done = Run(out, resume=True).checkpoints(), max(kept, len(read_history(out)))
        kept = read_checkpoint(states[-1])['step'] if states else 0
        assert done - kept <= 2, f'{done} steps were done, {kept} are kept'


def test_killed_at_any_moment_twenty_times(tmp_path):
    killed, n, chance = 0, 0, random.Random(0)
    while killed < 20:
        killed += kill_loop(tmp_path/f'{n}', 20 - killed, 40, chance)
        n += 1
    straight = processes.start(processes.train_tiny, tmp_path/'straight', 40, False)
    straight.join(240)
    for k in range(n):
        assert_same_run(tmp_path/f'{k}', tmp_path/'straight')
        assert not list((tmp_path/f'{k}').rglob('*.part*'))


# Signals

@pytest.mark.parametrize('signum, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(eyes, tmp_path, signum, code):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = stop_at(3, tmp_path/'a', eyes, signum=signum)
    assert stopped.exit_code == code and 'step 3' in str(stopped)
    assert read_checkpoint(Run(tmp_path/'a', resume=True).checkpoints()[-1])['step'] == 3
    assert_whole(tmp_path/'a')
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@pytest.fixture
def ctrl_c():
    "Ctrl-C as in a terminal: a shell has its background jobs ignore it."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_ctrl_c_does_not_wait(eyes, tmp_path, ctrl_c):
    "It comes while the checkpoint of the first is written."
    real = room.Run.save
    def slow(self, *args):
        press(signal.SIGINT)()
        real(self, *args)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(room.Run, 'save', slow)
        with pytest.raises(KeyboardInterrupt) as e: fit(TINY, tmp_path/'a', eyes, listeners=[at_step(3, press(signal.SIGINT))], **QUIET)
    assert not isinstance(e.value, Interrupted)
    assert_whole(tmp_path/'a')
    assert not list(tmp_path.rglob('*.part*'))


def test_in_a_thread_signals_are_left_alone():
    found, before = [], signal.getsignal(signal.SIGINT)
    def look():
        with asked_to_stop() as asked: found.append((asked, signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=look)
    thread.start(); thread.join()
    assert found == [([], before)]


# Faults

def fails_with(say, out, eyes, **more):
    "A training that fails after its checkpoint of step 4; that one is whole."
    with pytest.raises(RunFailed) as e: fit(TINY, out, eyes, checkpoint_every=4, **QUIET | more)
    assert e.value.exit_code == 1
    for word in say: assert word in str(e.value), str(e.value)
    assert 'the checkpoint of step 4 is whole' in str(e.value)
    assert Run(out, resume=True).latest()['step'] == 4
    assert_whole(out)
    assert not list(out.rglob('*.part*'))


def then_it_goes_on(out, eyes, straight):
    fit(None, out, eyes, resume=True, **QUIET)
    assert_same_run(out, straight)


def raises(error):
    def do(*_): raise error
    return do


def test_disk_full_while_a_line_is_written(eyes, straight, tmp_path):
    history, kept = tmp_path/'a'/'history.csv', tmp_path/'kept.csv'
    def fill():
        history.rename(kept)
        history.symlink_to('/dev/full')
    if not Path('/dev/full').is_char_device(): pytest.skip('no /dev/full here')
    with pytest.raises(RunFailed) as e: fit(TINY, tmp_path/'a', eyes, checkpoint_every=4, listeners=[at_step(6, fill)], **QUIET)
    assert 'No space left on device' in str(e.value) and 'make room' in str(e.value) and 'the checkpoint of step 4 is whole' in str(e.value)
    kept.replace(history)
    then_it_goes_on(tmp_path/'a', eyes, straight)


def test_disk_full_while_a_checkpoint_is_written(eyes, straight, tmp_path):
    say = processes.context.Queue()
    p = processes.start(processes.fill_disk, tmp_path/'a', say)
    text = say.get(timeout=120)
    p.join(60)
    assert 'make room' in text and 'after step 8' in text and 'the checkpoint of step 4 is whole' in text
    assert_whole(tmp_path/'a')
    assert Run(tmp_path/'a', resume=True).latest()['step'] == 4 and not list(tmp_path.rglob('*.part*'))
    then_it_goes_on(tmp_path/'a', eyes, straight)


def test_a_folder_that_cannot_be_written_to_any_more(eyes, straight, tmp_path, monkeypatch):
    forbid = at_step(6, lambda: monkeypatch.setattr(os, 'replace', raises(OSError(errno.EROFS, 'Read-only file system'))))
    fails_with(['Read-only file system', 'make the folder writable'], tmp_path/'a', eyes, listeners=[forbid])
    monkeypatch.undo()
    then_it_goes_on(tmp_path/'a', eyes, straight)


def test_a_folder_that_cannot_be_written_to_at_the_start(eyes, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    with pytest.raises(RunFailed, match='is no folder'): fit(TINY, tmp_path/'file'/'run', eyes, **QUIET)
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(RunFailed, match='cannot be written to'): fit(TINY, tmp_path/'run', eyes, **QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def with_trainer(monkeypatch, change):
    "Let `change` have the trainer that `fit` makes."
    real = room.set_up
    def set_up(*args):
        setup = real(*args)
        change(setup.trainer)
        return setup
    monkeypatch.setattr(room, 'set_up', set_up)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_that_is_no_number(eyes, straight, tmp_path, monkeypatch, value):
    trainers = []
    with_trainer(monkeypatch, trainers.append)
    def poison():
        with torch.no_grad(): trainers[0].model.decoder.head.bias[0] = value
    fails_with(['loss is', 'lower lr', 'after step 6'], tmp_path/'a', eyes, listeners=[at_step(6, poison)])
    monkeypatch.undo()
    then_it_goes_on(tmp_path/'a', eyes, straight)


def test_weights_that_are_no_numbers_are_not_kept(eyes, straight, tmp_path, monkeypatch):
    "The loss of step 8 is still a number; what its update left is not, and would be the newest checkpoint."
    trainers = []
    with_trainer(monkeypatch, trainers.append)
    def poison():
        with torch.no_grad(): trainers[0].model.decoder.head.bias[0] = float('inf')
    fails_with(['decoder.head.bias is infinite', 'lower lr', 'after step 8'], tmp_path/'a', eyes, listeners=[at_step(8, poison)])
    monkeypatch.undo()
    then_it_goes_on(tmp_path/'a', eyes, straight)


@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'), MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory(eyes, straight, tmp_path, monkeypatch, error):
    def at_seven(trainer):
        step = trainer.step
        trainer.step = lambda: raises(error)() if trainer.step_done == 6 else step()
    with_trainer(monkeypatch, at_seven)
    fails_with(['out of memory', 'clf_batch=3'], tmp_path/'a', eyes)
    monkeypatch.undo()
    then_it_goes_on(tmp_path/'a', eyes, straight)


def test_a_mistake_in_the_program_shows_itself(eyes, tmp_path):
    with pytest.raises(RuntimeError, match='a mistake') as e: fit(TINY, tmp_path/'a', eyes, listeners=[raises(RuntimeError('a mistake'))], **QUIET)
    assert not isinstance(e.value, RunFailed)


def test_collapsing_masks_are_warned_of_once_also_after_a_resume(eyes, tmp_path, monkeypatch):
    monkeypatch.setattr(room, 'collapse_warning', lambda counts, recipe, step: f'at {step} all is background' if step >= 4 else None)
    with pytest.warns(RunWarning, match='at 4 all is background') as w: stop_at(6, tmp_path/'a', eyes)
    assert len(w) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error', RunWarning)
        assert fit(None, tmp_path/'a', eyes, resume=True, **QUIET)['warnings'] == ['at 4 all is background']


# Checkpoints that cannot be used

@pytest.fixture(scope='module')
def stopped_once(eyes, tmp_path_factory):
    "A run with checkpoints of steps 4 and 8, stopped after step 8."
    out = tmp_path_factory.mktemp('stopped')/'run'
    stop_at(8, out, eyes, checkpoint_every=4)
    return out


@pytest.fixture
def stopped(stopped_once, tmp_path):
    "A copy of it, to be spoilt."
    return shutil.copytree(stopped_once, tmp_path/'run')


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rewrite(path, **changes):
    "A checkpoint with other content and good checksums."
    c = read_checkpoint(path) | changes
    write_checkpoint(path, c['state'], c['step'], recipe('pocket', **{k: v for k, v in c['recipe'].items()}), c['facts'])


def other_shape(path):
    state = read_checkpoint(path)['state']
    name = next(k for k, v in state['trainer']['model'].items() if v.ndim == 4)
    state['trainer']['model'][name] = state['trainer']['model'][name][:-1]
    rewrite(path, state=state)


def other_version(path): path.write_text(path.read_text().replace('"format": 1', '"format": 99', 1))


@pytest.mark.parametrize('spoil, said', [
    (lambda p: flip(*tensor_files(p)), 'altered'), (lambda p: flip(p, 40), 'step-00000008'), (lambda p: p.write_text(p.read_text()[:100]), 'cannot be read'),
    (lambda p: tensor_files(p)[0].unlink(), 'cannot be read'), (lambda p: p.write_text('[]'), 'describes no checkpoint'),
    (other_version, 'format 99'), (other_shape, 'step-00000008'), (lambda p: rewrite(p, recipe=asdict(replace(TINY, lr=0.1))), 'lr=0.1 there, lr=0.2 here')])
def test_a_checkpoint_that_cannot_be_used_gives_way_to_the_one_before(eyes, straight, stopped, spoil, said):
    spoil(stopped/'checkpoints'/'step-00000008.json')
    with pytest.warns(RunWarning, match=said) as w: fit(None, stopped, eyes, resume=True, **QUIET)
    assert 'goes on from step-00000004' in ' '.join(str(x.message) for x in w)
    assert (stopped/'checkpoints'/'step-00000008.json.refused').exists()
    assert_same_run(stopped, straight)


def test_when_none_can_be_used_nothing_is_touched(eyes, stopped):
    for p in (stopped/'checkpoints').glob('*.safetensors'): flip(p)
    before = {f: f.read_bytes() for f in stopped.rglob('*') if f.is_file()}
    with pytest.raises(ValueError, match='no checkpoint can be used.*step-00000008.*step-00000004'): fit(None, stopped, eyes, resume=True, **QUIET)
    assert before == {f: f.read_bytes() for f in before}


def test_another_recipe_is_refused_by_name(eyes, stopped):
    with pytest.raises(ValueError, match='steps=12 there, steps=24 here'): fit(replace(TINY, steps=24), stopped, eyes, resume=True, **QUIET)


def test_an_edited_recipe_is_refused_by_every_checkpoint(eyes, stopped):
    (stopped/'recipe.json').write_text((stopped/'recipe.json').read_text().replace('"lr": 0.2', '"lr": 0.1'))
    with pytest.raises(ValueError, match='lr=0.2 there, lr=0.1 here'): fit(None, stopped, eyes, resume=True, **QUIET)


def older(stopped, *fields):
    "The run as a version of the package left it that did not know these fields."
    own = json.loads((stopped/'recipe.json').read_text())
    (stopped/'recipe.json').write_text(json.dumps({k: v for k, v in own.items() if k not in fields}))
    for p in (stopped/'checkpoints').glob('*.json'):
        c = json.loads(p.read_text())
        for known in (c['recipe'], c['state']['trainer']['values']):
            for k in fields: known.pop(k, None)
        del c['sha256']
        p.write_text(json.dumps(c | dict(sha256=_json_sha256(c))))


def test_a_run_from_before_a_field_goes_on_with_its_default(eyes, straight, stopped):
    older(stopped, 'rotate', 'focal_gamma')
    with pytest.warns(RunWarning, match=r"before recipes had focal_gamma, rotate; .*focal_gamma=2.0, rotate=0.0"): fit(None, stopped, eyes, resume=True, **QUIET)
    assert_same_run(stopped, straight)


def test_a_checkpoint_of_tomorrow_is_refused_by_the_names_of_its_fields(eyes, stopped):
    for p in (stopped/'checkpoints').glob('*.json'):
        c = json.loads(p.read_text())
        c['recipe'] |= dict(of_tomorrow=1, and_another=2)
        del c['sha256']
        p.write_text(json.dumps(c | dict(sha256=_json_sha256(c))))
    with pytest.raises(ValueError, match='its recipe has and_another, of_tomorrow, which this version'): fit(None, stopped, eyes, resume=True, **QUIET)


def test_other_photographs_are_refused(eyes, stopped):
    other = embedded(20, seed=4, size=32)
    with pytest.raises(ValueError, match='put back the same files'): fit(None, stopped, other, resume=True, **QUIET)


def test_other_circumstances_are_said(eyes, stopped, monkeypatch):
    real = room.facts
    monkeypatch.setattr(room, 'facts', lambda engine: real(engine) | dict(threads=64))
    with pytest.warns(RunWarning, match='not bit for bit.*threads was .*, is 64'): fit(None, stopped, eyes, resume=True, **QUIET)


def test_a_lost_history_is_said(eyes, stopped):
    (stopped/'history.csv').unlink()
    with pytest.warns(RunWarning, match='history.csv has 0 of the 8 steps'): fit(None, stopped, eyes, resume=True, **QUIET)
    assert [int(r['step']) for r in read_history(stopped)] == [9, 10, 11, 12]


def test_a_history_that_is_none_steps_aside(eyes, stopped):
    (stopped/'history.csv').write_text('a,b\n1,2\n')
    with pytest.warns(RunWarning, match='history.csv has 0 of the 8 steps'): fit(None, stopped, eyes, resume=True, **QUIET)
    assert (stopped/'history.csv.refused').read_text() == 'a,b\n1,2\n' and len(read_history(stopped)) == 4


@pytest.mark.parametrize('name, text, said', [('run.json', None, 'cannot be read'), ('run.json', '{"data": [', 'cannot be read'), ('run.json', '[]', 'no JSON object'),
                                              ('recipe.json', '{"lr": ', 'is not JSON'), ('recipe.json', '{"lr": 0.2, "of_tomorrow": 1, "and_another": 2}', "and_another, of_tomorrow: no field")])
def test_a_damaged_folder_is_named_and_nothing_is_touched(eyes, stopped, name, text, said):
    (stopped/name).unlink() if text is None else (stopped/name).write_text(text)
    before = {f: f.read_bytes() for f in stopped.rglob('*') if f.is_file()}
    with pytest.raises(ValueError, match=said) as e: fit(None, stopped, eyes, resume=True, **QUIET)
    assert str(stopped/name) in str(e.value) and before == {f: f.read_bytes() for f in before}


def test_damaged_metrics_are_written_again(eyes, straight, tmp_path):
    out = shutil.copytree(straight, tmp_path/'a')
    (out/'metrics.json').write_text('{')
    fit(None, out, eyes, resume=True, **QUIET)
    assert_same_run(out, straight)


def test_a_strange_file_among_the_checkpoints_is_no_checkpoint(eyes, straight, stopped):
    (stopped/'checkpoints'/'step-of-mine.json').write_text('{}')
    fit(None, stopped, eyes, resume=True, **QUIET)
    assert_same_run(stopped, straight)


def test_checkpoints_stay_as_often_as_they_were(eyes, stopped):
    assert json.loads((stopped/'run.json').read_text())['checkpoint_every'] == 4
    stop_at(3, stopped, eyes, overwrite=True, checkpoint_every=2)
    stop_at(5, stopped, eyes, recipe=None, resume=True)
    assert [p.stem[-2:] for p in Run(stopped, resume=True).checkpoints()] == ['04', '05']


def test_two_trainings_do_not_write_into_one_folder(eyes, tmp_path):
    said = []
    def second():
        with pytest.raises(ValueError, match='another process') as e: fit(None, tmp_path/'a', eyes, resume=True, **QUIET)
        said.append(e)
    fit(TINY, tmp_path/'a', eyes, listeners=[at_step(3, second)], **QUIET)
    assert said and len(read_history(tmp_path/'a')) == 12


def test_overwriting_leaves_nothing_of_the_old_run(eyes, stopped):
    fit(replace(TINY, steps=2), stopped, eyes, overwrite=True, **QUIET)
    assert [p.name for p in Run(stopped, resume=True).checkpoints()] == ['step-00000002.json'] and len(read_history(stopped)) == 2


def test_checkpoints_by_the_clock(eyes, tmp_path, monkeypatch):
    clock = [0.]
    monkeypatch.setattr(room.time, 'monotonic', lambda: clock[0])
    def tick(row): clock[0] += 25.
    seen = []
    fit(TINY, tmp_path/'a', eyes, checkpoint_every='1m', listeners=[tick, lambda row: seen.append([p.stem[-2:] for p in (tmp_path/'a'/'checkpoints').glob('*.json')])], **QUIET)
    assert sorted({s for some in seen for s in some}) == ['03', '06', '09'] and [p.stem[-2:] for p in Run(tmp_path/'a', resume=True).checkpoints()] == ['09', '12']


# Tensors and JSON

leaves = st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False) | st.text()
tensors = st.tuples(st.lists(st.integers(0, 3), max_size=4), st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float64]), st.booleans()).map(
    lambda t: (torch.arange(torch.Size(t[0]).numel()).reshape(t[0]).to(t[1])).permute(tuple(reversed(range(len(t[0])))) if t[2] else tuple(range(len(t[0])))))
names = st.text('abc./', min_size=1, max_size=3).filter(lambda s: '/' not in s)
states = st.recursive(leaves | tensors, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=12)


def same(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) and (a.stride() == b.stride() or a.numel() < 2)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, states, max_size=3))
def test_a_state_comes_back_as_it_was(state):
    kept = {}
    plain = json.loads(json.dumps(pack(state, kept)))
    assert same(unpack(plain, kept), state)


def test_what_is_kept_does_not_change_with_the_training():
    x, kept = torch.zeros(2), {}
    pack(dict(x=x), kept)
    x += 1
    assert kept['x'].tolist() == [0, 0]
