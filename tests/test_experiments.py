"""The runner of experiments: what is known of a run, what is left to do, workers that are killed, and every network that can be asked for."""
import math, os, signal, subprocess, sys, time
from dataclasses import fields, replace
from pathlib import Path
import pytest
from jointseg_nb import experiments as X
from jointseg_nb.experiments import Arena, Condition, Plan, Progress, best_rate, condition, conditions, keep_run, prepare, rates_to_try, read_runs, recipe_of, run_all, run_key, seconds_left, shortened
from jointseg_nb.blocks import count_parameters
from jointseg_nb.recipes import RECIPES, Recipe, recipe

base = recipe('pocket', steps=4, clf_batch=2, seg_batch=2, meter_every=0, precision='float32')
arena = Arena(n=40, n_test=10)

def made_up(condition, base, arena, seed=0, lr=None, device=None, search=False):
    "A run without a training: joint is better by 0.1, the scores of a seed move together, and a rate of 0.1 is best."
    score = .5 + .1*(condition.name == 'joint') + .01*seed - abs(math.log10((lr or .2)/.1))/10
    each = dict.fromkeys(('miou', 'lesion_miou', 'lesion_aupr', 'top1', 'top2', 'binary', 'kappa', 'auc'), score) | dict(majority=.3, iou=dict(background=1.))
    row = dict(agents=condition.changes.get('agents', 'both'), valid=each, curve=[[1, *[score/2]*3], [2, *[score]*3]], cosines=[.1]*4, budget=dict(clf_images=1, seg_images=1, flops=1), parameters=1, masks=8, lr=lr, steps=2, seconds=.0)
    return row if search else row | dict(metrics=each)

def without_time(rows): return [{k: v for k, v in r.items() if k not in ('seconds', 'at')} for r in rows]

def test_lists():
    for list_ in X.SUITES.values(): assert len({c.name for c in list_}) == len(list_)
    by = {}
    for c in (c for suite in X.SUITES.values() for c in suite):
        assert by.setdefault(c.name, c) == c, 'one name, one condition'
    for c in by.values(): assert not c.like or not by[c.like].like, f'{c.name} takes the rate of one that has its own'
    for c in by.values(): recipe_of(c, recipe('pocket'))

def test_wrong_words_are_named():
    with pytest.raises(ValueError, match='table9.*table1'): conditions(['table9'])
    with pytest.raises(ValueError, match='lr'): Condition('x', dict(lr=-1.))
    with pytest.raises(ValueError, match='images'): Condition('x', equal='time')
    with pytest.raises(ValueError, match="kind='resnet'.*'unet'"): Condition('x', net=dict(kind='resnet'))

@pytest.mark.parametrize('warmup', [0, 1, 3])
def test_a_shorter_schedule_warms_up_shorter(warmup):
    r = replace(base, warmup=warmup)
    for steps in (1, 2, 3, 4, 40): assert shortened(r, steps).warmup < steps == shortened(r, steps).steps
    setup, _ = prepare(condition('FCN-8s, pre-trained, equal work'), r, arena.at(64).source, device='cpu')
    assert setup.trainer.recipe.steps >= 1

def test_the_base_block_has_the_parameters_of_ours():
    r, source = recipe_of(condition('joint'), recipe('pocket')), arena.at(64).source
    ours, base, wide = (count_parameters(X.build(condition(n), r, source)) for n in ('joint', 'base inception block', 'base inception block, equal parameters'))
    assert base < .7*ours < .97*ours < wide < 1.03*ours

def test_equal_work_is_equal_work():
    source = arena.at(64).source
    _, ours = prepare(condition('joint'), replace(base, steps=40), source, device='cpu')
    setup, cost = prepare(condition('segmenter alone, equal work'), replace(base, steps=40), source, device='cpu')
    assert setup.trainer.recipe.steps > 40 and abs(cost.flops/ours.flops - 1) < .05
    _, longer = prepare(condition('classifier alone, 3 times the steps, equal work'), replace(base, steps=40), source, device='cpu')
    assert abs(longer.flops/ours.flops - 3) < .1

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

