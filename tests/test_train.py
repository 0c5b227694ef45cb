"""`jointseg-train` as a process: what it leaves, what it refuses, what a stop keeps, what programs read of it."""
import csv, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
from PIL import Image

from jointseg_nb import commands, fit as room
from jointseg_nb.agents import JointSeg
from jointseg_nb.cooperate import Cooperation
from jointseg_nb.fit import fit, run_source
from jointseg_nb.fundus import write_folder
from jointseg_nb.recipes import recipe
from jointseg_nb.runs import Run, read_history

import processes

TINY = '--size 32 --crop 32 --pad 2 --steps 6 --clf-batch 4 --seg-batch 4 --every 3 --device cpu --precision float32'.split()
DATA = Path(os.environ.get('JOINTSEG_DATA', Path(__file__).parents[1]/'../shared/data'))


def command(*args): return [sys.executable, '-c', 'from jointseg_nb.commands import train; train()', *map(str, args)]


def train(*args, timeout=300):
    "Run the command in a new interpreter."
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=timeout)


class Forked:
    "The command in a process that finds PyTorch loaded."
    def __init__(self, tmp_path, *args, cwd='.'):
        self.out, self.err = tmp_path/'stdout', tmp_path/'stderr'
        self.p = processes.start(processes.run_train, [*map(str, args)], str(cwd), self.out, self.err)

    def end(self):
        self.p.join(240)
        self.returncode, self.stdout, self.stderr = self.p.exitcode, self.out.read_text(), self.err.read_text()
        return self


@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch): processes.plain_pictures(monkeypatch)   # of trainings in this process


def refused(capsys, *args):
    "Exit code and words of a command in this process."
    with pytest.raises(SystemExit) as e: commands.train([str(a) for a in args])
    return e.value.code, capsys.readouterr().err


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    "Forty embedded eyes as a folder."
    path = tmp_path_factory.mktemp('eyes')/'set'
    write_folder(path, n=40, seed=5, size=64)
    return path


@pytest.fixture(scope='session')
def run(folder, tmp_path_factory):
    "A very short training on that folder."
    out = tmp_path_factory.mktemp('runs')/'a'
    done = train('--data', folder, '--out', out, *TINY)
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_run_leaves_everything(run):
    out, done = run
    metrics = json.loads((out/'metrics.json').read_text())
    assert metrics == json.loads(done.stdout)
    assert {'miou', 'lesion_miou', 'iou', 'top1', 'steps', 'seconds', 'device', 'best', 'warnings'} <= set(metrics) and metrics['steps'] == 6
    assert json.loads((out/'recipe.json').read_text())['clf_batch'] == 4
    assert [int(r['step']) for r in csv.DictReader(open(out/'history.csv'))] == [1, 2, 3, 4, 5, 6]
    assert Image.open(out/'film.gif').n_frames >= 3
    assert Image.open(out/'masks.png').width > 300
    assert [p.name for p in (out/'checkpoints').iterdir() if p.suffix == '.json'] == ['step-00000006.json']
    for name in ('model.safetensors', 'best.safetensors', 'metrics.json', 'masks.png'): assert (out/name).stat().st_mode & 0o044, f'{name}: others of the group cannot read it'


def test_the_model_comes_back(run):
    model = JointSeg.load(run[0])
    assert model.meta['mask_classes'][3] == 'haemorrhage' and model.meta['step'] == 6


def test_recipe_and_photographs_of_a_run_come_back(run, folder):
    made, source = run_source(run[0])
    assert made.clf_batch == 4 and len(source) == 40
    assert json.loads((run[0]/'run.json').read_text())['data'] == [str(folder.resolve())]


def test_quiet_where_output_is_no_terminal(run):
    assert 'step/s' not in run[1].stderr and '%|' not in run[1].stderr


