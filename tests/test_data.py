"""Mechanism of the rooms data and noise that is no lesson: any input, threads, saving, devices."""
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import load, save

from jointseg_nb.data import Augment, Rows, Source, Stream, embedded, few, join, near, plain_batches, split, standardise, take_rows, take_window
from jointseg_nb.noise import NOISES, PartialRandomLabels


@pytest.fixture(scope='module')
def source(): return embedded(40, seed=3, size=32)


def random_source(n, height=16, width=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda high, *shape: torch.randint(high, shape, generator=g)
    return Source(draw(256, n, 3, height, width).to(torch.uint8), draw(7, n, height, width).to(torch.uint8), labels=draw(5, n))


# --- augmentation

def slow(x, top, left, crop, pad, flips, fill):
    x = F.pad(x, [pad] * 4, value=fill)[..., top + pad:top + pad + crop[0], left + pad:left + pad + crop[1]]
    return x.flip([d for d, f in zip((-2, -1), flips) if f])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_take_window_is_pad_slice_flip(data):
    h, w, pad = (data.draw(st.integers(lo, hi)) for lo, hi in ((3, 12), (3, 12), (0, 6)))
    crop = data.draw(st.integers(1, h + 2 * pad)), data.draw(st.integers(1, w + 2 * pad))
    s = random_source(3, h, w, seed=data.draw(st.integers(0, 99)))
    rows, columns, want_x, want_y = [], [], [], []
    for i in range(3):
        top, left = data.draw(st.integers(-pad, h + pad - crop[0])), data.draw(st.integers(-pad, w + pad - crop[1]))
        flips = data.draw(st.tuples(st.booleans(), st.booleans()))
        r, c = torch.arange(top, top + crop[0]), torch.arange(left, left + crop[1])
        rows.append(r.flip(0) if flips[0] else r)
        columns.append(c.flip(0) if flips[1] else c)
        want_x.append(slow(s.images[i], top, left, crop, pad, flips, 0))
        want_y.append(slow(s.masks[i], top, left, crop, pad, flips, 255))
    rows, columns = torch.stack(rows), torch.stack(columns)
    assert torch.equal(take_window(s.images, rows, columns, 0), torch.stack(want_x))
    assert torch.equal(take_window(s.masks, rows, columns, 255), torch.stack(want_y))


@pytest.mark.parametrize('strength', [0., .3, 1.])
@pytest.mark.parametrize('crop,pad', [(None, 0), (None, 8), (24, 4), (40, 8)])
def test_image_and_mask_stay_in_register(source, crop, pad, strength):
    # the image of each eye is its mask + 1 as a grey level, so the standardised image is an increasing function of the mask
    coded = (source.masks[:, None].expand(-1, 3, -1, -1) + 1) * 20
    x, y = Augment(crop, pad, strength=strength)(coded, source.masks, torch.Generator().manual_seed(5))
    ids = set(source.masks.unique().tolist()) | {255}
    assert set(y.unique().tolist()) <= ids
    for xi, yi in zip(x, y):
        levels = torch.tensor([xi[0][yi == k].unique().numel() for k in yi.unique()])
        assert (levels == 1).all()  # every class id has one grey level: nothing mixed, nothing shifted
        assert xi.unique().numel() == yi.unique().numel()  # and different ids have different ones; padding (255) is black


@pytest.mark.parametrize('colour', [0., 1.])
def test_strength_does_not_shift_the_draws(source, colour):
    a, b = (Stream(source, range(40), 8, Augment(24, colour=colour, strength=s), 'mask', seed=1) for s in (1., 0.))
    for i in range(12):
        if i == 6: b.augment.strength = 1.
        x, y = next(a), next(b)
        assert torch.equal(x.index, y.index)
        if i >= 6: assert torch.equal(x.x, y.x) and torch.equal(x.y, y.y)


def test_flips_happen_half_of_the_time(source):
    u = torch.rand(4000, 7, generator=torch.Generator().manual_seed(0))
    rows, columns = Augment(pad=0).window(u, 32, 32)
    for index in (rows, columns): assert .46 < (index[:, 0] > index[:, -1]).float().mean() < .54
    rows, _ = Augment(pad=0, flips=False).window(u, 32, 32)
    assert (rows[:, 0] < rows[:, -1]).all()


def test_the_inputs_are_left_as_they_were(source):
    images, masks = source.images.clone(), source.masks.clone()
    Augment(colour=1.)(source.images, source.masks, torch.Generator())
    x = source.images.float(); before = x.clone(); standardise(x)
    assert torch.equal(images, source.images) and torch.equal(masks, source.masks) and torch.equal(x, before)


def test_standardise_has_the_floor_and_stays_finite():
    x = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
    x[1, 0, 0, 0] = 8
    out = standardise(x)
    n = 3 * 8 * 8
    assert torch.equal(out[0], torch.zeros(3, 8, 8)) and out.isfinite().all()
    assert out[1].max().item() == pytest.approx((1 - 1 / n) / max((1 / n * (1 - 1 / n))**.5, n**-.5), rel=1e-4)


# --- streams

def test_streams_of_two_threads_do_not_disturb_each_other(source):
    def batches(target, out):
        s = Stream(source, range(40), 8, Augment(24), target, seed=2)
        for _ in range(20): out.append(next(s).x); torch.rand(7)
    alone, together = {}, {}
    for t in ('mask', 'label'): batches(t, alone.setdefault(t, []))
    threads = [threading.Thread(target=batches, args=(t, together.setdefault(t, []))) for t in ('mask', 'label')]
    for t in threads: t.start()
    for t in threads: t.join()
    for t in alone: assert all(torch.equal(a, b) for a, b in zip(alone[t], together[t])) and len(together[t]) == 20


@pytest.mark.parametrize('steps', [0, 1, 4, 5, 13])
def test_resume_through_a_file(source, steps):
    s = Stream(source, range(33), 8, Augment(24, colour=.5), 'mask', seed=4)
    for _ in range(steps): next(s)
    state = s.state_dict()
    blob = save({k: torch.as_tensor(v) for k, v in state.items()})
    want = [next(s) for _ in range(9)]
    fresh = Stream(source, range(33), 8, Augment(24, colour=.5), 'mask', seed=99)
    fresh.load_state_dict(load(blob))
    for a, b in zip(want, fresh): assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert fresh.epoch == s.epoch


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), batch=st.integers(1, 40), steps=st.integers(1, 12))
def test_every_photograph_comes_equally_often(n, batch, steps):
    s = Stream(random_source(n, 2, 2), range(n), batch)
    seen = torch.cat([s._next_index() for _ in range(steps)])
    counts = torch.bincount(seen, minlength=n)
    assert len(seen) == batch * steps and counts.max() - counts.min() <= 1


