"""Looks against slow references, and the promise that none of them changes a bit of the training."""
import io, struct, zlib
from dataclasses import fields, is_dataclass
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from jointseg_nb.cooperate import set_up
from jointseg_nb.data import embedded, standardise
from jointseg_nb.evaluate import predict
from jointseg_nb.fit import pick_eyes, show_eyes
from jointseg_nb.looks import (Frame, Look, at_rest, attention_studies, attention_study, look, make_frame, noise_study, open_photo, photo_look, thin_frames, walk)
from jointseg_nb.noise import NOISES, PartialRandomLabels
from jointseg_nb.photos import Entry, Preparation, load_entry
from jointseg_nb.recipes import recipe

@pytest.fixture(scope='module')
def source(): return embedded(40, seed=3, size=32)

def trainer_of(source, **changes):
    "A tiny trainer."
    given = dict(size=32, crop=32, pad=2, steps=50, clf_batch=3, seg_batch=2, precision='float32', label_noise=0.5) | changes
    return set_up(recipe('pocket', **given), source, device='cpu')

def eyes(setup, n=3): return show_eyes(setup.source, pick_eyes(setup.source, setup.valid, n), setup.trainer.recipe.crop).images

def bits(trainer):
    "All of a trainer's state, and PyTorch's own generator, as comparable bytes."
    def flat(x):
        if isinstance(x, dict): return {k: flat(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)): return [flat(v) for v in x]
        return (x.dtype, tuple(x.shape), x.contiguous().numpy().tobytes()) if isinstance(x, torch.Tensor) else x
    modes = [m.training for m in trainer.model.modules()]
    return flat(trainer.state_dict()), modes, torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes()

def see_all(setup, studies):
    "Every look there is."
    t, s, x = setup.trainer, setup.source, eyes(setup)
    photo = open_photo(png(s.images[0].permute(1, 2, 0).numpy()), 'a.png', 32)
    return look(t, x, s.label_names), make_frame(look(t, x)), next(studies), attention_study(t, x), noise_study(t, s, n=5), photo_look(t, photo, s.label_names)

def png(array, **how):
    file = io.BytesIO(); Image.fromarray(array).save(file, 'PNG', **how)
    return file.getvalue()

kinds = pytest.mark.parametrize('changes', [dict(), dict(attention='sum'), dict(attention='learned'), dict(attention='unet'), dict(attention='none'), dict(norm='agent'), dict(norm='group'),
                                            dict(average=0.9), dict(stem_stride=2), dict(net='base', norm='agent', average=0.9)], ids=str)

@kinds
def test_no_bit_changes(source, changes):
    "A training that is looked at in every way after each step is the training that nobody looks at."
    plain, seen = trainer_of(source, **changes), trainer_of(source, **changes)
    studies = attention_studies(seen.trainer, eyes(seen))
    for _ in range(3):
        plain.trainer.step(); seen.trainer.step()
        before = bits(seen.trainer)
        see_all(seen, studies)
        assert bits(seen.trainer) == before
    assert bits(plain.trainer) == bits(seen.trainer)

def flipped_by_hand(trainer, images, k, i):
    "Share of pixels whose class changes when one switch is flipped, through the model's own switches and its public `segment`."
    model, x = trainer.eval_model, standardise(torch.tensor(images).permute(0, 3, 1, 2))
    on, seen = trainer.model.switches.clone(), []
    model.eval()
    with torch.no_grad():
        for flip in (False, True):
            now = on.clone(); now[k, i] ^= flip
            model.switches = now
            seen.append(model.segment(x).argmax(1))
    model.switches = on
    model.train()
    return (seen[0] != seen[1]).double().mean().item()

