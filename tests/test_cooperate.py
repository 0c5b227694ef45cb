"""The trainer: knobs that replay, states that resume, and every reading of the paper, on a network of a few thousand weights."""
import copy, json, os, subprocess, sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from jointseg_nb.agents import JointSeg
from jointseg_nb.cooperate import LIVE, Cooperation, Nesterov, collapse_warning, make_streams, parts, polynomial, replay, set_up, stalled, sweep_rates
from jointseg_nb.data import Source, embedded
from jointseg_nb.engine import Engine
from jointseg_nb.evaluate import model_facts
from jointseg_nb.noise import PartialRandomLabels
from jointseg_nb.recipes import CHOICES, RANGES, RECIPES, Recipe, recipe, recipe_from_json, recipe_to_json
from jointseg_nb.rivals import budget

TINY = recipe('pocket', size=32, crop=16, pad=2, steps=40, clf_batch=4, seg_batch=2, precision='float32')
EYES = embedded(30, seed=3, size=32)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "The bits of a step depend on the number of threads, and one is the fastest for steps as small as these."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class As:
    "A stream whose images have another type."
    def __init__(self, stream, dtype): self.stream, self.augment, self.dtype = stream, stream.augment, dtype
    def __next__(self):
        b = next(self.stream)
        return b._replace(x=b.x.to(self.dtype))


def trainer(dtype=torch.float32, **changes):
    "A trainer of a very small network."
    r = replace(TINY, **changes)
    streams = make_streams(EYES, parts(EYES, r)[0], r)
    if dtype != torch.float32: streams = [As(s, dtype) for s in streams]
    net = JointSeg(EYES.n_labels, EYES.n_classes, widths=(8, 16), c_width=16, blocks=1, norm=r.norm, seed=r.seed).to(dtype)
    return Cooperation(net, *streams, r, PartialRandomLabels(EYES.labels, EYES.n_labels, seed=r.seed), engine=Engine('cpu', 'float32'))


def flat(model): return torch.cat([v.detach().flatten().double() for v in model.state_dict().values()])
def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def losses(reports): return [(r.clf_loss, r.seg_loss, r.cosine, r.rates) for r in reports]
def through_json(state): return {k: through_json(v) if isinstance(v, dict) else v if torch.is_tensor(v) else json.loads(json.dumps(v)) for k, v in state.items()}


KNOBS = dict(lr=st.floats(0, 0.5), lr_ratio=st.floats(0.01, 100), ratio_on=st.sampled_from(CHOICES['ratio_on']), noise_kind=st.sampled_from(CHOICES['noise_kind']), weight_decay=st.floats(0, 0.01), clip=st.floats(0, 5), label_noise=st.floats(0, 1),
             label_smoothing=st.floats(0, 0.9), focal_gamma=st.floats(0, 5), augment=st.floats(0, 1), agents=st.sampled_from(['both', 'classifier', 'segmenter']),
             seg_every=st.integers(1, 4), meter_every=st.integers(0, 3), switches=st.lists(st.booleans(), min_size=2, max_size=2).map(lambda row: [row]))
moves = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(KNOBS)).flatmap(lambda name: st.tuples(st.just(name), KNOBS[name]))), max_size=8)
recipes = st.fixed_dictionaries(dict(update=st.sampled_from(CHOICES['update']), order=st.sampled_from(CHOICES['order']), clf_accumulate=st.sampled_from([1, 2]),
                                     average=st.sampled_from([0., 0.9]), seg_loss=st.sampled_from(['ce', 'ce+dice', 'focal']), clf_loss=st.sampled_from(['ce', 'ce+focal']), warmup=st.sampled_from([0, 2])))


@pytest.mark.parametrize('momentum', [0., 0.9])
def test_nesterov_is_that_of_pytorch(momentum):
    "To the last bit, over twenty steps at rates that change; a weight without gradient stays."
    one, other = trainer().model, trainer().model
    groups = lambda m: [list(m.encoder.parameters()), list(m.classifier.parameters())]
    own, theirs = Nesterov(groups(one), momentum), torch.optim.SGD([dict(params=g) for g in groups(other)], lr=0., momentum=momentum, nesterov=momentum > 0)
    draw, idle = torch.Generator().manual_seed(0), groups(one)[1][0]
    for k in range(20):
        for p, q in zip(sum(groups(one), []), sum(groups(other), [])): p.grad = q.grad = None if p is idle else torch.randn(p.shape, generator=draw)
        own.step([0.1/(k + 1), 0.02])
        for g, rate in zip(theirs.param_groups, (0.1/(k + 1), 0.02)): g['lr'] = rate
        theirs.step()
    assert torch.equal(flat(one), flat(other)) and idle not in own.past