def test_a_key_changes_with_whatever_changes_the_run():
    c = condition('joint')
    keys = [run_key(c, base, arena, 0, .1), run_key(c, base, arena, 1, .1), run_key(c, base, arena, 0, .2), run_key(c, replace(base, steps=5), arena, 0, .1), run_key(c, base, arena, 0, .1, search=True),
            run_key(replace(c, changes=dict(augment=.5)), base, arena, 0, .1), run_key(c, base, Arena(n=41, n_test=10), 0, .1), run_key(replace(c, world='smears'), base, arena, 0, .1),
            run_key(condition('UNet'), base, arena, 0, .1), run_key(condition('UNet, pre-trained'), base, arena, 0, .1), run_key(condition('UNet, equal work'), base, arena, 0, .1)]
    assert len(set(keys)) == len(keys)
    assert run_key(condition('UNet, equal work'), base, arena, 0, .1) != run_key(condition('UNet, equal work'), replace(base, clf_batch=4), arena, 0, .1), 'what ours costs counts'

def test_a_key_stays_when_a_recipe_gets_a_field_or_a_condition_a_name(monkeypatch):
    assert {f.name for f in fields(Recipe)} - {'name'} >= set(X.KEYED)
    c = condition('joint')
    before = X.told(base)
    assert before == X.told(replace(base, name='other')) and run_key(c, base, arena, 0, .1) == run_key(replace(c, name='other'), base, arena, 0, .1)
    monkeypatch.setattr(X, 'KEYED', [k for k in X.KEYED if k != 'rotate'])   # as if rotate came later
    assert X.told(base) == {k: v for k, v in before.items() if k != 'rotate'}
    assert X.told(replace(base, rotate=10.))['rotate'] == 10.

def test_search_goes_on_at_an_edge():
    def best_at(peak):
        tried = {}
        while next_ := rates_to_try(tried): tried |= {k: -abs(k - peak) for k in next_}
        return tried
    assert sorted(best_at(0)) == [-1, 0, 1] and sorted(best_at(2)) == [-1, 0, 1, 2, 3] and sorted(best_at(-1)) == [-2, -1, 0, 1] and sorted(best_at(9)) == [-1, 0, 1, 2, 3, 4, 5]

@pytest.mark.parametrize('score, tried', [(lambda k: 0., [-3, -2, -1, 0, 1, 2, 3]), (lambda k: -math.inf, [-5, -4, -3, -2, -1, 0, 1]), (lambda k: 0. if k < 1 else -math.inf, [-5, -4, -3, -2, -1, 0, 1]),
                                          (lambda k: .4*(k == -4) if k < 0 else -math.inf, [-5, -4, -3, -2, -1, 0, 1]), (lambda k: .4*(k == 2), [-2, -1, 0, 1, 2, 3])])
def test_a_search_that_finds_nothing_goes_on(score, tried):
    "At both ends; below only, where it fails above; until something is learnt."
    seen = {}
    while next_ := rates_to_try(seen): seen |= {k: score(k) for k in next_}
    assert sorted(seen) == tried and score(best_rate(seen)) == max(map(score, tried))

def test_a_search_ends_where_rates_end(tmp_path, monkeypatch):
    "A rate that no recipe may have counts as one that failed, and nothing is trained by it."
    def rising(c, base, arena, seed=0, lr=None, device=None, search=False):
        row = made_up(c, base, arena, seed, lr, device, search)
        return row | dict(valid=row['valid'] | dict(lesion_miou=lr/10, top1=lr/10))
    monkeypatch.setattr(X, 'run_once', rising)
    rows = run_all(tmp_path, [condition('joint')], replace(base, lr=.5), arena, seeds=1, say=lambda t: None)
    assert [r['lr'] for r in rows] == [4.5] and sorted(r['lr'] for r in read_runs(tmp_path).values() if r['search']) == [.1667, .5, 1.5, 4.5]

@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_can_be_the_base(name):
    plan = Plan(conditions(), recipe(name), Arena())
    assert len(plan.starts) == len(conditions()) and all(0 < lr <= 10 for lr in plan.starts.values())
    assert recipe_of(condition('joint, 32 px'), recipe(name)).sides['seg'] == 32

