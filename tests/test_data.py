"""Mechanism of the rooms data and noise that is no lesson: any input, files, threads, saving, devices."""
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import load, save

from jointseg_nb import data as room
from jointseg_nb.data import Augment, Rows, Source, Stream, embedded, few, join, near, plain_batches, split, standardise, take_rows, take_window, turn_window
from jointseg_nb.evaluate import confusion
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
    for cut in (take_window, room._slice_window, room._gather_window):  # as on a CPU, as on a GPU
        assert torch.equal(cut(s.images, rows, columns, 0), torch.stack(want_x))
        assert torch.equal(cut(s.masks, rows, columns, 255), torch.stack(want_y))


def test_a_window_may_lie_outside_its_image():
    x = random_source(2, 6, 6).masks
    for start in (-20, -9, 6, 30):
        rows = torch.arange(start, start + 9).expand(2, -1)
        for cut in (room._slice_window, room._gather_window):
            assert torch.equal(cut(x, rows, rows.flip(1), 255), slow_far(x, rows, rows.flip(1)))


def slow_far(x, rows, columns):
    at = lambda i, r, c: int(x[i, r, c]) if 0 <= r < x.shape[1] and 0 <= c < x.shape[2] else 255
    return torch.tensor([[[at(i, r, c) for c in columns[i].tolist()] for r in rows[i].tolist()] for i in range(len(x))], dtype=torch.uint8)


@settings(max_examples=60, deadline=None)
@given(h=st.integers(4, 14), w=st.integers(4, 14), degrees=st.floats(-180, 180), pad=st.integers(0, 4), flips=st.tuples(st.booleans(), st.booleans()))
def test_a_turned_mask_takes_the_nearest_pixel_of_the_place(h, w, degrees, pad, flips):
    # every pixel of the image holds its own place, so what comes out says where it was taken
    place = torch.stack([torch.arange(h)[:, None].expand(h, w), torch.arange(w).expand(h, w), torch.full((h, w), 7)]).to(torch.uint8)[None]
    mask = random_source(1, h, w, seed=h * w).masks
    rows, columns = (torch.arange(-pad, n + pad)[None] for n in (h, w))
    rows, columns = rows.flip(1) if flips[0] else rows, columns.flip(1) if flips[1] else columns
    angle = torch.tensor([degrees])
    y, (r, c, inside) = turn_window(mask, rows, columns, angle, 255, 'nearest')[0], turn_window(place, rows, columns, angle, 0, 'nearest')[0].long()
    assert torch.equal(y == 255, inside == 0) and torch.equal(y[inside > 0], mask[0][r, c][inside > 0])
    a = torch.deg2rad(angle.double())
    dy, dx = rows[0][:, None] - (h - 1) / 2, columns[0][None] - (w - 1) / 2
    there = (h - 1) / 2 + a.sin() * dx + a.cos() * dy, (w - 1) / 2 + a.cos() * dx - a.sin() * dy
    for got, want in zip((r, c), there): assert ((got - want).abs()[inside > 0] <= .5 + 1e-4).all()
    x = turn_window(place, rows, columns, angle, 0)[0]  # bilinear, at the same place: a ramp is interpolated exactly, away from the edge
    deep = (there[0] >= 0) & (there[0] <= h - 1) & (there[1] >= 0) & (there[1] <= w - 1)
    for got, want in zip(x, there): assert ((got - want).abs()[deep] < 1e-3).all()


@pytest.mark.parametrize('quarters', range(-3, 4))
@pytest.mark.parametrize('h,w', [(8, 8), (9, 9), (8, 12), (13, 7)])
def test_quarter_turns_are_exact(h, w, quarters):
    s = random_source(3, h, w)
    span = (w, h) if quarters % 2 else (h, w)  # of an oblong image the turned window is oblong the other way
    rows, columns = (torch.arange(n)[None].expand(3, -1) + (o - n) // 2 for n, o in zip(span, (h, w)))
    turn = lambda x, fill, mode: turn_window(x, rows, columns, torch.full((3,), 90. * quarters), fill, mode)
    assert torch.equal(turn(s.masks, 255, 'nearest'), s.masks.rot90(quarters, (-2, -1)))
    assert torch.allclose(turn(s.images, 0, 'bilinear'), s.images.rot90(quarters, (-2, -1)).float(), atol=.01)


AUGMENTS = [dict(), dict(rotate=30.), dict(colour=1., rotate=180.), dict(crop=24, pad=0, flips=False, rotate=5., strength=.4), dict(crop=40, colour=2.)]

@pytest.mark.parametrize('how', AUGMENTS)
def test_class_ids_never_mix(source, how):
    two = source.masks.clone(); two[two != 3] = 0  # haemorrhages alone: anything between 0 and 3 would be invented
    for seed in range(3): assert set(Augment(**how)(source.images, two, torch.Generator().manual_seed(seed))[1].unique().tolist()) <= {0, 3, 255}


@pytest.mark.parametrize('how', AUGMENTS)
def test_the_generator_alone_decides(source, how):
    def batch(seed): return Augment(**how)(source.images, source.masks, torch.Generator().manual_seed(seed))
    before = torch.get_rng_state()
    a, b, c = batch(1), batch(1), batch(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a, b)) and not torch.equal(a[0], c[0])