def test_a_bar_with_rate_and_time_left_where_it_is_one(folder, tmp_path):
    import fcntl, pty, struct, termios
    read, write = pty.openpty()
    fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack('4H', 24, 160, 0, 0))
    p = subprocess.Popen(command('--data', folder, '--out', tmp_path/'run', *TINY), stdout=subprocess.DEVNULL, stderr=write)
    os.close(write)
    shown = b''
    try:
        while piece := os.read(read, 1 << 16): shown += piece
    except OSError: pass   # the other end was closed: the process has ended
    assert p.wait(60) == 0 and b'6/6' in shown and b'step/s' in shown and b'<' in shown


def test_an_earlier_run_is_kept(run, folder, capsys):
    before = (run[0]/'metrics.json').read_bytes()
    code, said = refused(capsys, '--data', folder, '--out', run[0], *TINY)
    assert code == 2 and 'already holds a run' in said
    assert (run[0]/'metrics.json').read_bytes() == before


@pytest.mark.parametrize('args, said', [
    (['--data', 'no/such/folder'], 'no/such/folder'),
    (['--data', 'embedded', '--data', 'no/such/folder'], 'no/such/folder'),
    (['--lr-ratio', '-1'], 'lr_ratio=-1.0'),
    (['--recipe', 'rocket'], "recipe='rocket'"),
    (['--device', 'abacus'], "device='abacus'"),
    (['--recipe', 'nowhere.json'], 'nowhere.json'),
    (['--checkpoint-every', 'often'], "checkpoint_every='often'"),
    (['--every', '0'], 'every=0'),
    (['--norm', 'layer'], "choose from"),
    (['--lr', 'fast'], "invalid float value: 'fast'"),
    (['--resume'], 'holds no run to resume')])
def test_what_is_wrong_is_one_line_before_any_work(args, said, tmp_path, folder, capsys):
    data = [] if '--data' in args else ['--data', folder]
    code, text = refused(capsys, '--out', tmp_path/'run', *TINY, *data, *args) if args != ['--resume'] else refused(capsys, '--out', tmp_path/'run', '--resume')
    assert code == 2 and said in text and text.count('\n') == 1
    assert not (tmp_path/'run').exists()


def test_rates_are_found_before_a_training(folder, tmp_path, capsys):
    "The plot, a rate for each agent that trains, and nothing that would be in the way of the run."
    args = ['--data', folder, '--out', tmp_path/'run', *TINY, '--cache', 'off']
    commands.train([str(a) for a in [*args, '--find-rates', '--json']])
    said = json.loads(capsys.readouterr().out)
    assert said['event'] == 'rates' and 0 < said['classifier'] <= 3 and 0 < said['segmenter'] <= 3
    assert [f.name for f in (tmp_path/'run').iterdir()] == ['rates.png'] and Image.open(said['plot']).width > 300
    commands.train([str(a) for a in [*args, '--find-rates', '--agents', 'segmenter']])
    assert 'segmenter: begin at' in (text := capsys.readouterr().out) and '--lr ' in text and 'classifier' not in text
    commands.train([str(a) for a in [*args, '--steps', 1]])
    assert (tmp_path/'run'/'metrics.json').exists() and (tmp_path/'run'/'rates.png').exists()
    code, said = refused(capsys, '--out', tmp_path/'run', '--resume', '--find-rates')
    assert code == 2 and 'find_rates and resume do not go together' in said


def test_a_wrong_option_needs_no_pytorch(tmp_path):
    probe = f"import sys\nfrom jointseg_nb.commands import train\ntry: train(['--out', {str(tmp_path/'a')!r}, '--data', 'no/such/folder'])\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', probe], capture_output=True, text=True).stdout.split() == ['2', 'False']


@pytest.mark.parametrize('args, said', [(['--steps', 12], 'steps=12 belongs to the recipe'), (['--recipe', 'paper'], 'recipe and resume do not go together'),
                                        (['--overwrite'], 'overwrite and resume do not go together')])
