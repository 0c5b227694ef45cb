"""Every metric against its definition, one pixel or one photograph at a time, on random and on degenerate inputs."""
import gc, math, warnings
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from jointseg_nb.agents import JointSeg
from jointseg_nb.data import Source, embedded
from jointseg_nb.evaluate import (Evaluation, accuracy, area_under_roc, average_precision, best_threshold, binary_counts, bootstrap, calibration_error, confusion, confusions,
    dice_of, evaluate, in_top, interval, iou, log_odds, majority, mean_iou, overlaps, paired_interval, pixel_scores, quadratic_kappa, roc, score_counts, sensitivity, specificity,
    t_quantile)

nan = float('nan')
same = lambda a, b, eps=1e-9: np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=0, atol=eps, equal_nan=True)
ratio = lambda a, b: a/b if b else nan

def pairs(pred, true, n):
    "The pixels that count, as a list."
    return [(p, t) for p, t in zip(pred.flatten().tolist(), true.flatten().tolist()) if 0 <= t < n]

def slow_overlap(counted, k):
    "IoU, Dice, sensitivity and specificity of class `k` by sets of pixels."
    painted, there = ({i for i, pt in enumerate(counted) if pt[w] == k} for w in (0, 1))
    rest = set(range(len(counted))) - there
    return (ratio(len(painted & there), len(painted | there)), ratio(2*len(painted & there), len(painted) + len(there)),
            ratio(len(painted & there), len(there)), ratio(len(rest - painted), len(rest)))

n = 4
some = torch.randint(0, n, (3, 6, 6), generator=torch.Generator().manual_seed(0))
degenerate = dict(
    all_ignored=(some, torch.full_like(some, 255)), no_pixels=(some[:, :0], some[:, :0]), one_class=(torch.zeros_like(some), torch.zeros_like(some)),
    never_painted=(torch.zeros_like(some), some), absent_classes=(some.clamp(max=1), some.clamp(max=1)), only_false=(torch.full_like(some, 3), torch.zeros_like(some)),
    perfect=(some, some), some_ignored=(some, some.where(some < 2, 255)), unknown=(some, torch.full_like(some, -1)), one_pixel=(some[:1, :1, :1], some[:1, :1, :1]))

def check_counts(pred, true):
    c, counted = confusion(pred, true, n), pairs(pred, true, n)
    assert c.sum() == len(counted) and all(c[t, p] == counted.count((p, t)) for p in range(n) for t in range(n))
    assert (confusions(pred, true, n).sum(0) == c).all() and confusions(pred, true, n).shape == (len(pred), n, n)
    slow = np.array([slow_overlap(counted, k) for k in range(n)]).T
    for fast, s in zip((iou(c), dice_of(overlaps(c)), sensitivity(c), specificity(c)), slow): assert same(fast, s)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert same(mean_iou(c), np.nanmean(slow[0])) and same(mean_iou(c, lesions=True), np.nanmean(slow[0][1:]))
    assert same(accuracy(c), ratio(sum(p == t for p, t in counted), len(counted)), 1e-6)
    assert same(majority(c), ratio(max(sum(t == k for _, t in counted) for k in range(n)), len(counted)), 1e-6)
    assert same(accuracy(binary_counts(c)), ratio(sum((p > 0) == (t > 0) for p, t in counted), len(counted)), 1e-6)
    assert same(quadratic_kappa(c), slow_kappa(counted), 1e-9)

def slow_kappa(counted):
    "One minus the mean squared distance over that of all pairs of a truth and a prediction."
    if not counted: return nan
    return 1 - ratio(len(counted)*sum((p - t)**2 for p, t in counted), sum((p - t)**2 for p, _ in counted for _, t in counted)) if any(
        p != t for p, _ in counted for _, t in counted) else nan

@pytest.mark.parametrize('name', degenerate)
def test_degenerate_counts(name): check_counts(*degenerate[name])

@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), b=st.integers(1, 3), h=st.integers(1, 5), top=st.integers(1, n + 2))
def test_random_counts(seed, b, h, top):
    g = torch.Generator().manual_seed(seed)
    true = torch.randint(-1, top, (b, h, 3), generator=g)
    check_counts(torch.randint(0, min(n, top), (b, h, 3), generator=g), true.where(true < n, 255))

def test_a_prediction_outside_is_named():
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=f'holds {wrong}.*0 to 3'): confusion(torch.tensor([wrong, 0]), torch.tensor([1, 0]), 4)

def slow_auc(scores, positive):
    both = [(a > b) + (a == b)/2 for a, p in zip(scores, positive) if p for b, q in zip(scores, positive) if not q]
    return sum(both)/len(both) if both else nan

