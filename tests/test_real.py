"""Folds, the same time for all, and runs that are done once."""
import importlib.util, json
from pathlib import Path
from dataclasses import replace
import pytest, torch
from torch import nn
from jointseg_nb import real as R
from jointseg_nb.data import embedded
from jointseg_nb.evaluate import evaluate, iou
from jointseg_nb.experiments import read_runs, told
from jointseg_nb.real import LONGER, REAL, RIVAL, TRIED, Contest, folds, for_unet, joined, on_real_eyes, real_table, scores_of, train_other, unet
from jointseg_nb.recipes import Recipe, recipe

small = replace(REAL, size=64, crop=64, pad=6, seg_batch=2, clf_batch=2, precision='float32', steps=2)

@pytest.fixture(scope='module')
def eyes(): return embedded(25, size=64, label='has_dr')

def test_every_photograph_is_held_out_once_and_no_patient_is_on_both_sides(eyes):
    source = eyes.subset(list(range(25)))
    source.groups = [f'patient {i//2}' for i in range(25)]
    held = [h.tolist() for _, h in folds(source)]
    assert sorted(sum(held, [])) == list(range(25))
    for train, h in folds(source):
        assert not {source.groups[i] for i in train.tolist()} & {source.groups[i] for i in h.tolist()} and sorted(train.tolist() + h.tolist()) == list(range(25))
    sick = [int((source.labels[torch.tensor(h)] > 0).sum()) for h in held]
    assert max(sick) - min(sick) <= 3 and [h.tolist() for _, h in folds(source)] == held != [h.tolist() for _, h in folds(source, seed=1)]

def test_inner_folds_stay_inside(eyes):
    outer, judged = folds(eyes)[0]
    for train, held in folds(eyes, outer, n=4): assert not set(judged.tolist()) & set(train.tolist() + held.tolist())

def test_all_tries_are_recipes():
    for changes in [*TRIED.values(), *for_unet(TRIED).values()]: assert isinstance(replace(REAL, **changes), Recipe)
    assert for_unet(dict(base={}, slower=dict(lr=REAL.lr/2), net=dict(net='base'), apart=dict(norm='batch', lr_ratio=1.), near=dict(stem_stride=1, crop=64))) == dict(base={}, slower=dict(lr=R.UNET_LR/2), near=dict(crop=64))

def test_folds_together_are_what_one_evaluation_of_all_would_be(eyes):
    torch.manual_seed(0)
    model = R.OtherSegmenter(nn.Conv2d(3, eyes.n_classes, 3, padding=1), eyes.n_classes, eyes.n_labels).eval()
    rows = [R.counts_of(model, eyes, held, None) | dict(seconds=1., steps=1, fold=k + 1) for k, (_, held) in enumerate(folds(eyes))]
    whole, parts = evaluate(model, eyes).metrics(), joined(rows, eyes).metrics()
    assert all(parts[k] == whole[k] for k in ('iou', 'dice', 'lesion_miou', 'confusion'))
    s = scores_of(rows, eyes)
    assert s['folds'] == 5 and s['iou']['background'][1] <= s['iou']['background'][0] <= s['iou']['background'][2] and json.dumps(s)

def test_another_segmenter_takes_its_time(eyes):
    model, _, seconds, steps = train_other(nn.Conv2d(3, eyes.n_classes, 1), replace(small, lr=.01), eyes, *folds(eyes)[0], seconds=.3, device='cpu')
    assert .3 <= seconds < 3 and steps >= 1 and not model.net[-1].bias.isnan().any()