def test_what_does_not_fit_is_said_with_the_condition():
    with pytest.raises(ValueError, match="condition 'too large' of recipe 'pocket'.*crop=500"): Plan([Condition('too large', dict(crop=500))], recipe('pocket'), arena)
    with pytest.raises(ValueError, match="agents='segmenter'.*'both'"): Plan([], recipe('pocket', agents='segmenter', lr_ratio=1.), arena)
    with pytest.raises(ValueError, match="data='embedded:30'.*'embedded', "): Arena('embedded:30')
    with pytest.raises(ValueError, match="label='has_dr'.*'grade'"): Arena('smears', 'has_dr')

def test_a_classifier_that_says_the_same_of_all_has_learnt_nothing():
    def row(top1): return dict(valid=dict(lesion_miou=.2, top1=top1, majority=.3))
    assert X.score_of(row(.3), 'classifier') == X.score_of(row(.25), 'classifier') == X.score_of(row(.302), 'classifier') == 0 < X.score_of(row(.4), 'classifier')
    assert X.score_of(row(.25), 'both') == .1 and X.score_of(row(.5), 'both') == .2 and X.score_of(row(None), 'segmenter') == .2

def test_nothing_is_done_twice_and_the_best_rate_is_taken(tmp_path, monkeypatch):
    calls, said = [], []
    monkeypatch.setattr(X, 'run_once', lambda *a: calls.append(a) or made_up(*a))
    todo = conditions(['cooperation'])   # of five, two take another's rate
    rows = run_all(tmp_path, todo, base, arena, say=said.append)
    assert len(rows) == 5*3 and len(calls) == len(said) - 1 == 5*3 + 3*4
    assert {(r['condition'], r['lr']) for r in rows} == {(c.name, .06 if 'classifier' in c.name else .06667) for c in todo}
    assert said[0].endswith(f'{5*3 + 3*3} runs to do or more, 1 at once') and '0 runs' in said[-1]
    assert {a[1].steps for a in calls if a[-1]} == {2} and {a[1].steps for a in calls if not a[-1]} == {4}
    assert run_all(tmp_path, todo, base, arena, say=said.append) == rows and len(calls) == 27
    run_all(tmp_path, todo, base, arena, seeds=4, say=said.append)
    assert len(calls) == 27 + 5

def test_one_training_under_two_names_is_done_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(X, 'run_once', lambda *a: calls.append(a) or made_up(*a))
    rows = run_all(tmp_path, [condition('joint'), condition('ratio 0.1, shared')], base, arena, seeds=2, search=False, say=lambda t: None)
    assert len(calls) == 2 and [r['condition'] for r in rows] == ['joint']*2 + ['ratio 0.1, shared']*2

def test_the_rate_of_another_is_searched_for_though_it_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(X, 'run_once', made_up)
    rows = run_all(tmp_path, [condition('80% random labels')], base, arena, seeds=1, say=lambda t: None)
    assert [r['condition'] for r in rows] == ['80% random labels'] and {r['condition'] for r in read_runs(tmp_path).values()} == {'joint', '80% random labels'}

def test_what_is_expected_is_what_comes(monkeypatch, tmp_path):
    monkeypatch.setattr(X, 'run_once', made_up)
    plan = Plan(conditions(['cooperation', 'noise']), base, arena, 2)
    n = len(plan.jobs({})[1])
    run_all(tmp_path, plan.todo, base, arena, 2, say=lambda t: None)
    assert n <= len(read_runs(tmp_path)) <= n + 2*3 and plan.jobs(read_runs(tmp_path)) == ([], [])   # at most two rates more for each search

def test_time_left():
    rows = [dict(condition='a', seconds=10., search=False), dict(condition='b', seconds=10., search=True)]
    assert seconds_left([('a', False), ('b', False), ('c', True)], rows) == 10 + 20 + 15/2 and seconds_left([('a', False)], []) is None

def test_a_training_that_fails_is_a_row_and_errors_are_tried_again(tmp_path, monkeypatch):
    def once(why, again): return lambda c, *a: dict(failed=why, seconds=0.) | (dict(again=True) if again else {}) if c.name == 'joint' else made_up(c, *a)
    todo, said = conditions(['cooperation']), []
    monkeypatch.setattr(X, 'run_once', once('no memory', True))
    rows = run_all(tmp_path, todo, base, arena, 2, search=False, say=said.append)
    assert [r['failed'] for r in rows if r['condition'] == 'joint'] == ['no memory']*2 and any('no memory' in t for t in said)
    monkeypatch.setattr(X, 'run_once', once('the loss is nan', False))
    rows = run_all(tmp_path, todo, base, arena, 2, search=False, say=said.append)
    assert [r['failed'] for r in rows if r['condition'] == 'joint'] == ['the loss is nan']*2
    monkeypatch.setattr(X, 'run_once', lambda *a: 1/0)
    assert run_all(tmp_path, todo, base, arena, 2, search=False, say=said.append) == rows

