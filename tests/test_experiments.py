"""The runner that survives being killed, the rules of verdict, and what is written."""
import json, math, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest, torch
from jointseg_nb import experiments as X
from jointseg_nb.data import embedded
from jointseg_nb.experiments import CLAIMS, SUITES, Arena, Claim, Comparison, Condition, compare, conditions, judge, keep_run, prepare, read_runs, reproduce, run_all, run_key, sooner, summary, together, verdicts, write_tables
from jointseg_nb.recipes import recipe

base = recipe('pocket', steps=3, clf_batch=2, seg_batch=2, meter_every=0, precision='float32')

@pytest.fixture(scope='module')
def arena(): return Arena(embedded(40, size=64), embedded(10, seed=1, size=64))

def made_up(condition, base, arena, seed=0, lr=None, device=None, looks=20):
    "A run without a training: joint is better by 0.1, the scores of a seed move together, and a rate of 0.1 is best."
    score = .5 + .1*(condition.name == 'joint') + .01*seed - abs(math.log10((lr or .2)/.1))/10
    each = dict.fromkeys(('miou', 'lesion_miou', 'lesion_aupr', 'top1', 'top2', 'binary', 'kappa', 'auc'), score)
    return dict(agents=condition.changes.get('agents', 'both'), metrics=each, valid=each, curve=[[1, score/2], [2, score]], budget=dict(clf_images=1, seg_images=1, flops=1), parameters=1, lr=lr, steps=2, seconds=.0)

def test_every_claim_speaks_of_conditions_that_are_there():
    names = {c.name for c in conditions()}
    for claim in CLAIMS:
        for c in claim.comparisons: assert {c.better, c.worse} <= names, claim.name
    assert len({c.name for c in CLAIMS}) == len(CLAIMS)
    for suite in SUITES.values(): assert len({c.name for c in suite}) == len(suite)
    by = {}
    for c in (c for suite in SUITES.values() for c in suite): assert by.setdefault(c.name, c) == c, 'one name, one condition'

def test_wrong_words_are_named():
    with pytest.raises(ValueError, match='table9.*table1'): conditions(['table9'])
    with pytest.raises(ValueError, match='lr'): Condition('x', dict(lr=-1.))
    with pytest.raises(ValueError, match='images'): Condition('x', equal='time')

@pytest.mark.parametrize('low, high, no_loss, verdict', [(.01, .05, False, 'reproduced'), (-.01, .05, False, 'undecided'), (-.05, -.01, False, 'not reproduced'), (0, .1, False, 'undecided'),
    (-.019, .05, True, 'reproduced'), (-.021, .05, True, 'undecided'), (-.05, -.03, True, 'not reproduced'), (-.015, -.005, True, 'reproduced'),
    (-math.inf, math.inf, False, 'undecided'), (-math.inf, math.inf, True, 'undecided')])
def test_the_rule(low, high, no_loss, verdict): assert judge((low + high)/2, low, high, no_loss) == verdict

def test_all_comparisons_of_a_claim_must_hold():
    yes, no, open_ = 'reproduced', 'not reproduced', 'undecided'
    assert [together(v) for v in ([yes, yes], [yes, open_], [open_, no], [no, yes], [])] == [yes, open_, no, no, open_]

def test_sooner():
    slow, quick = [[1, .1], [2, .2], [3, .3], [4, .4]], [[1, .4], [2, .5], [3, .6], [4, .7]]
    assert (sooner(quick, slow), sooner(slow, quick), sooner(slow, slow)) == (.75, -1., 0)
    assert sooner([[4, None]], slow) == -1

def test_runs_are_kept_line_by_line(tmp_path):
    for k in 'ab': keep_run(tmp_path, dict(key=k, text='ä'))
    file = tmp_path/'runs.jsonl'
    whole = file.read_bytes()
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        n = whole[:cut].count(b'\n')
        assert list(read_runs(tmp_path)) == ['a', 'b'][:n]
        keep_run(tmp_path, dict(key='c'))
        assert list(read_runs(tmp_path)) == ['a', 'b'][:n] + ['c']

def test_a_key_changes_with_whatever_changes_the_run(arena):
    c = SUITES['cooperation'][0]
    keys = {run_key(c, base, arena, 0, .1), run_key(c, base, arena, 1, .1), run_key(c, base, arena, 0, .2), run_key(c, replace(base, steps=4), arena, 0, .1),
            run_key(replace(c, changes=dict(augment=.5)), base, arena, 0, .1), run_key(c, base, Arena(arena.source), 0, .1)}
    assert len(keys) == 6 and run_key(c, base, arena, 0, .1) == run_key(c, base, arena.digest, 0, .1) in keys

