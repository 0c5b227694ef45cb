"""Every switch of a recipe with every other: any two of them, at any of their settings, train together."""
import copy, itertools, random

import pytest
import torch

from jointseg_nb.cooperate import set_up
from jointseg_nb.data import embedded
from jointseg_nb.evaluate import evaluate
from jointseg_nb.recipes import CHOICES, recipe

SMALL = dict(size=32, crop=32, pad=2, steps=8, clf_batch=6, seg_batch=2, valid=0.2)
SWITCHES = {k: v for k, v in CHOICES.items()} | dict(
    net=('small',), label_noise=(0., 0.5), seg_loss=('ce', 'focal', 'dice', 'ce+dice', '0.5*ce+dice+2*focal'), clf_loss=('ce', 'focal', 'ce+0.5*focal'),
    clf_accumulate=(1, 3), seg_every=(1, 2), warmup=(0, 3), average=(0., 0.9), clip=(0., 0.5), weight_power=(0., 0.4), clf_weight_power=(0., 0.5),
    label_smoothing=(0., 0.2), focal_gamma=(0., 2.), rotate=(0., 30.), colour=(0., 0.3), augment=(0., 1.), focus=(0., 0.7), seg_crop=(0, 16), local_contrast=(0, 8), flips=(True, False), masks=(0, 5), labels=(0, 6),
    lr_min=(0., 0.1), power=(0., 0.9), momentum=(0., 0.9), weight_decay=(0., 5e-4), meter_every=(0, 1, 2), lr_ratio=(0.1, 1., 30.), valid_masks=(0., 6.))
EYES = embedded(30, seed=3, size=32)


def pairs(row): return set(itertools.combinations(sorted(row.items(), key=lambda kv: kv[0]), 2))


def rows_of_all_pairs(switches, tries=20):
    "Settings of all switches, as few as a greedy search finds, in which any two settings meet."
    chance = random.Random(0)
    left = {p for a, b in itertools.combinations(sorted(switches), 2) for p in itertools.product([(a, v) for v in switches[a]], [(b, v) for v in switches[b]])}
    while left:
        must = dict(min(left, key=repr))
        some = [{k: chance.choice(v) for k, v in sorted(switches.items())} | must for _ in range(tries)]
        best = max(some, key=lambda row: len(pairs(row) & left))
        left -= pairs(best)
        yield best


ROWS = list(rows_of_all_pairs(SWITCHES))


def test_any_two_meet():
    met = set().union(*map(pairs, ROWS))
    for a, b in itertools.combinations(sorted(SWITCHES), 2):
        assert all(((a, x), (b, y)) in met for x in SWITCHES[a] for y in SWITCHES[b]), (a, b)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(t): return torch.cat([v.detach().flatten().double() for v in t.model.state_dict().values()])


@pytest.mark.parametrize('row', ROWS, ids=range(len(ROWS)))
def test_two_steps_whatever_is_switched_on(row):
    "Two steps, finite and not for nothing; the second from a saved state gives the same bits; the network can be scored."
    setup = set_up(recipe('pocket', **SMALL | row), EYES, 'cpu')
    t, before = setup.trainer, weights(setup.trainer)
    first, state = t.step(), copy.deepcopy(t.state_dict())
    second = t.step()
    for report in (first, second):
        for loss, agent in ((report.clf_loss, 'segmenter'), (report.seg_loss, 'classifier')):
            assert loss is None or loss == loss and loss < 1e4, (agent, loss)
    assert weights(t).isfinite().all() and (weights(t) != before).any()
    again = set_up(recipe('pocket', **SMALL | row), EYES, 'cpu').trainer
    again.load_state_dict(state)
    assert (again.step().clf_loss, again.step_done) == (second.clf_loss, 2) and torch.equal(weights(again), weights(t))
    scores = evaluate(t.eval_model, setup.source, setup.valid, t.recipe.crop, engine=t.engine).metrics()
    assert 0 <= scores['miou'] <= 1 and 0 <= scores['top1'] <= 1