def test_a_training_does_not_load_the_compiler():
    "It takes a second, for which the first masks would wait."
    code = '''import sys
from test_cooperate import trainer
t = trainer(average=0.9, clip=1.)
t.step()
print('torch._dynamo' in sys.modules)'''
    done = subprocess.run([sys.executable, '-c', code], cwd=Path(__file__).parent, env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)), capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr


def test_every_live_knob_is_moved(): assert set(KNOBS) == set(LIVE)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(moves, recipes, st.integers(0, 4))
def test_a_run_replays_and_resumes_to_the_last_bit(moves, changes, cut):
    "Knobs moved at random: recipe and log give the same run again; so does a state taken anywhere, through JSON."
    one, reports, state = trainer(**changes), [], None
    for k in range(4):
        if k == cut: state = copy.deepcopy(one.state_dict())
        for _, (name, value) in (m for m in moves if m[0] == k): one.knobs.set(**{name: value})
        reports.append(one.step())
    state = state or copy.deepcopy(one.state_dict())
    log = json.loads(json.dumps(one.log))
    again = trainer(**changes)
    assert losses(replay(again, log, 4)) == losses(reports) and torch.equal(flat(again.eval_model), flat(one.eval_model))
    other = trainer(**changes)
    other.load_state_dict(through_json(state))
    rest = []
    for k in range(cut, 4):
        other.knobs.set(**{name: new for step, name, _, new in log if step == k})
        rest.append(other.step())
    assert losses(rest) == losses(reports[cut:]) and torch.equal(flat(other.eval_model), flat(one.eval_model)) and torch.equal(flat(other.model), flat(one.model))
    assert other.values == one.values and other.log == one.log


@pytest.mark.parametrize('name, value, holds', [
    ('lr', 0.4, lambda t, r: r.rates['seg_S'] == 0.4*polynomial(3, 40, 0.9)),
    ('lr_ratio', 5., lambda t, r: r.rates['clf_M'] == pytest.approx(5*r.rates['seg_M'])),
    ('ratio_on', 'agent', lambda t, r: r.rates['clf_C'] == pytest.approx(t.values['lr_ratio']*r.rates['seg_S'])),
    ('agents', 'segmenter', lambda t, r: r.clf_loss is None and r.seg_loss is not None),
    ('seg_every', 2, lambda t, r: r.seg_loss is None),
    ('meter_every', 0, lambda t, r: r.cosine is None and r.cosines is None),
    ('augment', 0., lambda t, r: all(s.augment.strength == 0 for s in t.streams.values())),
    ('switches', [[False, False]], lambda t, r: not t.model.switches.any())])
def test_a_knob_holds_in_the_very_next_step_and_is_logged(name, value, holds):
    t = trainer()
    for _ in t.steps(3): pass
    t.knobs.set(**{name: value})
    report = t.step()
    assert holds(t, report)
    assert [c[:2] for c in report.changes] == [(3, name)] and t.log[-1][3] == value


@pytest.mark.parametrize('name, value', [('weight_decay', 0.5), ('clip', 0.01), ('label_noise', 1.), ('noise_kind', 'wrong'), ('label_smoothing', 0.5), ('focal_gamma', 0.)])
def test_a_knob_changes_the_very_next_step(name, value):
    changes = dict(focal_gamma=dict(seg_loss='focal'), noise_kind=dict(label_noise=1.)).get(name, {})
    one, other = trainer(**changes), trainer(**changes)
    other.knobs.set(**{name: value})
    one.step(); other.step()
    assert not torch.equal(weights(one.model), weights(other.model))


def test_the_kind_of_noise_is_live_and_keeps_its_draws():
    "A trainer whose kind was moved sees the labels of one that was made with that kind; moved back, its own again."
    def batches(start, moves):
        t, seen, got = trainer(label_noise=0.8, noise_kind=start), [], None
        t.noise = PartialRandomLabels(EYES.labels, EYES.n_labels, seed=0, kind=start)
        t.values['noise_kind'] = start
        own = t.next_batch
        def noted(agent):
            x, y = own(agent)
            if agent == 'clf': seen.append(y.tolist())
            return x, y
        t.next_batch = noted
        for k in range(6):
            if k in moves: t.knobs.set(noise_kind=moves[k])
            t.step()
        return seen
    plain, other = batches('uniform', {}), batches('wrong', {})
    moved = batches('uniform', {2: 'wrong', 4: 'uniform'})
    assert moved == plain[:2] + other[2:4] + plain[4:] and plain != other