def slow_average_precision(scores, positive):
    "The mean over positives of the precision at their score."
    at = [s for s, p in zip(scores, positive) if p]
    return sum(ratio(sum(p for t, p in zip(scores, positive) if t >= s), sum(t >= s for t in scores)) for s in at)/len(at) if at else nan

@settings(deadline=None, max_examples=80)
@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=25))
def test_curves_with_ties_and_one_kind(pairs):
    scores, positive = torch.tensor([s/6 for s, _ in pairs]), torch.tensor([p for _, p in pairs], dtype=torch.bool)
    values, counts = score_counts(scores, positive)
    assert counts.sum() == len(pairs) and (values.diff() < 0).all()
    assert same(area_under_roc(counts), slow_auc(scores.tolist(), positive.tolist()))
    assert same(average_precision(counts), slow_average_precision(scores.tolist(), positive.tolist()))
    if 0 < positive.sum() < len(pairs):
        fpr, tpr = roc(counts)
        assert same(torch.trapezoid(tpr, fpr), area_under_roc(counts)) and fpr[-1] == tpr[-1] == 1
        best = best_threshold(scores, positive)
        youden = lambda t: ((scores >= t)[positive]).double().mean() - ((scores >= t)[~positive]).double().mean()
        assert youden(best) >= max(youden(t) for t in values.tolist()) - 1e-12
    else:
        with pytest.raises(ValueError, match=f'positive: .* of {len(pairs)} photographs'): best_threshold(scores, positive)

def test_curves_agree_with_torchmetrics():
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision, multiclass_accuracy, multiclass_cohen_kappa, multiclass_jaccard_index
    g = torch.Generator().manual_seed(1)
    for levels in (3, 20, 10**6):
        s, y = (torch.rand(400, generator=g)*levels).round()/levels, torch.rand(400, generator=g) < .2
        counts = score_counts(s, y)[1]
        assert same(area_under_roc(counts), binary_auroc(s, y.long()), 1e-5) and same(average_precision(counts), binary_average_precision(s, y.long()), 1e-5)
    p, t = torch.rand(300, 5, generator=g).softmax(1), torch.randint(0, 5, (300,), generator=g)
    c = confusion(p.argmax(1), t, 5)
    assert same(quadratic_kappa(c), multiclass_cohen_kappa(p, t, 5, weights='quadratic'), 1e-5)
    assert same(iou(c).mean(), multiclass_jaccard_index(p, t, 5), 1e-5)
    for k in (1, 2, 4): assert same(in_top(p, t, k).double().mean(), multiclass_accuracy(p, t, 5, top_k=k, average='micro'), 1e-6)

def test_equal_probabilities_have_one_order():
    assert in_top(torch.full((4, 4), .25), torch.arange(4), 2).tolist() == [True, True, False, False]

@pytest.mark.parametrize('spread', [.3, 3., 6.])
def test_binned_scores(spread):
    "Exactly the average precision of scores rounded to bins; near that of the scores."
    g = torch.Generator().manual_seed(2)
    z, y = torch.randn(3, n, 17, 19, generator=g)*spread, torch.randint(0, n + 1, (3, 17, 19), generator=g)
    z.scatter_add_(1, y.clamp(max=n - 1)[:, None], torch.full((3, 1, 17, 19), spread))
    y[y == n] = 255
    counts = pixel_scores(z, y)
    assert counts.shape == (n, 16384, 2) and (counts.sum((1, 2)) == (y < n).sum()).all()
    assert (counts == sum(pixel_scores(z[i:i + 1], y[i:i + 1]) for i in range(3))).all()
    odds = log_odds(z)
    others = torch.stack([torch.cat([z[:, :k], z[:, k + 1:]], 1).double().logsumexp(1) for k in range(n)], 1)
    assert (odds - (z - others)).abs().max() < 1e-4
    for k in range(n):
        exact, t = (z - others)[:, k][y < n], y[y < n] == k
        rounded = -((32 - odds[:, k][y < n])*256).clamp(0, 16383).floor()
        assert same(average_precision(counts[k]), average_precision(score_counts(rounded, t)[1]), 1e-12)
        assert abs(average_precision(counts[k]) - average_precision(score_counts(exact, t)[1])) < 2e-3

def test_scores_where_nothing_counts():
    counts = pixel_scores(torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255))
    assert counts.sum() == 0 and average_precision(counts).isnan().all()
    sure = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert average_precision(pixel_scores(sure, torch.zeros(1, 4, 4, dtype=torch.long))).tolist()[0] == 1