def test_a_run_that_goes_on_keeps_its_recipe(run, args, said, capsys):
    code, text = refused(capsys, '--out', run[0], '--resume', *args)
    assert code == 2 and said in text


def test_a_finished_run_is_told_as_it_is(run, tmp_path):
    before = (run[0]/'metrics.json').read_bytes()
    done = Forked(tmp_path, '--out', run[0], '--resume').end()
    assert done.returncode == 0 and json.loads(done.stdout) == json.loads(before) and (run[0]/'metrics.json').read_bytes() == before


def stop(out, signum, *args, lines=3):
    "Start the command, send a signal when some lines of the history are there; its exit code and what it said."
    done = Forked(out.parent, '--out', out, *args)
    end, history = time.time() + 240, out/'history.csv'
    while time.time() < end and done.p.is_alive() and not (history.exists() and history.read_text().count('\n') > lines): time.sleep(0.005)
    os.kill(done.p.pid, signum)
    done.end()
    return done.returncode, done.stderr


@pytest.mark.parametrize('signum, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_keeps_what_was_trained_and_goes_on(folder, tmp_path, signum, code):
    out = tmp_path/'run'
    ended, said = stop(out, signum, '--data', folder, *TINY, '--steps', 40)
    assert ended == code and 'say resume to go on' in said and 'Traceback' not in said
    kept = JointSeg.load(out).meta['step']
    assert 3 <= kept == len(read_history(out)) < 40
    done = Forked(tmp_path, '--out', out, '--resume', '--lr', 0.05, '--json').end()
    assert done.returncode == 0, done.stderr
    rows = read_history(out)
    assert json.loads(done.stdout.splitlines()[-1])['steps'] == 40 and [int(r['step']) for r in rows] == list(range(1, 41))
    assert [r['step'] for r in rows if r['knobs'] == 'lr=0.05'] == [kept + 1] and [json.loads(x)['step'] for x in done.stdout.splitlines()[:-1]] == list(range(kept + 1, 41))


def test_killed_it_goes_on_from_another_folder_as_if_nothing_had_happened(folder, tmp_path):
    args = ['--data', folder, *TINY, '--steps', 20, '--checkpoint-every', 2]
    ended, _ = stop(tmp_path/'a', signal.SIGKILL, *args, lines=7)
    assert ended == -signal.SIGKILL
    again = Forked(tmp_path, '--out', 'a', '--resume', cwd=tmp_path).end()
    assert again.returncode == 0, again.stderr
    assert Forked(tmp_path, '--out', tmp_path/'b', *args).end().returncode == 0
    without_time = lambda out: [{k: v for k, v in r.items() if k != 'seconds'} for r in read_history(out)]
    assert without_time(tmp_path/'a') == without_time(tmp_path/'b')


def test_lines_for_programs(folder, tmp_path):
    done = Forked(tmp_path, '--data', folder, '--out', tmp_path/'run', '--json', *TINY).end()
    assert done.returncode == 0 and not done.stderr, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [s['event'] for s in said] == ['step']*6 + ['end'] and [s['step'] for s in said[:-1]] == [1, 2, 3, 4, 5, 6]
    assert said[-1]['steps'] == 6 and 'lesion_miou' in said[2] and 'lesion_miou' not in said[1]


def test_sets_are_joined(folder, tmp_path):
    other = tmp_path/'other'
    write_folder(other, n=12, seed=6, size=64)
    tiny = recipe('pocket', size=32, crop=32, pad=2, steps=1, clf_batch=2, seg_batch=2, precision='float32')
    fit(tiny, tmp_path/'run', [folder, other], device='cpu', progress=False, reading=dict(cache=False))
    assert len(run_source(tmp_path/'run')[1]) == 52
    (other/'labels.csv').unlink()
    shutil.rmtree(other)
    with pytest.raises((ValueError, OSError), match='other'): fit(None, tmp_path/'run', resume=True, device='cpu', progress=False)


def test_each_set_may_lie_in_a_way_of_its_own(folder, tmp_path, monkeypatch, capsys):
    asked, real = [], room.read
    def read(path, **how):
        asked.append((path, how.get('layout'), how.get('task')))
        return real(path, **how)
    monkeypatch.setattr(room, 'read', read)
    monkeypatch.chdir(folder.parent)
    data = ['--data', f'folder={folder.name}', '--data', 'embedded:12']
    commands.train([*data, '--out', str(tmp_path/'run'), '--cache', 'off', *TINY, '--size', '64', '--steps', '1'])
    monkeypatch.chdir(tmp_path)
    assert len(run_source(tmp_path/'run')[1]) == 52
    assert asked == [(folder.name, 'folder', None), (str(folder), 'folder', None)]   # kept in full
    for data, said in (('idird=' + str(folder), "'idird' is no layout"), ('folder=nowhere', 'is not there'), (f'folder:grading={folder}', "task='grading': the layout 'folder'")):
        code, text = refused(capsys, '--data', data, '--out', tmp_path/'other', *TINY)
        assert code == 2 and said in text and not (tmp_path/'other').exists()
    (tmp_path/'a=b').mkdir()
    assert room.named_set(tmp_path/'a=b') == (str(tmp_path/'a=b'), {})


def test_a_set_up_of_the_live_lab_trains(tmp_path, capsys):
    from jointseg_nb.presets import Given, setup_json, setup_string
    tiny = recipe('pocket', size=32, crop=32, pad=2, steps=2, clf_batch=4, seg_batch=4, precision='float32', lr_ratio=3.)
    none = ((False,)*4,)*3
    said = setup_string(setup_json(tiny, Given(n_source=30), none))
    commands.train(['--setup', said, '--out', str(tmp_path/'run'), '--device', 'cpu', '--clf-batch', '5'])
    own, source = run_source(tmp_path/'run')
    assert (own.lr_ratio, own.clf_batch, len(source)) == (3., 5, 30)
    assert 'switches' in read_history(tmp_path/'run')[0]['knobs']
    for args, text in ((['--setup', 'js1:nothing'], 'setup'), (['--setup', said, '--recipe', 'paper'], 'recipe and setup do not go together')):
        assert refused(capsys, '--out', tmp_path/'other', *args)[0] == 2


def test_who_never_trained_has_nothing_to_say(folder, tmp_path, capsys):
    commands.train(['--data', str(folder), '--out', str(tmp_path/'run'), *TINY, '--agents', 'segmenter'])
    assert JointSeg.load(tmp_path/'run').meta['agents'] == ['segmenter'] == json.loads((tmp_path/'run'/'metrics.json').read_text())['agents']
    capsys.readouterr()
    commands.predict([str(tmp_path/'run'), str(next((folder/'images').iterdir())), '--out', str(tmp_path/'out'), '--device', 'cpu'])
    out, err = capsys.readouterr()
    assert 'not graded' in out and 'the classifier of this network never trained' in err
    commands.evaluate([str(tmp_path/'run'), '--device', 'cpu'])
    assert 'the classifier of this network never trained' in capsys.readouterr().err


def test_options_of_reading_reach_the_reader_and_the_resumed_run(folder, tmp_path, monkeypatch):
    asked, real = [], room.read
    def read(path, **how):
        asked.append(how)
        return real(path, **how)
    monkeypatch.setattr(room, 'read', read)
    commands.train(['--data', str(folder), '--out', str(tmp_path/'run'), '--layout', 'folder', '--no-strict', '--cache', str(tmp_path/'cache'), '--label', 'has_dr', *TINY, '--steps', '1'])
    commands.train(['--out', str(tmp_path/'run'), '--resume'])
    assert asked[0] == asked[1] and {k: asked[0][k] for k in ('layout', 'strict', 'cache', 'label')} == dict(layout='folder', strict=False, cache=str(tmp_path/'cache'), label='has_dr')
    assert JointSeg.load(tmp_path/'run').config['n_labels'] == 2 and any((tmp_path/'cache').iterdir())


def test_tensorboard(folder, tmp_path):
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    commands.train(['--data', str(folder), '--out', str(tmp_path/'run'), '--log', 'tensorboard', *TINY])
    read = event_accumulator.EventAccumulator(str(tmp_path/'run'/'tensorboard')).Reload()
    assert {'clf_loss', 'seg_loss', 'cosine', 'lesion_miou', 'lr_clf_M'} <= set(read.Tags()['scalars'])
    logged = {s.step: s.value for s in read.Scalars('seg_loss')}
    assert logged == pytest.approx({int(r['step']): r['seg_loss'] for r in read_history(tmp_path/'run')}, rel=1e-6)


def test_tensorboard_is_remembered(folder, tmp_path):
    pytest.importorskip('tensorboard')
    out, files = tmp_path/'run', lambda: len(list((tmp_path/'run'/'tensorboard').glob('*')))
    stop_after(3, folder, out, log='tensorboard')
    assert files() == 1
    stop_after(1, None, out, resume=True)
    assert files() == 2
    stop_after(1, None, out, resume=True, log='none')
    commands.train(['--out', str(out), '--resume'])
    assert files() == 2


def stop_after(n, data, out, resume=False, log=None):
    "A training in this process that is interrupted after n steps."
    tiny, seen = recipe('pocket', size=32, crop=32, pad=2, steps=6, clf_batch=4, seg_batch=4, precision='float32'), []
    def listen(row):
        seen.append(row)
        if len(seen) == n: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): fit(None if resume else tiny, out, None if data is None else str(data), device='cpu', progress=False, resume=resume, log=log, listeners=[listen])