@pytest.mark.parametrize('update', CHOICES['update'])
def test_masks_without_a_known_pixel_teach_nothing_and_stop_nothing(update):
    t, u = trainer(update=update, weight_decay=0., agents='segmenter', momentum=0.), trainer(update=update)
    own = t.next_batch
    t.next_batch = u.next_batch = lambda agent: (lambda x, y: (x, torch.full_like(y, 255) if agent == 'seg' else y))(*own(agent))
    before = weights(t.model).clone()
    report = t.step()
    assert report.seg_loss == 0 and torch.equal(weights(t.model), before)
    own = u.__class__.next_batch.__get__(u)
    report = u.step()
    assert report.seg_loss == 0 and report.cosine == 0 and report.clf_loss > 0 and torch.isfinite(flat(u.model)).all()


def test_a_network_that_is_no_number_is_not_taken_for_masks_without_a_known_pixel():
    t = trainer(agents='segmenter')
    own = t.next_batch
    t.next_batch = lambda agent: (lambda x, y: (x, torch.full_like(y, 255)))(*own(agent))
    with torch.no_grad(): t.model.decoder.head.bias.fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='the seg loss is nan'): t.step()


@pytest.mark.parametrize('told', [True, False, None])
def test_a_network_knows_whether_the_surround_was_cut_away_and_nothing_else_changes(told):
    plain, t = (set_up(TINY, s, 'cpu').trainer for s in (EYES, EYES._with(crop_field=told)))
    assert t.model.meta == plain.model.meta | ({} if told is None else dict(crop_field=told)) and model_facts(t.model)['crop_field'] is (told is not False)
    assert [r.seg_loss for r in t.steps(3)] == [r.seg_loss for r in plain.steps(3)] and torch.equal(weights(t.model), weights(plain.model))


@pytest.mark.parametrize('norm, momentum', [('batch', 0.9), ('agent', 0.9), ('group', 0.)])
def test_two_optimisers_of_one_schedule_are_one(norm, momentum):
    "Simultaneous updates equal one Nesterov SGD on r J_clf + J_seg, decay (r + 1, r, 1) times on (M, C, S), in float64."
    how = dict(update='simultaneous', ratio_on='agent', lr=1e-3, lr_ratio=3., norm=norm, momentum=momentum, warmup=3)
    two, one = trainer(torch.float64, **how), trainer(torch.float64, **how)
    r = two.recipe
    single = torch.optim.SGD(one.model.parameters(), lr=0., momentum=momentum, nesterov=momentum > 0)
    for k in range(10):
        one.model.train().zero_grad()
        (3*one.loss_of('clf', *one.next_batch('clf')) + one.loss_of('seg', *one.next_batch('seg'))).backward()
        for times, params in ((4, one.model.shared_parameters()), (3, one.model.classifier_parameters()), (1, one.model.segmenter_parameters())):
            for p in params:
                if p.ndim > 1: p.grad += times*r.weight_decay*p.detach()
        single.param_groups[0]['lr'] = r.lr*polynomial(k, r.steps, r.power, r.warmup)
        single.step(); two.step()
    assert (weights(two.model) - weights(one.model)).norm() < 1e-12*weights(one.model).norm()
    turns = trainer(torch.float64, **how | dict(update='alternating'))
    for _ in turns.steps(10): pass
    assert (weights(turns.model) - weights(one.model)).norm() > 1e-6*weights(one.model).norm()


@pytest.mark.parametrize('changes', [dict(), dict(clf_weight_power=0.7), dict(clf_loss='focal'), dict(clf_loss='ce+0.5*focal', label_smoothing=0.2, clf_weight_power=0.3)])
def test_a_batch_in_pieces_is_the_batch(changes):
    "With GroupNorm, to rounding in float64."
    grads = []
    for pieces in (1, 2, 3, 7):
        t = trainer(torch.float64, norm='group', clf_batch=7, clf_accumulate=pieces, **changes)
        if t.recipe.clf_weight_power: t.losses['clf'].weight = torch.tensor([0.5, 1., 2., 3., 1.5])
        loss, n, _ = t.gradients('clf')
        grads.append(torch.cat([p.grad.flatten() for p in t.moved['clf']]))
        assert n == 7
    for g in grads[1:]: assert (g - grads[0]).norm() < 1e-12*grads[0].norm()