def test_rotation_off_takes_no_draws():
    at = lambda **how: (g := torch.Generator().manual_seed(3), Augment(**how)(random_source(4).images, None, g))[0].get_state()
    assert torch.equal(at(), at(colour=1.)) and torch.equal(at(), at(strength=0.)) and not torch.equal(at(), at(rotate=5.))
    assert torch.equal(at(rotate=5.), at(rotate=5., strength=0.))  # a knob that moves shifts nothing


@pytest.mark.parametrize('how', [dict(crop=24), dict(crop=24, pad=24, rotate=180.), dict(crop=9, pad=0, flips=False), dict(crop=16, pad=16, strength=.5)])
def test_a_crop_holds_the_pixel_it_shall(how):
    "One coded block of 3 x 3 px in each image: it is found in every crop, unless a weak augmentation cannot reach it."
    g, strength = torch.Generator().manual_seed(0), how.get('strength', 1.)
    at = torch.randint(1 + 16*(strength < 1), 63 - 16*(strength < 1), (60, 2), generator=g)
    masks = torch.zeros(60, 64, 64, dtype=torch.uint8)
    for m, (i, j) in zip(masks, at.tolist()): m[i - 1:i + 2, j - 1:j + 2] = 5
    y = Augment(**how)(random_source(60, 64, 64).images, masks, g, at.float())[1]
    assert (y == 5).flatten(1).any(1).all()
    anywhere = Augment(**how)(random_source(60, 64, 64).images, masks, g, torch.full((60, 2), float('nan')))[1]
    assert not (anywhere == 5).flatten(1).any(1).all()


def test_focus_deals_classes_then_photographs_evenly():
    "Class 1 is in one photograph of 40, class 2 in all others: each gets half of the crops, and within a class each photograph its share."
    masks = torch.full((40, 16, 16), 2, dtype=torch.uint8); masks[7] = 0; masks[7, 3, 3] = 1
    s = Source(random_source(40, 16, 16).images, masks)
    drawn = torch.cat([next(stream).index for stream in [Stream(s, range(40), 50, focus=1.)] for _ in range(60)])
    counts = torch.bincount(drawn, minlength=40)/len(drawn)
    assert abs(counts[7] - .5) < .04 and counts[counts.argsort()[:-1]].max() < .03 and counts.min() > 0


def test_focus_goes_on_where_it_stood(source):
    a, b = (Stream(source, range(40), 8, Augment(24, rotate=20.), 'mask', seed=k, focus=.5) for k in (1, 2))
    for _ in range(3): next(a)
    b.load_state_dict(a.state_dict())
    for _ in range(7):
        x, y = next(a), next(b)
        assert all(torch.equal(p, q) for p, q in zip(x, y))


def test_without_focus_nothing_is_drawn_for_it(source):
    "And with it, the photographs that keep their places come in the same order."
    a, b = (Stream(source, range(40), 8, Augment(24), 'mask', seed=1, focus=f) for f in (0., 1e-9))
    assert torch.equal(next(a).index, next(b).index)
    assert torch.equal(a.order, b.order)


@pytest.mark.parametrize('given,says', [(dict(focus=-.1), 'focus=-0.1 must lie'), (dict(focus=1.1), 'focus=1.1 must lie'), (dict(focus=float('nan')), 'focus=nan must lie'),
                                        (dict(focus=.5, target='label'), 'focus=0.5: only masks')])
def test_a_focus_that_is_none_is_refused(source, given, says):
    with pytest.raises(ValueError, match=says): Stream(source, range(40), 8, **given)


def test_there_must_be_something_to_look_at(source):
    healthy = Source(source.images[:5], torch.zeros(5, *source.masks.shape[1:], dtype=torch.uint8), mask_classes=source.mask_classes)
    with pytest.raises(ValueError, match='focus: the masks of these 5 photographs'): Stream(healthy, range(5), 2, focus=.5)
    next(Stream(healthy, range(5), 2))