def test_tensorboard_that_is_not_installed(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room, 'find_spec', lambda name: None)
    code, said = refused(capsys, '--data', folder, '--out', tmp_path/'run', '--log', 'tensorboard', *TINY)
    assert code == 2 and "pip install 'jointseg_nb[tensorboard]'" in said and not (tmp_path/'run').exists()


def test_a_folder_that_cannot_be_written_to_is_exit_code_1(folder, tmp_path, capsys):
    (tmp_path/'file').write_text('')
    code, said = refused(capsys, '--data', folder, '--out', tmp_path/'file'/'run', *TINY)
    assert code == 1 and 'no run can be written there' in said


def test_a_loss_that_is_no_number_is_exit_code_1(folder, tmp_path, monkeypatch, capsys):
    def step(self): raise FloatingPointError('the seg loss is nan at step 1: lower lr (now 0.2)')
    monkeypatch.setattr(Cooperation, 'step', step)
    code, said = refused(capsys, '--data', folder, '--out', tmp_path/'run', *TINY)
    assert code == 1 and 'the seg loss is nan' in said and 'no checkpoint was kept yet' in said and Run(tmp_path/'run', resume=True)


@pytest.mark.skipif(not (DATA/'idrid512').is_dir(), reason='no real photographs here: set JOINTSEG_DATA to the folder that holds idrid512')
def test_real_photographs_train_too(tmp_path):
    done = Forked(tmp_path, '--data', DATA/'idrid512', '--out', tmp_path/'run', *TINY).end()
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path/'run'/'metrics.json').read_text())
    assert metrics['iou']['haemorrhage'] is not None and metrics['majority'] < 1


@pytest.mark.slow
def test_the_demo_reaches_its_goals(tmp_path):
    done = train('--recipe', 'pocket', '--out', tmp_path/'demo', timeout=3000)
    metrics = json.loads(done.stdout)
    assert metrics['lesion_miou'] >= 0.45 and metrics['miou'] >= 0.50
    assert metrics['top1'] >= metrics['majority'] + 0.10