def test_another_segmenter_whose_loss_is_no_number_has_failed(eyes):
    "As ours has: its fold is left out, the table says so, and nothing is compared."
    net = nn.Conv2d(3, eyes.n_classes, 1)
    nn.init.constant_(net.bias, float('nan'))
    with pytest.raises(FloatingPointError, match='loss is nan at step 1: lower lr'): train_other(net, replace(small, lr=.01), eyes, *folds(eyes)[0], seconds=.3, device='cpu')
    row = a_row(eyes, 1.)
    rows = [row | dict(fold=k) for k in range(1, 5)] + [dict(fold=5, seconds=1., failed='the loss is nan')]
    found = {'JointSeg': scores_of([row | dict(fold=k) for k in range(1, 6)], eyes), RIVAL: scores_of(rows, eyes, False)}
    assert found[RIVAL]['folds'] == 4 and found[RIVAL]['failed_folds'] == [5] and R.ahead(found, RIVAL) is None
    assert f'| | JointSeg | {RIVAL} (4 of 5 folds) |' in real_table(dict(rows=found))

def test_another_segmenter_is_averaged_as_ours_is(eyes):
    "A running average with a long memory stays near the first step's weights, where the last step's have gone far."
    ends = {}
    for average in (0., .99999):
        torch.manual_seed(0)
        net = nn.Conv2d(3, eyes.n_classes, 1)
        model, *_, steps = train_other(net, replace(small, lr=.1, average=average), eyes, *folds(eyes)[0], seconds=.5, device='cpu')
        ends[average] = (model.net[-1].weight - net.weight).detach().abs().max().item()
        assert steps > 2
    assert ends[0.] == 0 < ends[.99999]

def test_without_the_rival_that_is_said_before_anything_is_trained(eyes, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'jointseg_nb\[bench\].*rival=False'): on_real_eyes(tmp_path, eyes, small)
    assert not list(tmp_path.iterdir())

def net(n): return nn.Conv2d(3, n, 3, padding=1)

def test_all_of_it_and_nothing_twice(eyes, tmp_path, monkeypatch):
    monkeypatch.setattr(R, 'unet', net)
    said = []
    found = on_real_eyes(tmp_path, eyes, small, dict(base={}, other=dict(lr=.05)), device='cpu', say=said.append)
    assert 'clip' not in found['recipes'][RIVAL] and found['recipes'][RIVAL]['lr'] and 'binary' not in found['rows'][RIVAL] and 'binary' in found['rows']['JointSeg']
    assert len(said) == 1 + (2 + 2 + 5) + (1 + 5) + (2 + 2 + 5) and set(found['rows']) == {'JointSeg', 'segmenter alone', RIVAL} and found['chosen']['JointSeg'] in ('base', 'other')
    assert said[0].endswith('24 runs to do or more, 1 at once') and 'JointSeg, base, tried: lesions' in said[1] and '23 runs and about' in said[1] and ', final: lesions' in said[3] and '0 runs and about' in said[-1]
    assert on_real_eyes(tmp_path, eyes, small, dict(base={}, other=dict(lr=.05)), device='cpu', say=lambda t: 1/0) == found == json.loads((tmp_path/'real.json').read_text())
    table = real_table(found)
    assert 'microaneurysm, AUPR' in table and 'nan' not in table and 'mean IoU of lesions' in table
    assert set(found['tried']['JointSeg']) == set(found['finals']['JointSeg']) == {'base', 'other'} and found['finals']['segmenter alone'] == {} and found['tried']['JointSeg']['base']['steps'] == 1 and found['finals']['JointSeg']['base']['steps'] == small.steps and found['machine']['device'] == 'cpu'

def test_the_rival_begins_the_same_each_time_and_leaves_our_chance_alone(eyes, monkeypatch):
    began = []
    monkeypatch.setattr(R, 'unet', net); monkeypatch.setattr(R, 'train_other', lambda net, *a: began.append(net.weight))
    contest, before = Contest(eyes, small, dict(base={})), torch.get_rng_state()
    for _ in range(2): contest.rival(small, eyes, None, None, 1.)
    assert torch.equal(*began) and torch.equal(before, torch.get_rng_state())