def test_nothing_is_done_twice_and_the_best_rate_is_taken(tmp_path, arena, monkeypatch):
    calls, said = [], []
    monkeypatch.setattr(X, 'run_once', lambda *a: calls.append(a) or made_up(*a))
    todo = conditions(['cooperation'])
    rows = run_all(tmp_path, todo, base, arena, seeds=3, factors=(.5, 1.), say=said.append)
    assert len(rows) == 9 and len(calls) == len(said) == 15 and {r['lr'] for r in rows} == {.1}
    assert run_all(tmp_path, todo, base, arena, seeds=3, factors=(.5, 1.), say=said.append) == rows and len(calls) == 15
    run_all(tmp_path, todo, base, arena, seeds=4, factors=(.5, 1.), say=said.append)
    assert len(calls) == 18
    found = {v['claim']: v for v in verdicts(rows)}
    assert found['cooperation-segmentation']['verdict'] == 'reproduced' and found['cooperation-segmentation']['seeds'] == 3
    tables = write_tables(tmp_path, rows, base, 'made up')
    assert json.loads((tmp_path/'tables.json').read_text()) == tables and tables['made']['command'] == 'made up'
    for c in tables['claims']: assert {'claim', 'paper', 'ours', 'ci', 'seeds', 'verdict'} <= c.keys()
    text = (tmp_path/'tables.md').read_text()
    assert 'cooperation-segmentation' in text and '| joint | 3 |' in text and 'inf' not in text and 'nan' not in text

def test_one_seed_decides_nothing(tmp_path, arena, monkeypatch):
    monkeypatch.setattr(X, 'run_once', made_up)
    tables = write_tables(tmp_path, run_all(tmp_path, conditions(['cooperation']), base, arena, seeds=1, say=lambda t: None), base)
    assert {c['verdict'] for c in tables['claims']} == {'undecided'} and tables['claims'][0]['ci'] == [None, None]

def test_a_training_that_fails_is_a_result(tmp_path, arena, monkeypatch):
    def fails(condition, *a, **k): return dict(failed='the loss is nan', curve=[], seconds=0.) if condition.name == 'joint' else made_up(condition, *a, **k)
    monkeypatch.setattr(X, 'run_once', fails)
    rows = run_all(tmp_path, conditions(['cooperation']), base, arena, seeds=2, factors=(.5, 1.), say=lambda t: None)
    assert compare(Comparison('joint', 'segmenter alone'), rows) is None and summary(rows)[0]['failed'] == 2
    write_tables(tmp_path, rows, base)

def test_a_loss_that_is_no_number_fails(arena):
    row = X.run_once(Condition('wild', dict(lr=10., lr_ratio=1000., ratio_on='agent', agents='both')), replace(base, steps=30), arena, device='cpu')
    assert 'failed' in row or all(v is None or v == v for v in row['metrics'].values() if not isinstance(v, dict))

@pytest.mark.parametrize('condition', [c for c in conditions() if c.net or c.pretrain is not None], ids=lambda c: c.name)
def test_every_other_network_can_be_prepared(condition, arena):
    setup, cost = prepare(condition, replace(base, steps=1, crop=64), arena.source, device='cpu')
    report = setup.trainer.step()
    assert cost.flops > 0 and report.step == 1

killed = '''
import sys, time
from jointseg_nb import experiments as X
from jointseg_nb.data import embedded
from jointseg_nb.recipes import recipe
sys.path.insert(0, sys.argv[2])
from test_experiments import base, made_up
def slow(*a, **k): time.sleep(.3); return made_up(*a, **k)
X.run_once = slow
X.run_all(sys.argv[1], X.conditions(['cooperation']), base, X.Arena(embedded(40, size=64), embedded(10, seed=1, size=64)), seeds=4, say=lambda t: print(t, flush=True))
'''

def test_killed_and_begun_again(tmp_path, arena, monkeypatch):
    p = subprocess.Popen([sys.executable, '-c', killed, str(tmp_path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
    for _ in range(3): p.stdout.readline()
    p.send_signal(signal.SIGKILL); p.wait()
    done = len(read_runs(tmp_path))
    assert 3 <= done < 12
    calls = []
    monkeypatch.setattr(X, 'run_once', lambda *a: calls.append(a) or made_up(*a))
    rows = run_all(tmp_path, conditions(['cooperation']), base, arena, seeds=4, say=lambda t: None)
    assert len(rows) == 12 and len(calls) == 12 - done

def test_a_tiny_table_end_to_end_is_the_same_again(tmp_path, arena):
    "Two conditions, two seeds, really trained; the same figures from the same seeds."
    few = dict(base=replace(base, steps=2), only=['updates'], seeds=2, arena=arena, factors=(1.,), device='cpu', say=lambda t: None)
    a, b = reproduce(tmp_path/'a', **few), reproduce(tmp_path/'b', **few)
    for x, y in zip(a['rows'], b['rows']): assert {k: v for k, v in x.items() if k != 'seconds'} == {k: v for k, v in y.items() if k != 'seconds'}
    assert {'tables.json', 'tables.md', 'runs.jsonl', 'updates.png'} == {p.name for p in (tmp_path/'a').iterdir()}