def test_a_saved_state_does_not_change_with_the_stream(source):
    s = Stream(source, range(40), 8)
    state = s.state_dict(); copy = {k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()}
    for _ in range(12): next(s)
    assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(copy[k])) for k in state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
def test_the_same_batches_on_a_gpu(source):
    a, b = Stream(source, range(40), 8, Augment(24), seed=1), Stream(source.to('cuda'), range(40), 8, Augment(24), seed=1, device='cuda')
    for _ in range(8):
        x, y = next(a), next(b)
        assert y.x.is_cuda and torch.allclose(x.x, y.x.cpu(), atol=1e-4) and torch.equal(x.y, y.y.cpu())


# --- sources and splits

def test_no_masks_take_no_memory():
    s = Source(torch.zeros(1000, 3, 64, 64, dtype=torch.uint8))
    assert s.masks.untyped_storage().nbytes() == 1 and len(s.segmentable) == 0 and s[5].mask is None
    assert len(s.subset([1, 2])) == 2


def test_a_subset_of_a_partially_labelled_source():
    s = random_source(6)
    s = Source(s.images, s.masks, [True, False] * 3, [0, -1, 2, 3, -1, 1], groups=list('aabbcc'), title='t')
    t = s.subset([5, 0, 1])
    assert t.names == ['5', '0', '1'] and t.groups == ['c', 'a', 'a'] and t.labels.tolist() == [1, 0, -1] and t.has_mask.tolist() == [False, True, False]
    assert torch.equal(t.images[0], s.images[5])


def patients(source):
    "What each patient has: grades, masks, stratum."
    out = {}
    for g, label, mask in zip(source.groups, source.labels.tolist(), source.has_mask.tolist()):
        grades, masks, worst = out.get(g, (0, 0, -1))
        out[g] = grades + (label >= 0), masks + mask, max(worst, label)
    return out


def blank(n, side=2): return torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(n, 3, side, side)


def labelled(rows):
    n = len(rows)
    return Source(blank(n), blank(n)[:, 0], [r[2] for r in rows], [r[1] for r in rows], groups=[str(r[0]) for r in rows])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(-1, 4), st.booleans()), min_size=8, max_size=120), st.floats(.1, .6), st.integers(0, 5))
def test_split_never_shares_a_patient(rows, valid, seed):
    s = labelled(rows)
    try: train, held = split(s, valid, seed)
    except ValueError as e:
        assert any(m in str(e) for m in ('patients cannot be split', 'too few to split', 'neither a grade nor a mask')); return
    assert sorted(train.tolist() + held.tolist()) == list(range(len(s)))
    held_patients = {s.groups[i] for i in held}
    assert not {s.groups[i] for i in train} & held_patients
    order = torch.randperm(len(s)).tolist()  # which patient goes where does not depend on the order of the files
    again = labelled([rows[i] for i in order])
    assert {again.groups[i] for i in split(again, valid, seed)[1]} == held_patients
    check_sizes(patients(s), held_patients, valid)


