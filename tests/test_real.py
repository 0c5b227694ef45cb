"""Folds, the same time for all, and runs that are done once."""
import importlib.util, json
from dataclasses import replace
import pytest, torch
from torch import nn
from jointseg_nb import real as R
from jointseg_nb.data import embedded
from jointseg_nb.evaluate import evaluate
from jointseg_nb.real import REAL, TRIED, TRIED_UNET, cross_validate, folds, joined, on_real_eyes, real_table, scores_of, train_other, unet
from jointseg_nb.recipes import Recipe

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
    for changes in [*TRIED.values(), *TRIED_UNET.values()]: assert isinstance(replace(REAL, **changes), Recipe)

def test_folds_together_are_what_one_evaluation_of_all_would_be(eyes):
    torch.manual_seed(0)
    model = R.OtherSegmenter(nn.Conv2d(3, eyes.n_classes, 3, padding=1), eyes.n_classes, eyes.n_labels).eval()
    rows = [R.counts_of(model, eyes, held, None) | dict(seconds=1., steps=1, fold=k + 1) for k, (_, held) in enumerate(folds(eyes))]
    whole, parts = evaluate(model, eyes).metrics(), joined(rows, eyes).metrics()
    assert all(parts[k] == whole[k] for k in ('iou', 'dice', 'lesion_miou', 'confusion'))
    s = scores_of(rows, eyes)
    assert s['folds'] == 5 and s['iou']['background'][1] <= s['iou']['background'][0] <= s['iou']['background'][2] and json.dumps(s)

def test_another_segmenter_takes_its_time_and_leaves_our_chance_alone(eyes):
    model, _, seconds, steps = train_other(nn.Conv2d(3, eyes.n_classes, 1), replace(small, lr=.01), eyes, *folds(eyes)[0], seconds=.3, device='cpu')
    assert .3 <= seconds < 3 and steps >= 1 and not model.net.bias.isnan().any()
    before = torch.get_rng_state()
    assert torch.equal(R._seeded(nn.Linear, 3, 2, 2).weight, R._seeded(nn.Linear, 3, 2, 2).weight)
    assert torch.equal(before, torch.get_rng_state())

def test_without_the_rival_that_is_said_before_anything_is_trained(eyes, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'jointseg_nb\[bench\].*rivals=False'): on_real_eyes(tmp_path, eyes, small)
    assert not list(tmp_path.iterdir())

def test_all_of_it_and_nothing_twice(eyes, tmp_path, monkeypatch):
    monkeypatch.setattr(R, 'unet', lambda n: nn.Conv2d(3, n, 3, padding=1))
    said = []
    found = on_real_eyes(tmp_path, eyes, small, dict(base={}, other=dict(lr=.05)), device='cpu', say=said.append)
    assert len(said) == (2 + 5) + (1 + 5) + (7 + 5) and set(found['rows']) == {'JointSeg', 'segmenter alone', 'Unet(resnet34)'} and found['chosen']['JointSeg'] in ('base', 'other')
    assert on_real_eyes(tmp_path, eyes, small, dict(base={}, other=dict(lr=.05)), device='cpu', say=lambda t: 1/0) == found == json.loads((tmp_path/'real.json').read_text())
    table = real_table(found)
    assert 'microaneurysm, AUPR' in table and 'nan' not in table and 'mean IoU of lesions' in table

def test_what_another_run_sets_the_time_of_is_done_again_when_that_time_changes(eyes, tmp_path, monkeypatch):
    "Stubs that say how long they took: a slower recipe of ours, in the same folder, gives the rival more time, and one that fails the mean of the others."
    slow, given = [100.], []
    row = lambda seconds: dict(seconds=seconds, steps=1) | R.counts_of(R.OtherSegmenter(nn.Conv2d(3, eyes.n_classes, 1), eyes.n_classes, eyes.n_labels), eyes, folds(eyes)[0][1], None)
    def count(how, recipe, source, train, held, seconds=None, device=None):
        if seconds: given.append(seconds)
        elif recipe.agents == 'both' and recipe.lr == .05 and torch.equal(held, folds(eyes)[2][1]): raise FloatingPointError('the seg loss is nan')
        return row(seconds or slow[0])
    monkeypatch.setattr(R, 'unet', lambda n: None); monkeypatch.setattr(R, 'train_and_count', count)
    all_of_it = lambda **tries: on_real_eyes(tmp_path, eyes, small, tries, device='cpu', say=lambda t: None)
    all_of_it(base={})
    assert given == [100.]*12
    slow[0] = 300.
    found = all_of_it(base=dict(lr=.05))
    assert given[12:] == [300.]*12 and found['rows']['JointSeg']['folds'] == 4 and found['rows']['Unet(resnet34)']['folds'] == 5

def test_where_every_try_fails_that_is_said(eyes, tmp_path):
    def fails(*a): raise FloatingPointError('the seg loss is nan')
    with pytest.raises(ValueError, match='every try of x failed.*seg loss is nan.*lower rates'): R.chosen(tmp_path, 'x', fails, dict(one={}, two=dict(lr=.2)), small, eyes, device='cpu', say=lambda t: None)

def test_a_recipe_under_which_the_loss_is_no_number_is_not_chosen(eyes, tmp_path, monkeypatch):
    def fails(recipe, *a):
        if recipe.lr > 1: raise FloatingPointError('the seg loss is nan')
        return R.train_ours(recipe, *a)
    best, rows = R.chosen(tmp_path, 'x', fails, dict(wild=dict(lr=5.), tame={}), small, eyes, device='cpu', say=lambda t: None)
    assert best == 'tame' and rows['wild']['failed']
    assert scores_of([rows['wild']], eyes) == dict(failed='the seg loss is nan')

@pytest.mark.skipif(importlib.util.find_spec('segmentation_models_pytorch') is None, reason='wants the extra bench')
def test_the_rival_itself(): assert unet(5).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 64, 64)