@pytest.mark.parametrize('rotate', [-1, 181, float('nan')])
def test_a_rotation_that_is_none_is_refused(rotate):
    with pytest.raises(ValueError, match='rotate=.* must lie between 0'): Augment(rotate=rotate)


@pytest.mark.parametrize('rotate', [0., 25.])
def test_padding_does_not_count(source, rotate):
    y = Augment(pad=8, rotate=rotate)(source.images, source.masks, torch.Generator().manual_seed(0))[1]
    logits, padded = torch.randn(len(y), 7, *y.shape[1:], generator=torch.Generator().manual_seed(1)), y == 255
    assert .05 < padded.float().mean() < .5
    spoiled = torch.where(padded[:, None], 1e4 * torch.rand(logits.shape), logits)
    loss = [F.cross_entropy(o, y, ignore_index=255) for o in (logits, spoiled)]
    assert torch.equal(*loss) and torch.allclose(loss[0], F.cross_entropy(logits.permute(0, 2, 3, 1)[~padded], y[~padded]))
    counts = [confusion(o.argmax(1), y, 7) for o in (logits, spoiled)]
    assert torch.equal(*counts) and counts[0].sum() == (~padded).sum()


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


# --- rows

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_are_what_a_tensor_would_be(data):
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    parts = [torch.randint(256, (n, 2, 3), dtype=torch.uint8) for n in lengths]
    rows, whole = Rows(parts), torch.cat(parts)
    for _ in range(data.draw(st.integers(0, 2))):  # subsets of subsets, and rows joined with rows
        if len(rows):
            pick = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=7))
            rows, whole = rows.subset(pick), whole[torch.tensor(pick, dtype=torch.long)]
        rows, whole = Rows([rows, parts[0]]), torch.cat([whole, parts[0]])
    n = len(rows)
    assert (n, rows.shape, rows.ndim, rows.dtype, rows.device) == (len(whole), whole.shape, 3, torch.uint8, whole.device)
    assert torch.equal(rows[:], whole) and torch.equal(rows[1::2], whole[1::2]) and torch.equal(rows.to('cpu', step=2), whole)
    some = data.draw(st.lists(st.integers(0, n - 1), max_size=9)) if n else []
    for index in (some, torch.tensor(some, dtype=torch.long), [i - n for i in some]):
        assert torch.equal(rows[index], whole[torch.as_tensor(index, dtype=torch.long)])
    mask = torch.rand(n) < .5
    assert torch.equal(rows[mask], whole[mask]) and torch.equal(rows[mask.tolist()], whole[mask])
    for i in some[:2]: assert torch.equal(rows[i], whole[i])
    assert [r.tolist() for r in rows] == whole.tolist()  # and it ends
    with pytest.raises(IndexError): rows[n]
    with pytest.raises(ValueError, match='taken whole'): rows[0, 1]


def test_a_copy_comes_out_of_rows():
    base = torch.zeros(4, 2, dtype=torch.uint8)
    rows = Rows(base)
    for out in (rows[0], rows[1:3], rows[[3]], rows[:], rows.to('cpu')): out += 1
    assert not base.any()


@pytest.mark.parametrize('parts,says', [([], 'empty'), ([torch.zeros(2, 3)], 'float32'), ([torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 4, dtype=torch.uint8)], 'one shape'),
                                        (['abc'], 'got str'), ([3], 'got int'), (torch.zeros(2, 3, dtype=torch.uint8, device='meta'), 'on meta')])
def test_what_cannot_be_rows_is_refused(parts, says):
    with pytest.raises(ValueError, match=says): Rows(parts)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='asks Linux how much memory is used')
