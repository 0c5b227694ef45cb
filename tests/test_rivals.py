"""The rivals: published sizes, shapes, gradients, bits, and the two-step protocol in our trainer."""
import math
from dataclasses import replace
import pytest, torch
from jointseg_nb.agents import JointSeg
from jointseg_nb.blocks import count_parameters
from jointseg_nb.cooperate import set_up
from jointseg_nb.data import embedded
from jointseg_nb.recipes import recipe
from jointseg_nb.rivals import RIVALS, Ablation, Budget, Nothing, Rival, budget, match_width, step_flops, transfer, two_steps, with_model

segmenters, classifiers = ('fcn8', 'unet', 'unet_inception'), ('vgg16', 'vgg19', 'inception3')
options = dict(fcn8=dict(grid=1), vgg16=dict(grid=1), vgg19=dict(norm='batch', grid=1), inception3=dict(aux=True), unet_inception=dict(size='small'))
make = lambda kind, seed=0, width=.125, **more: Rival(kind, width=width, seed=seed, **(options.get(kind, {}) | more))
short = dict(steps=8, lr=.02, lr_ratio=1., clf_batch=4, seg_batch=2, precision='float32')
alone = {who: recipe('pocket', agents=who, **short) for who in ('classifier', 'segmenter')}
duty = lambda kind: alone['segmenter' if kind in segmenters else 'classifier']

@pytest.fixture(scope='module')
def eyes(): return embedded(40, size=64)

@pytest.mark.parametrize('kind, more, published', [('vgg16', {}, 138_357_544), ('vgg19', {}, 143_667_240), ('vgg19', dict(norm='batch'), 143_678_248),
    ('inception3', {}, 23_834_568), ('inception3', dict(aux=True), 27_161_264)])
def test_published_counts(kind, more, published):
    with torch.device('meta'): assert count_parameters(Rival(kind, n_labels=1000, **more)) == published

def test_kinds(): assert set(RIVALS) == {*segmenters, *classifiers}