@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), b=st.integers(1, 40))
def test_calibration_is_its_definition(seed, b):
    g = torch.Generator().manual_seed(seed)
    p, t = torch.randn(b, 3, generator=g).mul(2).softmax(1), torch.randint(0, 3, (b,), generator=g)
    top, said = p.max(1)
    error = 0
    for k in range(15):
        here = (top > k/15) & (top <= (k + 1)/15)
        if here.any(): error += here.double().mean()*abs(top[here].double().mean() - (said == t)[here].double().mean())
    assert same(calibration_error(p, t), error, 1e-5)
    assert math.isnan(calibration_error(p[:0], t[:0]))

def whole(k=60, seed=3):
    "An `Evaluation` of made-up counts: some photographs without masks, some without grades."
    g = torch.Generator().manual_seed(seed)
    pred, true = torch.randint(0, n, (k, 8, 8), generator=g), torch.randint(0, n, (k, 8, 8), generator=g)
    true[::7] = 255
    p, t = torch.randn(k, 5, generator=g).softmax(1), torch.randint(-1, 5, (k,), generator=g)
    each = confusions(pred, true, n)
    return Evaluation(each.sum(0), confusion(p.argmax(1), t, 5), tuple('abcd'), tuple('01234'), overlaps(each).int(), p, t, pixel_scores(torch.randn(k, n, 8, 8, generator=g), true))

def test_intervals_are_those_of_a_slow_bootstrap():
    e = whole()
    fast, again = e.intervals(rounds=200, seed=5), e.intervals(rounds=200, seed=5)
    assert fast == again and fast != e.intervals(rounds=200, seed=6)
    kept = e.overlaps[e.overlaps.sum((1, 2)) > 0].double()
    g, values = torch.Generator().manual_seed(5), []
    for _ in range(4):
        for picks in torch.randint(0, len(kept), (50, len(kept)), generator=g):
            o = kept[picks].sum(0)
            values.append((o[:, 0]/o.sum(1)).mean())
    assert same(fast['miou'], np.quantile(values, [.025, .975]), 1e-4)
    known = e.truth >= 0
    p, t, g, values = e.probabilities[known], e.truth[known], torch.Generator().manual_seed(5), []
    for _ in range(4):
        for picks in torch.randint(0, len(p), (50, len(p)), generator=g):
            c = confusion(p[picks].argmax(1), t[picks], 5)
            values.append([accuracy(c), in_top(p[picks], t[picks]).double().mean(), accuracy(binary_counts(c)), quadratic_kappa(c), area_under_roc(score_counts(1 - p[picks, 0], t[picks] > 0)[1])])
    for k, v in zip(('top1', 'top2', 'binary', 'kappa', 'auc'), np.array(values).T): assert same(fast[k], np.quantile(v, [.025, .975]), 1e-4), k
    m = e.metrics()
    for k in ('miou', 'lesion_miou', 'top1', 'top2', 'binary', 'kappa', 'auc'): assert fast[k][0] <= m[k] <= fast[k][1]

