"""`jointseg-train` as a process: what it leaves, what it refuses, what an interruption keeps."""
import csv, json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
from PIL import Image

from jointseg_nb.agents import JointSeg
from jointseg_nb.fundus import write_folder

TINY = '--steps 6 --clf-batch 4 --seg-batch 4 --every 3 --device cpu'.split()
DATA = Path(os.environ.get('JOINTSEG_DATA', Path(__file__).parents[1]/'../shared/data'))


def command(*args): return [sys.executable, '-c', 'from jointseg_nb.commands import train; train()', *map(str, args)]


def train(*args, timeout=300):
    "Run the command in a process of its own."
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=timeout)


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
    assert {'miou', 'lesion_miou', 'iou', 'top1', 'steps', 'seconds', 'device'} <= set(metrics) and metrics['steps'] == 6
    assert json.loads((out/'recipe.json').read_text())['clf_batch'] == 4
    assert [int(r['step']) for r in csv.DictReader(open(out/'history.csv'))] == [1, 2, 3, 4, 5, 6]
    assert Image.open(out/'film.gif').n_frames >= 3
    assert Image.open(out/'masks.png').width > 300


def test_the_model_comes_back(run):
    model = JointSeg.load(run[0])
    assert model.meta['mask_classes'][3] == 'haemorrhage'


def test_quiet_where_output_is_no_terminal(run):
    assert 'step/s' not in run[1].stderr and '%|' not in run[1].stderr


def test_an_earlier_run_is_kept(run, folder):
    out, before = run[0], (run[0]/'metrics.json').read_bytes()
    done = train('--data', folder, '--out', out, *TINY)
    assert done.returncode == 2 and 'already holds a run' in done.stderr
    assert (out/'metrics.json').read_bytes() == before


@pytest.mark.parametrize('args, said', [
    (['--data', 'no/such/folder'], 'no/such/folder'),
    (['--lr-ratio', '-1'], 'lr_ratio=-1.0'),
    (['--recipe', 'rocket'], "recipe='rocket'"),
    (['--device', 'abacus'], "device='abacus'"),
    (['--recipe', 'nowhere.json'], 'nowhere.json')])
def test_what_is_wrong_is_one_line_before_any_work(args, said, tmp_path):
    done = train('--out', tmp_path/'run', *TINY, *args)
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path/'run').exists()


def test_interrupted_it_keeps_what_was_trained(folder, tmp_path):
    out = tmp_path/'run'
    p = subprocess.Popen(command('--data', folder, '--out', out, *TINY, '--steps', 100000), stderr=subprocess.DEVNULL)
    end, history = time.time() + 120, out/'history.csv'
    while time.time() < end and not (history.exists() and history.read_text().count('\n') > 4): time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    assert p.wait(120) == 130
    metrics = json.loads((out/'metrics.json').read_text())
    assert metrics['steps'] >= 3 and JointSeg.load(out).config['size'] == 'small'


@pytest.mark.skipif(not (DATA/'idrid512').is_dir(), reason='no real photographs here: set JOINTSEG_DATA to the folder that holds idrid512')
def test_real_photographs_train_too(tmp_path):
    done = train('--data', DATA/'idrid512', '--out', tmp_path/'run', *TINY)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path/'run'/'metrics.json').read_text())
    assert metrics['iou']['haemorrhage'] is not None and metrics['majority'] < 1


@pytest.mark.slow
def test_the_demo_reaches_its_goals(tmp_path):
    done = train('--recipe', 'pocket', '--out', tmp_path/'demo', timeout=3000)
    metrics = json.loads(done.stdout)
    assert metrics['lesion_miou'] >= 0.45 and metrics['miou'] >= 0.50
    assert metrics['top1'] >= metrics['majority'] + 0.10