def check_sizes(known, held, valid):
    assert not any(not grades and not masks for g, (grades, masks, _) in known.items() if g in held)  # nothing to validate on: to training
    grades = sum(v[0] for v in known.values())
    marked = {g: (v[1], v[2]) for g, v in known.items() if v[1]}
    graded = {g: (v[0], v[2]) for g, v in known.items() if v[0] and not v[1]}
    check_phase(marked, held, valid * sum(n for n, _ in marked.values()))
    check_phase(graded, held, valid * grades - sum(known[g][0] for g in held & set(marked)))


def check_phase(counts, held, want):
    "To within one patient, as far as there are patients; and a stratum with two patients or more is on both sides where the sizes allow."
    if not counts: return
    total, largest = sum(n for n, _ in counts.values()), max(n for n, _ in counts.values())
    assert abs(sum(n for g, (n, _) in counts.items() if g in held) - min(max(want, 0), total)) <= largest / 2 + 1e-6
    strata = {}
    for g, (n, k) in counts.items(): strata.setdefault(k, []).append((g, n))
    strata = [s for s in strata.values() if len(s) > 1]
    if sum(max(n for _, n in s) for s in strata) > min(want, total - want): return
    for s in strata: assert 0 < sum(g in held for g, _ in s) < len(s)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=4, max_size=60), st.integers(4, 40), st.floats(.2, .8), st.floats(.2, .8), st.integers(0, 3))
def test_two_sets_are_split_apart(graded, marked, valid, valid_masks, seed):
    a = labelled([(f'p{k}', label, False) for k, (label, n) in enumerate(graded) for _ in range(n)])
    b = labelled([(f'm{k}', -1, True) for k in range(marked)])
    s = join(a.subset(range(len(a)), title='a'), b.subset(range(marked), title='b'))
    train, held = split(s, valid, seed, valid_masks)
    assert abs(torch.isin(held, s.gradable).sum() - valid * len(a)) <= 1.5 and abs(torch.isin(held, s.segmentable).sum() - valid_masks * marked) <= .5 + 1e-6
    assert len(train) + len(held) == len(s) and not {s.groups[i] for i in train} & {s.groups[i] for i in held}


@pytest.mark.parametrize('wrong,says', [
    (dict(valid=0), 'valid=0 of 8 graded'), (dict(valid=8), 'a number from 1 to 7'), (dict(valid=-.1), 'a share between 0 and 1'),
    (dict(valid_masks=0), 'valid_masks=0 of 4 photographs with masks'), (dict(valid_masks=9), 'a number from 1 to 3'), (dict(valid=.1, valid_masks=.9), 'belong to the same patients')])
def test_a_split_that_cannot_be_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says): split(labelled([(i // 2, i % 5, i < 4) for i in range(8)]), **wrong)


def test_nothing_known_cannot_be_split():
    with pytest.raises(ValueError, match='neither a grade nor a mask'): split(Source(blank(4)))
    with pytest.raises(ValueError, match='valid_masks=2 of 0 photographs with masks: too few'): split(Source(blank(4), labels=[0, 1, 0, 1]), valid_masks=2)
    with pytest.raises(ValueError, match='cannot be split'): split(Source(blank(4), labels=[0, 1, 0, 1], groups='aaaa'))


@given(st.integers(1, 60), st.integers(0, 9))
def test_few_is_nested(n, seed):
    idx = torch.arange(100, 160)
    small, large = set(few(idx, n, seed).tolist()), set(few(idx, min(60, n + 7), seed).tolist())
    assert len(small) == n and small <= large <= set(idx.tolist())


def test_labels_as_evaluation_batches(source):
    batches = list(plain_batches(source, [3, 1, 2], 2, target='label'))
    assert torch.equal(torch.cat([b.y for b in batches]), source.labels[[3, 1, 2]])
    assert next(plain_batches(source, [0], target=None)).y is None


# --- noise

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=200), st.sampled_from(NOISES), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_noise_nests_and_restores(labels, kind, seed, a, b):
    a, b = sorted((a, b))
    noise = PartialRandomLabels(labels, 5, seed, kind)
    before, at_b = noise.labels_at(a), noise.labels_at(b)
    hit = noise.corrupted(a)
    assert (noise.corrupted(b) | ~hit).all() and torch.equal(at_b[hit], before[hit])
    assert torch.equal(noise.labels_at(a), before) and torch.equal(noise.labels_at(0), torch.tensor(labels))
    unknown = torch.tensor(labels) < 0
    assert (at_b[unknown] == -1).all() and (at_b[~unknown] >= 0).all() and (at_b < 5).all()
    if kind == 'wrong': assert torch.equal(noise.changed(b), noise.corrupted(b))
    if kind == 'neighbour': assert ((at_b - torch.tensor(labels)).abs() <= 1).all()