def test_a_loss_that_is_no_number_fails():
    row = X.run_once(Condition('wild', dict(lr_ratio=1000., ratio_on='agent')), replace(base, steps=30, lr=10.), arena, device='cpu')
    assert 'loss is nan at step' in row['failed'] and 'metrics' not in row and 'again' not in row

def test_what_judges_is_loaded_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchmetrics.functional.classification', None)
    with pytest.raises(ImportError, match='torchmetrics'): run_all(tmp_path/'out', [condition('joint')], base, arena)
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('c', [c for c in conditions() if c.net or c.pretrain is not None], ids=lambda c: c.name)
def test_every_other_network_can_be_prepared(c):
    setup, cost = prepare(c, replace(base, steps=1, crop=64), arena.at(64).source, device='cpu')
    report = setup.trainer.step()
    assert cost.flops > 0 and report.step == 1

@pytest.mark.parametrize('place', X.PLACES)
def test_everywhere_each_agent_can_be_trained(place):
    for of in X.AGENTS:
        c = X.there(of, place)
        assert c == condition(c.name) and c.changes.items() >= of.changes.items()
        short = replace(base, steps=2)
        r = X.recipe_of(c, short)
        setup, _ = prepare(c, short, arena.at(r.size, c.world).source, device='cpu')
        assert setup.trainer.step().step == 1 and setup.trainer.recipe.agents == r.agents and setup.source.images.shape[-1] == r.size

def test_blood_smears_are_learnt_from():
    row = X.run_once(condition('joint, blood smears'), replace(base, steps=2), arena, device='cpu')
    assert set(row['metrics']['iou']) == {'background', 'red cell', 'white cell', 'platelet', 'parasite'} and len(row['shown']['which']) == 4

team = '''
import sys
sys.path.insert(0, sys.argv[2])
from jointseg_nb import experiments as X
from test_experiments import arena, base
if __name__ == '__main__': X.run_all(sys.argv[1], X.conditions(['cooperation'])[1:3], X.replace(base, steps=2), arena, int(sys.argv[3]), search=False, workers=2, device='cpu', say=lambda t: print(t, flush=True))
'''

def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return Path(f'/proc/{pid}/stat').read_text().split(')')[1].split()[0] != 'Z' if Path('/proc').exists() else True

@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')
def test_two_workers_killed_and_begun_again(tmp_path):
    "Killed without warning, workers and all: what is done stays done, nobody lives on, and the same call ends it."
    (script := tmp_path/'team.py').write_text(team)
    out = tmp_path/'runs'
    def begin(): return subprocess.Popen([sys.executable, str(script), str(out), str(Path(__file__).parent), '8'], stdout=subprocess.PIPE, text=True)
    p = begin()
    p.stdout.readline()
    first = p.stdout.readline()   # the first run is done
    children = [int(c) for c in Path(f'/proc/{p.pid}/task/{p.pid}/children').read_text().split()] if Path('/proc').exists() else []
    p.send_signal(signal.SIGKILL); p.wait()
    assert 'runs and about' in first and 1 <= len(read_runs(out)) < 16
    for _ in range(100):
        if not any(map(alive, children)): break
        time.sleep(.1)
    assert not any(map(alive, children))
    said = begin().communicate()[0]
    assert len(read_runs(out)) == 16 and '0 runs' in said
    lines = (out/'runs.jsonl').read_text().splitlines()
    assert len(lines) == 16, 'nothing was done twice'

def test_two_calls_in_one_folder_share_the_work(tmp_path):
    (script := tmp_path/'team.py').write_text(team.replace('workers=2', 'workers=1'))
    out = tmp_path/'runs'
    both = [subprocess.Popen([sys.executable, str(script), str(out), str(Path(__file__).parent), '2'], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    assert len((out/'runs.jsonl').read_text().splitlines()) == 4 and len(read_runs(out)) == 4