def test_a_costlier_try_takes_fewer_steps(eyes):
    base = replace(small, steps=60)
    tries = TRIED | dict(middle={}, stride_1=dict(stem_stride=1), base_net=dict(net='base'))
    steps = {w: r.steps for w, r in Contest(eyes, base, tries, rival=False).tries['JointSeg'].items()}
    assert steps['base'] == steps['slower'] == steps['as_it_is'] == steps['shared'] == 60 and 10 < steps['stride_1'] < 30 and 10 < steps['base_net'] < 40

def test_for_longer_everybody_has_more_steps_or_time_and_a_rate_for_them(eyes, tmp_path, monkeypatch):
    "Three rates meet in a final; folds join what is there already; the rival has the time that ours takes for longer."
    monkeypatch.setattr(R, 'unet', net)
    tries = dict(base={}, other=dict(lr=.05))
    short = on_real_eyes(tmp_path, eyes, small, tries, device='cpu', say=lambda t: None)
    said = []
    found = on_real_eyes(tmp_path, eyes, small, tries, longer=2, device='cpu', say=said.append)
    names, done = list(short['rows']), R.read_runs(tmp_path)
    assert len(said) == 1 + 3*(3 + 5) and all(LONGER in line for line in said[1:]) and said[0].endswith('24 runs to do or more, 1 at once')
    assert list(found['rows']) == names + [n + LONGER for n in names] and {n: found['rows'][n] for n in names} == short['rows'] and found['tried'] == short['tried']
    assert 'binary' in found['rows']['JointSeg' + LONGER] and 'binary' not in found['rows'][RIVAL + LONGER] and 'clip' not in found['recipes'][RIVAL + LONGER]
    longer = Contest(eyes, small, tries, longer=2).standings(done)
    for n in ('JointSeg', 'segmenter alone'):
        assert found['rows'][n + LONGER]['steps'] == [2*small.steps]*5 and {w: round(t.recipe.lr/found['recipes'][n]['lr'], 2) for w, t in longer[n + LONGER].finals.items()} == {'as chosen': 1, 'a third': .33, 'a ninth': .11}
        assert found['recipes'][n + LONGER] == dict(found['recipes'][n], steps=2*small.steps, lr=longer[n + LONGER].finals[found['chosen'][n + LONGER]].recipe.lr)
        best = max(found['finals'][n + LONGER].values(), key=lambda r: r['lesion_miou'] or 0)
        assert found['finals'][n + LONGER][found['chosen'][n + LONGER]]['lesion_miou'] == best['lesion_miou']
    ours, rival = longer['JointSeg' + LONGER], longer[RIVAL + LONGER]
    assert [t.seconds for t in rival.folds] == [done[t.key]['seconds'] for t in ours.folds] and {t.seconds for t in rival.finals.values()} == {done[ours.finals[ours.best].key]['seconds']}
    assert R.ahead(found['rows'], 'segmenter alone' + LONGER) == R.over_folds(*(found['rows'][n + LONGER]['each'] for n in ('JointSeg', 'segmenter alone'))) and R.ahead(found['rows'], 'JointSeg' + LONGER) is None
    assert f"| {' | '.join(found['rows'])} |" in real_table(found)

def test_how_much_longer_is_checked_before_anything_is_trained(eyes):
    for wrong in (.5, 1, -1, 1e6, float('nan')):
        with pytest.raises(ValueError, match='longer=.*allowed: more than 1'): Contest(eyes, small, dict(base={}), rival=False, longer=wrong)