def test_a_stream_touches_only_its_rows(tmp_path):
    n, side = 20_000, 256  # 3.9 GB that are a hole in the disk
    (tmp_path/'pixels').touch()
    with open(tmp_path/'pixels', 'r+b') as f: f.truncate(n * 3 * side * side)
    pixels = torch.from_file(str(tmp_path/'pixels'), shared=True, size=n * 3 * side * side, dtype=torch.uint8).view(n, 3, side, side)
    used = lambda: 4096 * int(open('/proc/self/statm').read().split()[1])
    s = Source(Rows(pixels), labels=torch.arange(n) % 5)
    before = used()
    stream = Stream(s.subset(range(0, n, 2)), range(n // 2), 8, Augment(224), 'label')
    for _ in range(5): next(stream)
    assert used() - before < 200e6


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


def test_a_subset_of_rows_copies_nothing():
    s = random_source(6)
    lazy = Source(Rows(s.images), Rows(s.masks), labels=s.labels).subset([4, 1]).subset([1])
    assert lazy.images.parts[0].data_ptr() == s.images.data_ptr() and lazy.masks.parts[0].data_ptr() == s.masks.data_ptr()
    assert torch.equal(lazy.images[0], s.images[1]) and torch.equal(lazy[0].mask, s.masks[1])
    assert torch.equal(lazy.in_memory().images, s.images[[1]]) and torch.equal(lazy.in_memory().masks, s.masks[[1]])


def test_sources_move_only_where_there_is_room():
    s = random_source(10)
    lazy = Source(Rows(s.images), labels=s.labels)
    assert near(lazy, 'meta', free=2 * lazy.nbytes) is lazy and near(s, 'cpu') is s
    moved = near(lazy, 'meta', free=2 * lazy.nbytes + 1)
    assert moved.images.is_meta and moved.labels.is_meta and moved.masks.is_meta and moved.masks.stride() == (0, 0, 0) and not lazy.labels.is_meta
    assert moved.names == lazy.names and s.nbytes == s.images.nbytes + s.masks.nbytes


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40))
def test_equal_photographs_are_one_patient(rows):
    groups, contents = [f'p{g}' for g, _ in rows], [f'c{c}' if c else None for _, c in rows]
    merged = room._one_patient(groups, contents)
    naive = list(groups)  # repaint until nothing changes
    for _ in rows:
        for i in range(len(rows)):
            for j in range(len(rows)):
                if groups[i] == groups[j] or contents[i] and contents[i] == contents[j]: naive[i] = naive[j] = min(naive[i], naive[j])
    assert merged == naive


def test_join_keeps_what_belongs_together():
    a, b = random_source(4, seed=1), random_source(3, seed=2)
    a = Source(a.images, None, labels=[0, 1, -1, 2], groups=['x:1', 'x:1', 'x:2', 'x:3'], title='a', contents=['f1', 'f2', 'f3', None])
    b = Source(Rows(b.images), b.masks, [True, False, True], groups=['y:1', 'y:2', 'x:3'], title='b', contents=[None, 'f3', None])
    s = join(a, b, title='both')
    assert s.names == ['a/0', 'a/1', 'a/2', 'a/3', 'b/0', 'b/1', 'b/2'] and s.title == 'both'
    assert s.groups == ['x:1', 'x:1', 'x:2', 'x:3', 'y:1', 'x:2', 'x:3']  # b/1 is the photograph a/2
    assert s.gradable.tolist() == [0, 1, 3] and s.segmentable.tolist() == [4, 6] and s[4].label is None and s[0].mask is None
    assert torch.equal(s.masks[[6, 4]], b.masks[[2, 0]]) and torch.equal(s.images[:4], a.images) and s.contents[5] == 'f3'
    assert torch.equal(take_rows(s.images, torch.tensor([5, 0])), torch.stack([b.images[1], a.images[0]]))
    assert len(join(s, random_source(2))) == 9 and s.masks[0].unique().tolist() == [255]


def test_what_cannot_be_joined_is_refused():
    a = random_source(4)
    with pytest.raises(ValueError, match='two or more'): join(a)
    with pytest.raises(ValueError, match="'source' comes twice, and both times with the photograph '0'"): join(a, a)
    other = random_source(4, seed=1)
    s = join(a, other, Source(other.images[:1], names=['x']))
    assert s.names[3:5] == ['source/3', 'source (2)/0'] and s.names[8] == 'source/x' and len(set(s.groups)) == 9 and s.title == 'source + source + source'
    with pytest.raises(ValueError, match='same size='): join(a, random_source(4, 8, 8))
    two = Source(a.images, a.masks % 2, mask_classes=['background', 'lesion'], mask_colors=[[0] * 3] * 2, title='two')
    with pytest.raises(ValueError, match="'two' has the mask classes .*same classes="): join(a, two)
    with pytest.raises(ValueError, match="'yes' has the labels .*same label="): join(a, Source(a.images, labels=[0, 1, 0, 1], label_names=['no', 'yes'], title='yes'))
    assert join(Source(a.images, labels=a.labels, title='b'), two).mask_classes == ('background', 'lesion')  # no masks, no say


@settings(max_examples=40, deadline=None)
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

def test_yes_and_no_are_refused_where_numbers_are_meant(source):
    for ask in (lambda m: Stream(source, m, 2), source.subset, lambda m: few(m, 1), lambda m: next(plain_batches(source, m))):
        with pytest.raises(ValueError, match='nonzero'): ask(source.has_mask)