@kinds
def test_effects_are_those_of_flipping_by_hand(source, changes):
    setup = trainer_of(source, **changes)
    t, x = setup.trainer, eyes(setup)
    for _ in range(2): t.step()
    t.model.switches = torch.rand(t.model.possible.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    study, on = attention_study(t, x), t.model.switches.clone()
    assert (study.on == on.numpy()).all() and study.ratio.tolist() == t.model.decoder.ratios
    assert np.isnan(study.effect).tolist() == (~t.model.possible.numpy()).tolist()
    for k, i in np.argwhere(study.possible): assert study.effect[k, i] == pytest.approx(flipped_by_hand(t, x, k, i), abs=1e-6), (k, i)
    assert torch.equal(t.model.switches, on)
    assert set(study.thumbnails) == {tuple(c) for c in np.argwhere(study.possible)}
    for (k, i), thumb in study.thumbnails.items(): assert thumb.shape == (min(48, study.levels[k]),)*2

@kinds
def test_a_walk_is_what_the_model_does(source, changes):
    setup = trainer_of(source, **changes)
    model, x = setup.trainer.model, standardise(torch.tensor(eyes(setup)).permute(0, 3, 1, 2))
    with at_rest(model):
        own = model.segment(x)
        assert torch.equal(walk(model, model.encode(x), model.switches.tolist()), own)

def test_a_thumbnail_is_the_mean_of_what_is_brought(source):
    "With 'concat' a gate is handed the max-pooled map: pooled here by numpy."
    setup = trainer_of(source)
    t, x = setup.trainer, eyes(setup)
    study = attention_study(t, x, eye=1, cells=[])
    with at_rest(t.model): maps = [m.numpy() for m in t.model.encode(standardise(torch.tensor(x).permute(0, 3, 1, 2)))]
    for (k, i), thumb in study.thumbnails.items():
        a, e = study.ratio[k, i], maps[i][1]
        mean = e.reshape(len(e), e.shape[1]//a, a, e.shape[2]//a, a).max((2, 4)).mean(0)
        assert np.abs(thumb - (mean - mean.min())/(mean.max() - mean.min())*255).max() <= 0.51
    assert np.isnan(study.effect).all() and (study.measured == -1).all()

def test_studies_go_round_and_notice_switches(source):
    setup = trainer_of(source)
    t, x = setup.trainer, eyes(setup)
    studies, n = attention_studies(t, x), int(t.model.possible.sum())
    for k in range(1, n + 1):
        s = next(studies)
        assert (s.measured >= 0).sum() == k
        t.step()
    assert next(studies).measured.max() == n   # round again, the oldest first
    t.model.switches = torch.zeros_like(t.model.possible)
    assert (next(studies).measured >= 0).sum() == 1

@pytest.mark.parametrize('part', ['encoder', 'decoder', 'classifier'])
def test_an_exception_leaves_the_network_as_it_was(source, part):
    setup = trainer_of(source)
    t, x = setup.trainer, eyes(setup)
    t.step()
    t.model.classifier.head.eval()      # a part that was in another mode stays so
    modes, on = [m.training for m in t.model.modules()], t.model.switches.clone()
    def fails(*_): raise MemoryError('no room')
    hook = getattr(t.model, part).register_forward_hook(fails) if part != 'decoder' else t.model.decoder.gates[-1].register_forward_hook(fails)
    jobs = (lambda: look(t, x), lambda: attention_study(t, x), lambda: noise_study(t, setup.source))
    failed = 0
    for job in jobs:
        try: job()
        except MemoryError: failed += 1
    hook.remove()
    assert failed == dict(encoder=3, decoder=2, classifier=2)[part]
    assert [m.training for m in t.model.modules()] == modes and torch.equal(t.model.switches, on) and torch.is_grad_enabled()

def arrays(x):
    if isinstance(x, np.ndarray): yield x
    elif is_dataclass(x): yield from (a for f in fields(x) for a in arrays(getattr(x, f.name)))
    elif hasattr(x, 'values'): yield from (a for v in x.values() for a in arrays(v))
    elif isinstance(x, (tuple, list)): yield from (a for v in x for a in arrays(v))
    else: assert not isinstance(x, torch.Tensor)

def test_nothing_that_is_seen_can_be_written_to(source):
    setup = trainer_of(source)
    for record in see_all(setup, attention_studies(setup.trainer, eyes(setup))):
        for a in arrays(record): assert not a.flags.writeable
        with pytest.raises(AttributeError): record.step = 1

def test_a_look_outlives_the_step_it_was_taken_at(source):
    setup = trainer_of(source)
    t, x = setup.trainer, eyes(setup)
    seen = look(t, x, setup.source.label_names)
    copy = [a.copy() for a in arrays(seen)]
    for _ in range(3): t.step()
    assert all((a == b).all() for a, b in zip(arrays(seen), copy))

def test_a_look_is_a_prediction(source):
    setup = trainer_of(source, average=0.9)
    t, x = setup.trainer, eyes(setup)
    for _ in range(3): t.step()
    seen, said = look(t, x, setup.source.label_names), predict(t.eval_model, x, t.engine)
    assert (seen.masks == said.masks).all() and np.allclose(seen.grade_probabilities, said.probabilities)
    assert seen.grades == tuple(setup.source.label_names[i] for i in said.grades)
    assert (look(t, torch.tensor(x).permute(0, 3, 1, 2)).masks == seen.masks).all()
    sure = seen.probabilities.astype(int)
    best = np.take_along_axis(sure, seen.masks[:, None].astype(int), 1)[:, 0]
    assert (best >= sure.max(1) - 1).all() and seen.probabilities.shape == (3, 7, 32, 32)
    assert look(t, x, probabilities=False).probabilities is None

def test_who_cannot_grade_says_nothing(source):
    dark = source._with(labels=torch.full_like(source.labels, -1))
    setup = trainer_of(dark, agents='segmenter', label_noise=0.)
    t, x = setup.trainer, eyes(setup)
    seen = look(t, x, source.label_names)
    assert seen.grades == ('–',)*3 and seen.grade_probabilities is None and noise_study(t, dark) is None
    photo = open_photo(png(x[0]), 'a.png', 32)
    assert photo_look(t, photo, source.label_names).probabilities == ()

@pytest.mark.parametrize('images', [np.zeros((2, 32, 32), np.uint8), np.zeros((2, 32, 32, 3)), np.zeros((0, 32, 32, 3), np.uint8), np.zeros((2, 4, 32, 32), np.uint8)], ids=lambda a: f'{a.shape} {a.dtype}')
def test_other_images_are_refused(source, images):
    with pytest.raises(ValueError, match='images has shape'): look(trainer_of(source).trainer, images)

def frame_of(step, size=10): return Frame(step, bytes(size), (1, 1, 1), ('–',))

@given(masks=st.integers(0, 2**32 - 1), n=st.integers(1, 4), side=st.sampled_from([8, 33]))
@settings(max_examples=30, deadline=None)
def test_frames_unpack_to_what_was_packed(masks, n, side):
    m = np.random.default_rng(masks).integers(0, 256, (n, side, side)).astype(np.uint8)
    frame = make_frame(Look(7, m, ('mild',)*n, None, None))
    assert (frame.masks == m).all() and frame.masks.dtype == np.uint8 and (frame.step, frame.grades) == (7, ('mild',)*n)
    assert zlib.decompress(frame.packed) == m.tobytes()

@given(steps=st.lists(st.integers(0, 10**6), unique=True, max_size=60).map(sorted), limit=st.integers(3, 40), room=st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_thinning_keeps_the_ends_and_the_bounds(steps, limit, room):
    frames = tuple(frame_of(s) for s in steps)
    kept = thin_frames(frames, max_bytes=10*room, limit=limit)
    assert len(kept) <= max(2, min(limit, room, len(frames)))
    assert [f.step for f in kept] == sorted(f.step for f in kept) and set(f.step for f in kept) <= set(steps)
    if frames: assert (kept[0], kept[-1]) == (frames[0], frames[-1])
    if len(frames) <= min(limit, room): assert kept == frames

def test_a_long_film_stays_even():
    film = ()
    for step in range(0, 20000, 7): film = thin_frames((*film, frame_of(step)), limit=100)
    gaps = np.diff([f.step for f in film])
    assert len(film) == 100 and gaps[15:-15].max() <= 3*gaps[15:-15].min() + 7
    assert [f.step for f in film[-10:]] == list(range(20000 - 20000 % 7 - 9*7, 20000, 7))

@pytest.mark.parametrize('kind', NOISES)
@pytest.mark.parametrize('fraction', [0., 0.3, 0.8, 1.])
def test_a_noise_study_against_labels_looked_up_one_by_one(source, kind, fraction):
    setup = trainer_of(source, noise_kind=NOISES[NOISES.index(kind) - 1], label_noise=fraction)   # another kind at first: it is live
    t = setup.trainer
    t.knobs.set(noise_kind=kind); t.read_knobs()
    study, names = noise_study(t, source, n=9), list(source.label_names)
    learns = t.streams['clf'].indices.tolist()
    other = PartialRandomLabels(source.labels, 5, seed=t.recipe.seed, kind=kind).random()
    assert study.kind == kind
    taught = [int(other[i]) if t.noise.u[i] < fraction else int(source.labels[i]) for i in learns]
    assert (study.n, study.n_wrong) == (len(learns), sum(a != int(source.labels[i]) for a, i in zip(taught, learns)))
    at = [source.names.index(n) for n in study.names]
    assert len(set(at)) == 9 and set(at) <= set(learns)
    said = predict(t.eval_model, source.images[at].permute(0, 2, 3, 1).numpy()).grades
    for j, i in enumerate(at):
        assert (study.true[j], study.given[j], study.said[j]) == (names[source.labels[i]], names[taught[learns.index(i)]], names[said[j]])
        assert study.wrong[j] == (study.true[j] != study.given[j]) and study.thresholds[j] == float(t.noise.u[i])
    random = sum(u < fraction for u in study.thresholds)
    assert abs(random/9 - sum(float(t.noise.u[i]) < fraction for i in learns)/len(learns)) <= 1/9 + 1e-9
    assert study.thumbs.shape == (9, 32, 32, 3) and (study.thumbs[0] == source.images[at[0]].permute(1, 2, 0).numpy()).all()
    assert len(study.survives) == 5 and (fraction > 0 or all(study.survives))

def test_the_sample_is_of_those_that_are_learnt_from(source):
    setup = trainer_of(source, labels=6)
    study = noise_study(setup.trainer, source)
    assert study.n == 6 and len(study.names) == 6

def test_a_photo_is_what_a_reader_of_folders_gives(source, tmp_path):
    "The same bytes by `load_entry`, and what `predict` says of them."
    eye = embedded(1, seed=8, size=200).images[0].permute(1, 2, 0).numpy()
    (tmp_path/'e.png').write_bytes(png(np.pad(eye, ((5, 5), (50, 30), (0, 0)))))
    setup = trainer_of(source, crop=24)
    photo = open_photo((tmp_path/'e.png').read_bytes(), 'e.png', 32)
    loaded = load_entry(Entry('e', tmp_path/'e.png'), Preparation(32))
    assert (photo.image == loaded.image).all() and photo.full == (280, 210)
    seen, whole = photo_look(setup.trainer, photo, source.label_names), photo.image[4:28, 4:28]
    said = predict(setup.trainer.model, whole[None])
    assert (seen.image == whole).all() and (seen.mask == said.masks[0]).all() and np.allclose(seen.probabilities, said.probabilities[0])
    assert '280 x 210' in seen.note and 'black surround' in seen.note

def test_a_photo_keeps_its_surround_where_those_of_the_training_did(source, tmp_path):
    eye = embedded(1, seed=8, size=200).images[0].permute(1, 2, 0).numpy()
    (tmp_path/'e.png').write_bytes(png(np.pad(eye, ((5, 5), (50, 30), (0, 0)))))
    photo = open_photo((tmp_path/'e.png').read_bytes(), 'e.png', 32)
    for told, cut in ((None, True), (True, True), (False, False)):
        seen = photo_look(trainer_of(source._with(crop_field=told), average=0.9).trainer, photo, source.label_names)
        assert (seen.image == load_entry(Entry('e', tmp_path/'e.png'), Preparation(32, cut)).image).all() and ('black surround' in seen.note) == cut

def test_a_photo_of_another_size_is_refused(source):
    setup = trainer_of(source)
    photo = open_photo(png(np.random.default_rng(0).integers(0, 255, (80, 80, 3)).astype(np.uint8)), 'a.png', 64)
    with pytest.raises(ValueError, match='size=32'): photo_look(setup.trainer, photo, source.label_names)

def bomb():
    "A PNG that says it is 60,000 x 60,000 px."
    head = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')

def saved(mode, kind, **how):
    file = io.BytesIO()
    im = Image.new(mode, (40, 40))
    im.save(file, kind, **how)
    return file.getvalue()

@pytest.mark.parametrize('data, why', [(b'', 'no image'), (b'hello', 'no image'), (b'<svg></svg>', 'no image'), (bytes(50_000_001), '50 are allowed'), (bomb(), 'cannot be opened'), (saved('CMYK', 'JPEG'), 'CMYK'),
                                       (saved('I;16', 'PNG'), '8 bits'), (saved('RGB', 'JPEG')[:300], 'cannot be opened')], ids=['empty', 'text', 'svg', 'large', 'bomb', 'cmyk', '16 bit', 'truncated'])
def test_what_is_no_photograph_is_refused_with_the_reason(data, why):
    with pytest.raises(ValueError, match=why) as e: open_photo(data, 'my <b>file</b>.jpg', 32)
    assert "'my <b>file</b>.jpg' cannot be opened" in str(e.value)

eye_png = png(np.random.default_rng(5).integers(0, 255, (50, 60, 3)).astype(np.uint8))

@given(at=st.integers(0, len(eye_png) - 1), byte=st.integers(0, 255), cut=st.integers(0, len(eye_png)))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_a_photo_or_a_clear_error(at, byte, cut):
    data = bytearray(eye_png[:cut] if cut % 2 else eye_png)
    if at < len(data): data[at] = byte
    try: assert open_photo(bytes(data), 'x', 32).image.shape == (32, 32, 3)
    except ValueError as e: assert "'x' cannot be opened" in str(e)

@pytest.mark.parametrize('array, note', [(np.full((64, 64, 3), 90, np.uint8), 'one colour'), (np.random.default_rng(0).integers(0, 255, (64, 64, 1)).astype(np.uint8).repeat(3, 2), 'grey')])
def test_what_is_odd_is_said(array, note): assert any(note in n for n in open_photo(png(array), 'x', 32).notes)