def test_what_is_there_so_far_is_told(eyes, tmp_path):
    "Nothing is trained by a report; a contest of which a part is done tells that part."
    tries = dict(base={}, other=dict(lr=.05))
    nothing = on_real_eyes(tmp_path, eyes, small, tries, rival=False, run=False)
    assert nothing['rows'] == {} and real_table(nothing) == 'No fold is done.' and R.plot_real(nothing) is None
    whole = on_real_eyes(tmp_path, eyes, small, tries, rival=False, device='cpu', say=lambda t: None)
    lines = (tmp_path/'runs.jsonl').read_text().splitlines(True)
    (tmp_path/'runs.jsonl').write_text(''.join(lines[:6]))
    part = on_real_eyes(tmp_path, eyes, small, tries, rival=False, run=False)
    assert part['rows']['JointSeg']['folds'] == 2 and set(part['rows']) == {'JointSeg'} and 'microaneurysm' in real_table(part)
    assert part['tried']['JointSeg'] == whole['tried']['JointSeg'] and part['chosen'] == dict(whole['chosen'], **{'segmenter alone': None})

def counting(monkeypatch, count):
    "Stubs that say how long they took instead of training."
    monkeypatch.setattr(R, 'unet', lambda n: None); monkeypatch.setattr(R, 'train_and_count', count)

def a_row(eyes, seconds): return dict(seconds=seconds, steps=1) | R.counts_of(R.OtherSegmenter(nn.Conv2d(3, eyes.n_classes, 1), eyes.n_classes, eyes.n_labels), eyes, folds(eyes)[0][1], None)

def test_what_another_run_sets_the_time_of_is_done_again_when_that_time_changes(eyes, tmp_path, monkeypatch):
    "A slower recipe of ours, in the same folder, gives the rival more time, and one that fails the mean of the others."
    slow, given, row = [100.], [], a_row(eyes, 1.)
    def count(how, recipe, source, train, held, seconds=None, device=None):
        if seconds: given.append(seconds)
        elif recipe.agents == 'both' and recipe.lr == .05 and torch.equal(held, folds(eyes)[2][1]): raise FloatingPointError('the seg loss is nan')
        return row | dict(seconds=seconds or slow[0])
    counting(monkeypatch, count)
    all_of_it = lambda **tries: on_real_eyes(tmp_path, eyes, small, tries, device='cpu', say=lambda t: None)
    all_of_it(base={})
    assert given == [100.]*6
    slow[0] = 300.
    found = all_of_it(base=dict(lr=.05))
    assert given[6:] == [300.]*6 and found['rows']['JointSeg']['folds'] == 4 and found['rows'][RIVAL]['folds'] == 5

def test_the_two_best_tries_meet_in_a_final(eyes, tmp_path, monkeypatch):
    "With all of their steps and other eyes held out; who wins there is trained on all folds, whatever came first in the tries. The rival has as much time for it as two tries of ours take."
    seen, row = [], a_row(eyes, 1.)
    first, second = (held for _, held in folds(eyes, folds(eyes)[0][0], n=4)[:2])
    def count(how, recipe, source, train, held, seconds=None, device=None):
        seen.append((recipe.lr, recipe.steps, seconds, held.tolist()))
        assert not set(train.tolist()) & set(held.tolist())
        return row | dict(seconds=seconds or 50., lesion_miou={.3: .3, .2: .2, .05: .1}.get(recipe.lr, .1) if torch.equal(held, first) else {.2: .9}.get(recipe.lr, .4))
    counting(monkeypatch, count)
    found = on_real_eyes(tmp_path, eyes, small, dict(base={}, other=dict(lr=.2), third=dict(lr=.05)), device='cpu', say=lambda t: None)
    ours = [(lr, steps, held) for lr, steps, seconds, held in seen if seconds is None]
    assert [(lr, steps) for lr, steps, held in ours if held == second.tolist()] == [(.3, small.steps), (.2, small.steps)] and found['chosen']['JointSeg'] == 'other'
    assert {held for _, _, seconds, held in ((*a, tuple(h)) for *a, h in seen) if seconds == 100.} == {tuple(second.tolist())} and found['finals'][RIVAL].keys() == {'base', 'other'}, 'all alike: the first two'

def test_where_every_try_fails_that_is_said(eyes, tmp_path, monkeypatch):
    def fails(*a): raise FloatingPointError('the seg loss is nan')
    counting(monkeypatch, fails)
    with pytest.raises(ValueError, match='every try of JointSeg failed.*seg loss is nan.*lower rates'): on_real_eyes(tmp_path, eyes, small, dict(one={}, two=dict(lr=.2)), device='cpu', say=lambda t: None)