def test_two_eyes_of_a_patient_that_agree_tell_no_more_than_one():
    e = whole()
    twice = Evaluation(2*e.masks, 2*e.labels, e.mask_classes, e.label_names, e.overlaps.repeat(2, 1, 1), e.probabilities.repeat(2, 1), e.truth.repeat(2), groups=tuple(range(60))*2)
    assert twice.intervals(rounds=200) == e.intervals(rounds=200) == Evaluation(*[getattr(e, k) for k in ('masks', 'labels', 'mask_classes', 'label_names', 'overlaps', 'probabilities', 'truth')], groups=tuple('abcdefghij'[k//10] + str(k) for k in range(60))).intervals(rounds=200)

def test_masks_that_are_not_known_count_nowhere():
    source, net = embedded(8, size=64), JointSeg.pretrained()
    some = torch.tensor([0, 1, 2, 3, 6])
    known = torch.zeros(8, dtype=torch.bool).index_fill(0, some, True)
    partly = Source(source.images, torch.where(known[:, None, None], source.masks, 0), known, source.labels)
    assert torch.equal(evaluate(net, partly).masks, evaluate(net, source, some).masks)

def test_which_photographs_is_told_by_numbers():
    source, net = embedded(8, size=64), JointSeg.pretrained()
    with pytest.raises(ValueError, match='yes or no 8 times.*nonzero'): evaluate(net, source, source.labels > 1)
    with pytest.raises(ValueError, match='indices is empty'): evaluate(net, source, [])
    with pytest.raises(ValueError, match='indices run from 2 to 8; of 8 photographs they are 0 to 7'): evaluate(net, source, [2, 8])

def test_intervals_hold_what_they_promise():
    "Of a share of 0.7 in 80, 95 in 100 intervals should hold the truth."
    g, held = torch.Generator().manual_seed(0), 0
    for k in range(150):
        right = (torch.rand(80, generator=g) < .7).double()
        low, high = interval(bootstrap(lambda w: w @ right/w.sum(1), 80, rounds=300, seed=k))
        held += bool(low <= .7 <= high)
    assert 132 <= held <= 150

def test_t_quantiles():
    known = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 9: 2.26216, 30: 2.04227, 1000: 1.96234}
    for df, t in known.items(): assert abs(t_quantile(.975, df) - t) < 2e-3 and abs(t_quantile(.025, df) + t) < 2e-3

def test_paired_intervals():
    assert same(paired_interval([1., 2, 3], [0., 2, 1]), [1, 1 - 4.30265/3**.5, 1 + 4.30265/3**.5], 1e-3)
    assert same(paired_interval([.5, .5], [.3, .3]), [.2, .2, .2]) and paired_interval([1], [0]) == (1, -math.inf, math.inf)
    g, held = np.random.default_rng(0), 0
    for _ in range(300):
        share, extra = g.normal(0, 1, 4), g.normal(.5, .3, 4)
        _, low, high = paired_interval(share + extra, share)
        held += low <= .5 <= high
    assert 273 <= held <= 297
    with pytest.raises(ValueError, match='3 scores.*2'): paired_interval([1, 2, 3], [1, 2])

@pytest.fixture(scope='module')
def eyes(): return embedded(20, seed=4, size=64)

def test_an_evaluation_is_the_same_in_any_pieces_and_its_parts_agree(eyes):
    model = JointSeg.pretrained()
    a, b = (evaluate(model, eyes, batch_size=k, scores=True) for k in (20, 3))
    assert (a.masks - b.masks).abs().sum() <= 4 and (a.labels == b.labels).all()
    for e in (a, b):
        assert (e.overlaps.sum(0) == overlaps(e.masks)).all() and (confusion(e.probabilities.argmax(1), e.truth, 5) == e.labels).all()
        assert (e.scores.sum((1, 2)) == e.masks.sum()).all()
    quick = evaluate(model, eyes).metrics()
    assert quick.items() <= a.metrics().items() and 'auc' not in quick

def test_masks_or_grades_alone(eyes):
    some = embedded(20, seed=4, size=64)
    some.labels = torch.full_like(some.labels, -1)
    e = evaluate(JointSeg.pretrained(), some, scores=True)
    m = e.metrics()
    assert m['top1'] is m['auc'] is m['top2'] is m['calibration_error'] is None and m['lesion_aupr'] > .5 and set(e.intervals()) == {'miou', 'lesion_miou', 'lesion_dice', 'iou'}
    some = embedded(20, seed=4, size=64)
    some.masks = torch.full_like(some.masks, 255)
    e = evaluate(JointSeg.pretrained(), some, scores=True)
    m = e.metrics()
    assert m['lesion_miou'] is m['lesion_aupr'] is None and m['auc'] > .5 and set(e.intervals()) == {'top1', 'top2', 'binary', 'kappa', 'auc'}

def test_memory_is_flat_in_photographs():
    "What is kept of a photograph does not depend on its pixels."
    small, large = (evaluate(JointSeg.pretrained(), embedded(4, seed=4, size=s), scores=True) for s in (64, 128))
    size = lambda e: sum(t.numel()*t.element_size() for t in (e.masks, e.labels, e.overlaps, e.probabilities, e.truth, e.scores))
    assert size(small) == size(large) and e_bytes(small) < 150

def test_no_photograph_is_kept_of_many():
    "From the second batch to the fortieth, all that is alive grows by the counts of each photograph: neither pictures nor maps pile up."
    model, few, alive = JointSeg.pretrained(), embedded(4, seed=4, size=64), []
    def look(*_):
        gc.collect()
        alive.append(sum(t.numel()*t.element_size() for t in gc.get_objects() if type(t) is torch.Tensor))
    model.register_forward_pre_hook(look)
    assert len(evaluate(model, few, torch.arange(4).repeat(40), batch_size=4, scores=True).truth) == 160
    assert len(alive) == 40 and alive[-1] - alive[1] < 38*4*200, 'a photograph of 64 px is 12,288 bytes, its maps many times that'

def e_bytes(e): return sum(t[0].numel()*t.element_size() for t in (e.overlaps, e.probabilities, e.truth))


def test_nonsense_is_named_with_what_is_allowed():
    p = torch.full((2, 3), 1/3)
    for call, word in ((lambda: confusion(torch.zeros(3), torch.zeros(4), 2), r'pred has shape \(1, 3\) and true has \(1, 4\)'), (lambda: in_top(p, torch.zeros(2), 0), 'k=0'),
                       (lambda: bootstrap(lambda w: w, 3, rounds=0), 'rounds=0'), (lambda: interval(torch.rand(9), 2), 'level=2'), (lambda: t_quantile(1.5, 3), 'p=1.5'), (lambda: t_quantile(.9, 0), 'df=0')):
        with pytest.raises(ValueError, match=word): call()