@pytest.mark.parametrize('kind', RIVALS)
@pytest.mark.parametrize('side', [64, 96])
def test_shapes_and_parts(kind, side):
    m = make(kind, n_labels=3, n_classes=4).eval()
    x = torch.randn(2, 3, side, side + 32)
    with torch.no_grad(): grades, masks = m(x)
    assert grades.shape == (2, 3) and masks.shape == (2, 4, side, side + 32)
    assert torch.equal(m.classify(x), grades) and torch.equal(m.segment(x), masks)
    named = [p for part in (m.shared_parameters, m.classifier_parameters, m.segmenter_parameters) for p in part()]
    assert len({id(p) for p in named}) == len(named) == len(list(m.parameters()))
    assert [tuple(e.shape[2:]) for e in m.encode(x)] == [(side//s, (side + 32)//s) for s in m.encoder.strides]
    assert isinstance(m.decoder, Nothing) == (kind in classifiers) == (not m.segmenter_parameters())

@pytest.mark.parametrize('kind', RIVALS)
def test_what_is_no_image_is_refused(kind):
    for x in (torch.zeros(1, 3, 50, 64), torch.zeros(3, 64, 64), torch.zeros(1, 1, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)):
        with pytest.raises(ValueError, match='x has'): make(kind)(x)

@pytest.mark.parametrize('kind', RIVALS)
def test_gradients_reach_the_agents_parameters_and_no_others(kind, eyes):
    t = with_model(set_up(duty(kind), eyes, 'cpu'), make(kind)).trainer
    agent = 'seg' if kind in segmenters else 'clf'
    t.step()                       # FCN-8s's scores begin at zero: nothing passes them in the first step
    t.gradients(agent)
    other = t.model.classifier_parameters() if agent == 'seg' else t.model.segmenter_parameters()
    assert all(p.grad is None for p in other)
    for name, p in t.model.named_parameters():
        if any(p is q for q in other): continue
        assert p.grad is not None and p.grad.isfinite().all(), name
    moved = sum((p.grad != 0).any().item() for p in t.moved[agent])
    assert moved > .95*len(t.moved[agent])

def weights(setup): return {k: v.clone() for k, v in setup.trainer.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('kind', ['fcn8', 'unet', 'vgg19', 'inception3'])
def test_the_same_bits_again_and_after_a_resume(kind, eyes):
    "Dropout included, whatever else draws from the global generator."
    runs = []
    for disturb in (0, 5):
        setup = with_model(set_up(duty(kind), eyes, 'cpu'), make(kind))
        for _ in range(4):
            torch.rand(disturb + 1)
            setup.trainer.step()
            if setup.trainer.step_done == 2: kept = {k: (v.copy() if isinstance(v, dict) else v) for k, v in setup.trainer.state_dict().items()} | dict(model=weights(setup),
                momentum={a: {n: v.clone() for n, v in d.items()} for a, d in setup.trainer.state_dict()['momentum'].items()})
        runs.append(weights(setup))
    assert same(*runs)
    fresh = with_model(set_up(duty(kind), eyes, 'cpu'), make(kind, seed=9))
    fresh.trainer.load_state_dict(kept)
    for _ in range(2): fresh.trainer.step()
    assert same(weights(fresh), runs[0])

def test_a_seed_is_a_network():
    assert same(make('fcn8', 1).state_dict(), make('fcn8', 1).state_dict()) and not same(make('fcn8', 1).state_dict(), make('fcn8', 2).state_dict())

@pytest.mark.parametrize('kind', RIVALS)
def test_saved_and_loaded(kind, tmp_path):
    m = make(kind).eval()
    again = Rival.load(m.save(tmp_path/'m.safetensors'))
    assert again.config == m.config and same(again.state_dict(), m.state_dict())

@pytest.mark.parametrize('kind', segmenters)
def test_two_steps(kind, eyes):
    first = replace(alone['classifier'], steps=5)
    seen, trained = [], []
    second, cost = two_steps(lambda: make(kind), eyes, first, alone['segmenter'], 'cpu', look=lambda r: seen.append(r.clf_loss))
    assert len(seen) == 5 and second.trainer.step_done == 0
    began, fresh = weights(second), make(kind).state_dict()
    changed = [k for k in began if not torch.equal(began[k], fresh[k])]
    assert any(k.startswith('encoder.') for k in changed) and any(k.startswith('classifier.') for k in changed)
    assert ('decoder.fc6.weight' in changed) == (kind == 'fcn8') and 'decoder.head.weight' not in changed
    for _ in range(4): trained.append(second.trainer.step().seg_loss)
    after = weights(second)
    assert all(torch.equal(after[k], began[k]) for k in after if k.startswith('classifier.')) and all(map(math.isfinite, trained))
    assert cost == budget(make(kind), first) + budget(make(kind), alone['segmenter'])
    assert (cost.clf_images, cost.seg_images) == (5*4, 8*2)

def test_two_steps_want_one_split(eyes):
    with pytest.raises(ValueError, match='agree on seed.*seed: 1 and 0'): two_steps(lambda: make('unet'), eyes, replace(alone['classifier'], seed=1), alone['segmenter'], 'cpu')
    with pytest.raises(ValueError, match="agents='classifier'"): two_steps(lambda: make('unet'), eyes, alone['segmenter'], alone['segmenter'], 'cpu')

def test_our_own_network_can_be_pretrained(eyes):
    second, _ = two_steps(lambda: JointSeg(size='small', seed=0), eyes, replace(alone['classifier'], steps=2), alone['segmenter'], 'cpu')
    assert second.trainer.step().seg_loss > 0

def test_what_is_handed_on_is_what_is_judged(eyes):
    "With averaged weights: those of the first step, in the second's network and in its average."
    both = [replace(alone[who], average=.9, steps=3) for who in ('classifier', 'segmenter')]
    second, _ = two_steps(lambda: make('unet'), eyes, *both, 'cpu')
    fresh, began, judged = make('unet').state_dict(), weights(second), second.trainer.eval_model.state_dict()
    assert all(torch.equal(judged[k], began[k]) for k in began) and any(not torch.equal(began[k], fresh[k]) for k in began if k.startswith('encoder.'))

def test_a_rival_learns(eyes):
    "A small UNet that sees two eyes again and again learns their masks."
    t = with_model(set_up(replace(alone['segmenter'], steps=40, masks=2, seg_batch=2, lr=.2, augment=0.), eyes, 'cpu'), make('unet_inception', width=.25)).trainer
    losses = [r.seg_loss for r in t.steps()]
    assert sum(losses[-5:]) < .5*sum(losses[:5])

def test_transfer_refuses_another_network():
    with pytest.raises(ValueError, match='does not fit'): transfer(make('unet'), make('unet', width=.25))

def test_the_second_classifier_counts_in_training_only(eyes):
    with_aux, without = (with_model(set_up(alone['classifier'], eyes, 'cpu'), make('inception3', aux=a)).trainer for a in (True, False))
    x, y = with_aux.next_batch('clf')
    with_aux.model.eval(); maps = with_aux.model.encoder(x); plain = with_aux.loss_of('clf', x, y)
    with_aux.model.train(); more = with_aux.loss_of('clf', x, y)
    assert more > plain*1.05 and not hasattr(without.model.classifier, 'aux')

@pytest.mark.parametrize('kind', RIVALS)
def test_widths(kind):
    target = 400_000
    at = lambda width: Rival(kind, width=width, **options.get(kind, {}))
    with torch.device('meta'): assert .8*target < count_parameters(at(match_width(at, target, count_parameters))) < 1.2*target

def test_budgets_count_what_is_done():
    m, joint = make('unet_inception'), recipe('pocket')
    both, clf, seg = (budget(m, replace(joint, agents=a)) for a in ('both', 'classifier', 'segmenter'))
    assert both == clf + seg and both.clf_images == joint.steps*joint.clf_batch and clf.seg_images == 0
    assert budget(m, replace(joint, seg_every=4)).seg_images == both.seg_images//4
    assert step_flops(m, 'seg', 4, 64) == 2*step_flops(m, 'seg', 2, 64) and step_flops(m, 'seg', 1, 64)*2 == step_flops(m, 'seg', 2, 64)
    assert Budget(1, 2, 3) + Budget(10, 20, 30) == Budget(11, 22, 33)

def test_other_blocks(tmp_path):
    ours, again = JointSeg(size='small', seed=3), Ablation(size='small', seed=3)
    assert same(ours.state_dict(), again.state_dict())
    base = Ablation(size='small', seed=3, residual=False, conv_before_pool=False)
    whole = Ablation(size='small', seed=3, factorised_classifier=False)
    assert count_parameters(base) < count_parameters(ours) < count_parameters(whole)
    x = torch.randn(2, 3, 64, 64)
    wide = Ablation(size='small', seed=3, width=1.5, residual=False, conv_before_pool=False)
    assert count_parameters(wide) > 1.5*count_parameters(base)
    for m in (base, whole, wide, Ablation(size='small', factorised_encoder=True, seed=3)):
        m.eval()
        loaded = Ablation.load(m.save(tmp_path/'m.safetensors'))
        assert torch.equal(loaded(x)[1], m(x)[1])

@pytest.mark.parametrize('wrong, says', [(dict(kind='resnet'), 'choose one of'), (dict(kind='unet', grid=3), 'does not take'), (dict(kind='fcn8', grid=2), 'odd'),
    (dict(kind='fcn8', width=0), 'above 0'), (dict(kind='inception3', norm='group'), 'batch')])
def test_wrong_rivals_are_named(wrong, says):
    with pytest.raises(ValueError, match=says): Rival(**wrong)