def test_a_recipe_under_which_the_loss_is_no_number_is_not_chosen(eyes, tmp_path, monkeypatch):
    row = a_row(eyes, 1.)
    def count(how, recipe, *a):
        if recipe.lr > 1: raise FloatingPointError('the seg loss is nan')
        return row
    counting(monkeypatch, count)
    found = on_real_eyes(tmp_path, eyes, small, dict(hot=dict(lr=5.), tame={}), rival=False, device='cpu', say=lambda t: None)
    assert found['chosen']['JointSeg'] == 'tame' and found['tried']['JointSeg']['hot']['failed'] == 'the seg loss is nan'
    failed = [r for r in read_runs(tmp_path).values() if 'failed' in r]
    assert scores_of(failed, eyes) == dict(failed='the seg loss is nan')

def test_two_workers_share_a_contest(tmp_path, eyes):
    found = on_real_eyes(tmp_path, eyes, small, dict(base={}, other=dict(lr=.05)), rival=False, workers=2, device='cpu', say=lambda t: None)
    assert len(read_runs(tmp_path)) == 15 and found['rows']['JointSeg']['folds'] == 5

@pytest.mark.skipif(importlib.util.find_spec('segmentation_models_pytorch') is None, reason='wants the extra bench')
def test_the_rival_itself(): assert unet(5).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 64, 64)

def test_kept_scores_are_those_of_the_kept_runs():
    "benchmarks/real.json, without a photograph: IoU from the counts of every fold, and the tries as they were."
    folder = Path(__file__).parent.parent/'benchmarks'
    kept, runs = json.loads((folder/'real.json').read_text()), list(read_runs(folder/'real').values())
    for name, row in kept['rows'].items():
        of = sorted((r for r in runs if r['condition'] == name and r['fold'] > 0 and r['word'] == kept['chosen'][name]), key=lambda r: r['fold'])
        tried, finals = ({r['word']: r for r in runs if r['condition'] == name and r['fold'] == k} for k in (0, -1))
        assert [r['fold'] for r in of] == list(range(1, R.FOLDS + 1))
        counted = iou(sum(torch.tensor(r['masks']) for r in of))
        assert [round(v, 4) for v in counted.tolist()] == pytest.approx([v[0] for v in row['iou'].values()], abs=1e-4)
        assert row['lesion_miou'][0] == pytest.approx(float(counted[1:].mean()), abs=1e-4) and row['each'] == [r['lesion_miou'] for r in of]
        assert (row['steps'], row['seconds']) == ([r['steps'] for r in of], sum(r['seconds'] for r in of))
        for c, v in row['aupr'].items(): assert v == R.over_folds([r['aupr'][c] for r in of])
        for c, v in row['iou'].items(): assert v[1] <= v[0] <= v[2]
        for there, key in ((tried, 'tried'), (finals, 'finals')): assert {w: r['iou'] for w, r in there.items()} == {w: r['iou'] for w, r in kept[key].get(name, {}).items()}
        best = lambda rows: sorted(rows, key=lambda w: -rows[w]['lesion_miou'])
        assert set(finals) == (set(R.LOWER) if name.endswith(LONGER) else set(best(tried)[:2])) and kept['chosen'][name] == best(finals)[0]
    for longer in (False, True):
        assert len({(r['facts']['device_name'], r['facts']['precision']) for r in runs if r['condition'].endswith(LONGER) == longer}) == 1, 'one machine for each length: equal time means nothing across two'

def test_the_recipe_for_photographs_is_the_one_that_was_measured():
    kept = json.loads((Path(__file__).parent.parent/'benchmarks'/'real.json').read_text())
    assert told(recipe('modern')) == kept['recipes']['JointSeg' + LONGER]