def test_clipping_shortens_each_agent_alone():
    for agent in ('clf', 'seg'):
        plain, clipped = trainer(weight_decay=0.), trainer(weight_decay=0., clip=0.01)
        grads = []
        for t in (plain, clipped):
            t.gradients(agent)
            grads.append(torch.cat([p.grad.flatten() for p in t.moved[agent]]))
        assert grads[0].norm() > 0.02 and grads[1].norm() == pytest.approx(0.01, rel=1e-3)
        assert torch.allclose(grads[1]/grads[1].norm(), grads[0]/grads[0].norm(), atol=1e-5)


def test_the_average_is_the_average():
    "Against the recursion written out, statistics included; the trained network is not touched by it."
    t, plain = trainer(average=0.5), trainer()
    mine = {k: v.clone() for k, v in t.model.state_dict().items()}
    for k in range(1, 9):
        t.step(); plain.step()
        d = min(0.5, (1 + k)/(10 + k))
        for name, v in t.model.state_dict().items(): mine[name] = d*mine[name] + (1 - d)*v if v.is_floating_point() else v.clone()
    for name, v in t.eval_model.state_dict().items(): assert torch.allclose(v, mine[name], atol=1e-6), name
    assert torch.equal(flat(t.model), flat(plain.model)) and plain.eval_model is plain.model
    assert not any(p.requires_grad for p in t.eval_model.parameters())


def test_a_loss_that_is_no_number_leaves_the_weights():
    t = trainer()
    t.step()
    before = weights(t.model).clone()
    t.losses['clf'].weight = torch.full((5,), float('nan'))
    with pytest.raises(FloatingPointError, match='clf loss is nan at step 2.*lower lr'): t.step()
    assert torch.equal(weights(t.model), before) and t.step_done == 1


@pytest.mark.parametrize('spoil, said', [
    (lambda s: s.pop('momentum'), 'momentum missing'),
    (lambda s: s['model'].pop(next(iter(s['model']))), 'model does not fit'),
    (lambda s: s['streams'].pop('seg'), "streams for \\['clf'\\]"),
    (lambda s: s['momentum']['clf'].update(nobody=torch.zeros(3)), 'nobody'),
    (lambda s: s.update(averaged=s['model']), 'averaged does not fit'),
    (lambda s: s['values'].update(lr=-1.), 'lr=-1.0')])
def test_a_state_that_does_not_fit_is_refused_before_anything_changes(spoil, said):
    t, state = trainer(), trainer().state_dict()
    spoil(state)
    before = flat(t.model).clone()
    with pytest.raises(ValueError, match=said): t.load_state_dict(state)
    assert torch.equal(flat(t.model), before) and t.step_done == 0


def test_a_sweep_leaves_the_trainer_as_it_was():
    t, plain = trainer(average=0.9), trainer(average=0.9)
    t.step(); plain.step()
    s = sweep_rates(t, 'seg', low=1e-3, high=1e3, steps=25)
    assert len(s.rates) == len(s.losses) <= 25 and s.suggested in s.rates
    assert losses(t.steps(3)) == losses(plain.steps(3)) and torch.equal(flat(t.eval_model), flat(plain.eval_model))


@pytest.mark.parametrize('wrong', [dict(steps=1), dict(low=0.), dict(low=2., high=1.)])
def test_a_sweep_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match='allowed: 0 < low < high, and 4 steps or more'): sweep_rates(trainer(), 'seg', **wrong)


@pytest.mark.parametrize('wrong', ['x', None, [[True]], [[True, False], [True]], [True]*12])
def test_switches_that_do_not_fit_are_refused_when_they_are_set(wrong):
    t = trainer()
    with pytest.raises(ValueError, match='1 x 2, decoder levels x encoder levels'): t.knobs.set(switches=wrong)
    assert not t.step().changes


def test_early_stop_rule():
    rising = [(k, k/10) for k in range(10)]
    assert not stalled(rising, 3) and not stalled([], 3) and not stalled(rising, 0)
    assert stalled(rising + [(12, 0.1)], 3) and not stalled(rising + [(11, 0.1)], 3)
    assert stalled([(0, 0.5), (5, float('nan')), (9, 0.5)], 9)


def test_collapse_rule():
    counts = lambda found, missed: torch.tensor([[900, 0], [missed, found]])
    r = recipe('paper', steps=100)
    assert collapse_warning(counts(100, 0), r, 50) is None and collapse_warning(counts(0, 0), r, 50) is None and collapse_warning(counts(0, 100), r, 9) is None
    assert 'weight_power' in collapse_warning(counts(0, 100), r, 50) and collapse_warning(counts(0, 100), replace(r, agents='classifier'), 50) is None
    assert 'lr_ratio' not in collapse_warning(counts(1, 99), replace(r, lr_ratio=0.1), 50)


def test_numbers_of_the_recipe_decide_who_learns_from_what():
    r = replace(TINY, labels=10, masks=5, valid=6., valid_masks=3.)
    graded = Source(EYES.images, EYES.masks, torch.arange(30) >= 20, [l if i < 20 else -1 for i, l in enumerate(EYES.labels.tolist())], title='half and half')
    s = set_up(r, graded, device='cpu')
    clf, seg = (set(s.trainer.streams[k].indices.tolist()) for k in ('clf', 'seg'))
    held = set(s.valid.tolist())
    assert (len(clf), len(seg)) == (10, 5) and not clf & held and not seg & held
    assert (sum(i < 20 for i in held), sum(i >= 20 for i in held)) == (6, 3)
    with pytest.raises(ValueError, match='labels=15, but 14 of the training photographs have a label'): set_up(replace(r, labels=15), graded)


def test_every_field_has_a_check():
    "A field is a word of a list, a number of a range, a sum of losses, a share, a switch or the name."
    checked = set(CHOICES) | set(RANGES) | {'seg_loss', 'clf_loss', 'valid', 'valid_masks', 'flips', 'name'}
    assert {f.name for f in fields(Recipe)} == checked


@pytest.mark.parametrize('name', RECIPES)
def test_named_recipes_go_through_json(name):
    assert recipe_from_json(recipe_to_json(recipe(name))) == recipe(name) == replace(recipe(name)) and recipe(name).name == name


def test_a_recipe_of_before_reads_as_what_it_did():
    "Fields that are newer than a file mean what was done without them."
    old = json.loads(recipe_to_json(recipe('pocket', seg_loss='ce')))
    for new in ('rotate', 'focus', 'labels', 'valid_masks', 'clf_accumulate', 'order', 'seg_every', 'warmup', 'lr_min', 'clip', 'average', 'seg_loss', 'clf_loss', 'clf_weight_power',
                'label_smoothing', 'focal_gamma', 'patience', 'meter_every', 'seg_crop', 'local_contrast'): del old[new]
    assert recipe_from_json(json.dumps(old)) == recipe('pocket', seg_loss='ce')


def test_the_segmenter_has_a_side_of_its_own():
    "Its crops, what they cost, and errors before any work."
    own = recipe('pocket', size=32, crop=32, pad=2, seg_crop=16, clf_batch=6, seg_batch=2, steps=2)
    t = set_up(own, embedded(30, seed=3, size=32), 'cpu').trainer
    assert [next(t.streams[a]).x.shape[-1] for a in ('clf', 'seg')] == [32, 16] and next(t.streams['seg']).y.shape[1:] == (16, 16)
    costs = [budget(t.model, replace(own, seg_crop=c, agents=a)).flops for a in ('segmenter', 'classifier') for c in (0, 16)]
    assert costs[0] == pytest.approx(4*costs[1], rel=.01) and costs[2] == costs[3]
    with pytest.raises(ValueError, match='seg_crop=40 is larger than size'): replace(own, seg_crop=40)
    with pytest.raises(ValueError, match='seg_crop=8; allowed: 16 to 4096 px, or 0'): replace(own, seg_crop=8)
    with pytest.raises(ValueError, match="seg_crop=20 must be a multiple of 8.*nearest is 16"): set_up(replace(own, seg_crop=20), embedded(30, seed=3, size=32), 'cpu')


def test_the_papers_sizes():
    "`paper-full` on a set of EyePACS's size, two eyes a patient, one patient in seven with masks: 25,000 and 3,500 to learn from, 10,000 and 1,500 held out."
    n, patient = 35_126, torch.arange(35_126)//2
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8).expand(n, 3, 8, 8)
    source = Source(images, torch.zeros(1, 8, 8, dtype=torch.uint8).expand(n, 8, 8), patient % 7 == 0, patient % 5, groups=patient.tolist())
    r = recipe('paper-full')
    train, valid = parts(source, r)
    clf, seg = make_streams(source, train, r)
    assert len(clf.indices) == 25_000 and len(seg.indices) == 3_500
    assert abs(len(valid) - 10_000) <= 2 and abs(int(source.has_mask[valid].sum()) - 1_500) <= 2
    held = set(patient[valid].tolist())
    assert not held & set(patient[clf.indices].tolist()) and not held & set(patient[seg.indices].tolist())
