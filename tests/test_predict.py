"""Photographs as they come: any shape, any fault. What the predictions mean is in notebooks 15 and 21."""
import csv, json, subprocess, sys
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import assume, given, settings, strategies as st
from PIL import Image, ImageOps
from jointseg_nb import commands
from jointseg_nb.agents import JointSeg
from jointseg_nb.data import standardise
from jointseg_nb.evaluate import (Placement, activation_maps, blend_tiles, evaluate, load_model, model_facts, photograph_mask, predict_photo, square_placement,
    tile_starts, tile_window, to_photograph)
from jointseg_nb.export import _described, list_photos, predict_files, unique_names
from jointseg_nb.fit import fit, run_source
from jointseg_nb.fundus import eye, write_folder
from jointseg_nb.photos import squared
from jointseg_nb.recipes import recipe

@pytest.fixture(scope='module')
def model(): return load_model('pretrained')

@pytest.fixture(scope='module')
def picture(): return Image.fromarray(eye(24, seed=3, size=128).image)

sides = st.integers(1, 90)
fractions = st.floats(0, .45)

@settings(deadline=None, max_examples=150)
@given(w=sides, h=sides, a=fractions, b=fractions, c=fractions, d=fractions, size=st.integers(4, 70))
def test_the_placement_is_the_inverse_to_the_pixel(w, h, a, b, c, d, size):
    place = square_placement((w, h), (a, b, 1 - c, 1 - d), size)
    numbered = Image.fromarray(np.arange(1, w*h + 1, dtype=np.int32).reshape(h, w))
    try: there = np.asarray(squared(numbered, place.box, size, Image.Resampling.NEAREST))
    except ValueError: assume(False)    # Pillow refuses a box of nearly nothing
    left, upper, iw, ih = place.inner
    seen = np.zeros((size, size), bool); seen[upper:upper + ih, left:left + iw] = True
    assert ((there > 0) == seen).all()
    v, u = np.nonzero(seen)
    x, y = place.photo(u + .5, v + .5)
    sure = (abs(x - x.round()) > 1e-6) & (abs(y - y.round()) > 1e-6)    # on a border between two pixels either is nearest
    assert (there[v, u] == np.floor(y).astype(int)*w + np.floor(x).astype(int) + 1)[sure].all()
    back = place.seen(x, y)
    assert np.allclose(back[0], u + .5, atol=1e-8) and np.allclose(back[1], v + .5, atol=1e-8)

@settings(deadline=None, max_examples=60)
@given(w=st.integers(40, 200), h=st.integers(40, 200), a=fractions, b=fractions, seed=st.integers(0, 99))
def test_a_mask_survives_the_way_to_the_photograph_and_back(w, h, a, b, seed):
    "Where a pixel of the network is at least two pixels of the photograph, nothing is lost and nothing moves."
    box = (a/2, b/2, 1 - b/3, 1 - a/3)
    size = max(8, int(min(w*(box[2] - box[0]), h*(box[3] - box[1]))/2.2))
    place = square_placement((w, h), box, size)
    left, upper, iw, ih = place.inner
    if min((box[2] - box[0])*w/iw, (box[3] - box[1])*h/ih) < 2: assume(False)
    mask = torch.randint(0, 4, (size, size), generator=torch.Generator().manual_seed(seed))
    big = photograph_mask(torch.nn.functional.one_hot(mask, 4).permute(2, 0, 1).float(), place)
    small = np.asarray(squared(Image.fromarray(big), place.box, size, Image.Resampling.NEAREST))
    inside = (slice(upper, upper + ih), slice(left, left + iw))
    assert (small[inside] == mask.numpy()[inside]).all()
    l, u, r, d = place.box
    outside = np.ones((h, w), bool); outside[int(np.floor(u)):int(np.ceil(d)), int(np.floor(l)):int(np.ceil(r))] = False
    assert not big[outside].any()

def test_slopes_arrive_exactly():
    place = square_placement((333, 217), (.1, .02, .93, .97), 96)
    at = torch.arange(96) + .5
    back = to_photograph(torch.stack(torch.meshgrid(at, at, indexing='xy')), place).double()
    y, x = torch.meshgrid(torch.arange(217).double() + .5, torch.arange(333).double() + .5, indexing='ij')
    u, v = place.seen(x, y)
    left, upper, iw, ih = place.inner
    deep = (u > left + .5) & (u < left + iw - .5) & (v > upper + .5) & (v < upper + ih - .5)
    assert deep.sum() > 40_000 and (back[0] - u)[deep].abs().max() < 1e-4 and (back[1] - v)[deep].abs().max() < 1e-4

def test_one_to_one_is_the_same_picture():
    scores = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_photograph(scores, Placement((30, 20), (0., 0., 30., 20.), (0, 0, 30, 20))), scores)

odd = {'wide': (300, 60), 'tall': (60, 300), 'tiny': (21, 17), 'as in training': (64, 64), 'odd': (131, 97)}

@pytest.mark.parametrize('scale', [None, 1, .5, 'trained'])
@pytest.mark.parametrize('shape', odd.values(), ids=odd)
def test_any_shape(tmp_path, model, picture, shape, scale):
    picture.resize(shape).save(tmp_path/'a.png')
    said = predict_photo(model, tmp_path/'a.png', scale)
    assert said.mask.shape == shape[::-1] and said.mask.dtype == np.uint8 and said.mask.max() < 7 and said.image.shape == (*shape[::-1], 3)
    assert said.heat().shape == shape[::-1] and abs(said.probabilities.sum() - 1) < 1e-5

@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_turned_photograph_is_turned_first(tmp_path, model, picture, orientation):
    "PNG, so that the pixels are the same: the result is that of the photograph saved upright."
    exif = Image.Exif(); exif[0x112] = orientation
    picture = picture.crop((0, 10, 128, 100))
    picture.save(tmp_path/'turned.png', exif=exif)
    with Image.open(tmp_path/'turned.png') as im: upright = np.asarray(ImageOps.exif_transpose(im))
    Image.fromarray(upright).save(tmp_path/'upright.png')
    a, b = (predict_photo(model, tmp_path/f'{n}.png') for n in ('turned', 'upright'))
    assert a.mask.shape == upright.shape[:2] and (a.mask == b.mask).all() and (a.image == upright).all() and (a.probabilities == b.probabilities).all()

@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', '1'])
def test_other_colours_are_taken(tmp_path, model, picture, mode):
    picture.convert(mode).save(tmp_path/'a.png')
    assert predict_photo(model, tmp_path/'a.png').image.shape == (128, 128, 3)

def test_the_square_equals_the_readers_square(tmp_path, model, picture):
    "In one piece and unscaled, the mask is what `predict` says of the pixels that training would see."
    from jointseg_nb.datasets import read
    from jointseg_nb.evaluate import predict
    folder = tmp_path/'set'/'images'; folder.mkdir(parents=True)
    picture = picture.resize((256, 256)); picture.save(folder/'a.png')
    (tmp_path/'set'/'labels.csv').write_text('image,grade\na,2\n')
    source = read(tmp_path/'set', size=64, cache=False, quiet=True)
    wanted = predict(model, source.images[[0]].permute(0, 2, 3, 1).numpy())
    said = predict_photo(model, folder/'a.png')
    assert np.allclose(said.probabilities, wanted.probabilities[0], atol=1e-6)
    place = square_placement(picture.size, _box(folder/'a.png'), 64)
    small = np.asarray(squared(Image.fromarray(said.mask), place.box, 64, Image.Resampling.NEAREST))
    assert (small == wanted.masks[0]).mean() > .98    # a border may fall between pixels of the photograph

def _box(path):
    from jointseg_nb.photos import read_photo
    return read_photo(path, 64)[1]

@pytest.mark.parametrize('norm', ['batch', 'agent', 'group'])
@pytest.mark.parametrize('size', [(32, 32), (48, 80)])
def test_the_map_adds_up_to_the_logit(norm, size):
    net = JointSeg(3, 4, 'small', widths=(16, 16, 24), c_width=32, norm=norm, seed=0)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): net.classify(x), net.segment(x)
    net.eval()
    logits, maps = activation_maps(net, x)
    assert torch.equal(logits, net.classify(x)) and maps.shape[:2] == (2, 3)
    assert (maps.mean((2, 3)) + net.classifier.head.bias - logits).abs().max() < 1e-5
    assert not net.classifier.blocks._forward_hooks

@settings(deadline=None, max_examples=100)
@given(length=st.integers(8, 400), tile=st.integers(8, 64), overlap=st.integers(0, 63))
def test_tiles_cover_everything(length, tile, overlap):
    assume(length >= tile and overlap < tile)
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] == length - tile and all(0 < b - a <= tile - overlap for a, b in zip(starts, starts[1:]))

@settings(deadline=None, max_examples=40)
@given(h=st.integers(16, 70), w=st.integers(16, 70), overlap=st.integers(0, 15), batch=st.integers(1, 9))
def test_the_weights_of_the_tiles_add_up_to_one(h, w, overlap, batch):
    picture = torch.randn(3, h, w, generator=torch.Generator().manual_seed(h*w))
    assert (blend_tiles(lambda tiles: tiles, picture, 16, overlap, batch) - picture).abs().max() < 1e-5
    assert (blend_tiles(lambda tiles: torch.ones_like(tiles), picture, 16, overlap, batch) - 1).abs().max() < 1e-5
    assert (tile_window(16, overlap) > 0).all()

@pytest.mark.parametrize('shape', [(200, 130), (64, 64), (70, 260)])
def test_one_tile_is_the_whole(tmp_path, model, picture, shape):
    picture.resize(shape).save(tmp_path/'a.png')
    assert (predict_photo(model, tmp_path/'a.png', 'trained').mask == predict_photo(model, tmp_path/'a.png').mask).all()

def test_tiles_smaller_than_the_square(tmp_path, model, picture):
    picture.save(tmp_path/'a.png')
    said = predict_photo(model, tmp_path/'a.png', 'trained', tile=32, overlap=16)
    whole = predict_photo(model, tmp_path/'a.png')
    assert (said.mask == whole.mask).mean() > .9 and (said.mask != whole.mask).any()
    assert (said.probabilities == whole.probabilities).all()    # the grade never comes from tiles

def test_wrong_numbers_are_refused(tmp_path, model, picture):
    picture.save(tmp_path/'a.png')
    for how, said in ((dict(scale=-1), 'above 0'), (dict(scale=9), 'up to 4'), (dict(scale='native'), "'trained'"), (dict(scale=1, tile=50), 'nearest is 48'), (dict(scale=1, tile=16, overlap=16), '0 to 15')):
        with pytest.raises(ValueError, match=said): predict_photo(model, tmp_path/'a.png', **how)

def test_the_network_is_left_as_it_was(tmp_path, model, picture):
    picture.save(tmp_path/'a.png')
    net = load_model('pretrained').train()
    net.switches[0] = False
    before = {k: v.clone() for k, v in net.state_dict().items()}
    predict_photo(net, tmp_path/'a.png', 1)
    with pytest.raises(ValueError): predict_photo(net, tmp_path/'none.png')
    assert net.training and not net.switches[0].any() and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

def test_a_size_that_is_no_multiple_of_the_stride(tmp_path, picture):
    net = JointSeg(3, 4, 'small', seed=0).eval()
    net.meta = dict(size=50)
    picture.save(tmp_path/'a.png')
    said = predict_photo(net, tmp_path/'a.png')
    assert said.mask.shape == (128, 128) and model_facts(net)['mask_classes'] == ['background', 'class 1', 'class 2', 'class 3'] and len(said.probabilities) == 3

faults = {
    'empty.jpg': lambda f, im: f.write_bytes(b''), 'text.png': lambda f, im: f.write_text('no image'), 'deep.png': lambda f, im: Image.fromarray(np.zeros((40, 40), np.uint16)).save(f),
    'cmyk.jpg': lambda f, im: im.convert('CMYK').save(f), 'cut.jpg': lambda f, im: (im.save(f), f.write_bytes(f.read_bytes()[:2000])), 'cut.png': lambda f, im: (im.save(f), f.write_bytes(f.read_bytes()[:3000])),
    'film.gif.png': lambda f, im: im.save(f, 'GIF', save_all=True, append_images=[im.rotate(90)]), 'none.png': lambda f, im: None, 'folder.png': lambda f, im: f.mkdir() or (f/'x.txt').write_text(''),
}

def test_a_bad_photograph_costs_the_others_nothing(tmp_path, model, picture):
    for name, make in faults.items(): make(tmp_path/name, picture)
    picture.save(tmp_path/'good.png'); picture.rotate(90).save(tmp_path/'z good.jpg')
    paths = [tmp_path/n for n in faults if n != 'folder.png'] + [tmp_path/'good.png', tmp_path/'z good.jpg']
    table = predict_files(model, paths, tmp_path/'out')
    assert [r['photograph'] for r in table['photographs']] == [str(tmp_path/'good.png'), str(tmp_path/'z good.jpg')]
    assert [r['photograph'] for r in table['failed']] == [str(p) for p in paths[:-2]]
    assert all(name in r['error'] for r, name in zip(table['failed'], faults))
    assert json.loads((tmp_path/'out'/'predictions.json').read_text()) == table
    rows = list(csv.DictReader((tmp_path/'out'/'predictions.csv').open(newline='', encoding='utf-8')))
    assert len(rows) == len(paths) and [bool(r['error']) for r in rows] == [False]*2 + [True]*(len(paths) - 2)
    assert len(list((tmp_path/'out').iterdir())) == 2*4 + 2

def test_the_files_hold_what_was_said(tmp_path, model, picture):
    picture.save(tmp_path/'a.png')
    row = predict_files(model, [tmp_path], tmp_path/'out', scale=1)['photographs'][0]
    said, out = predict_photo(model, tmp_path/'a.png', 1), tmp_path/'out'
    with Image.open(out/row['files']['mask']) as im:
        assert im.mode == 'P' and (np.asarray(im) == said.mask).all() and im.getpalette()[:21] == sum(model_facts(model)['mask_colors'], [])
    assert (np.load(out/row['files']['cam_array']) == said.cam).all()
    assert list(row['pixels'].values()) == np.bincount(said.mask.ravel(), minlength=7).tolist() and row['grade'] == model_facts(model)['label_names'][said.grade]
    for kind in ('overlay', 'cam'): Image.open(out/row['files'][kind]).verify()
    assert Image.open(out/row['files']['overlay']).size == (128, 128)

def test_two_of_one_name(tmp_path, model, picture):
    for folder in 'ab':
        (tmp_path/folder).mkdir()
        picture.rotate(90*(folder == 'b')).save(tmp_path/folder/'1.png')
    table = predict_files(model, [tmp_path/'a', tmp_path/'b', tmp_path/'a'/'1.png'], tmp_path/'out')
    assert [r['files']['mask'] for r in table['photographs']] == ['1_mask.png', '1_2_mask.png']

@settings(deadline=None)
@given(st.lists(st.sampled_from(['1', '1_2', '1_3', 'A', 'a', 'b']), max_size=9))
def test_names_are_unique(stems):
    names = unique_names([Path(f'{i}/{s}.png') for i, s in enumerate(stems)])
    assert len({n.lower() for n in names}) == len(stems) and all(n == s or n.startswith(s + '_') for n, s in zip(names, stems))

def test_no_photograph_is_written_over(tmp_path, model, picture):
    picture.save(tmp_path/'a.png'); picture.save(tmp_path/'a_mask.png')
    before = (tmp_path/'a_mask.png').read_bytes()
    with pytest.raises(ValueError, match='would replace'): predict_files(model, [tmp_path], tmp_path)
    assert (tmp_path/'a_mask.png').read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match='holds no image'): list_photos([tmp_path/'a.png', *[(tmp_path/'e').mkdir() or tmp_path/'e']])

def test_interrupted_the_tables_stand(tmp_path, model, picture, monkeypatch):
    for n in 'abc': picture.save(tmp_path/f'{n}.png')
    real = predict_photo
    def stop(model, file, **how):
        if file.name == 'b.png': raise KeyboardInterrupt
        return real(model, file, **how)
    monkeypatch.setattr('jointseg_nb.export.predict_photo', stop)
    with pytest.raises(KeyboardInterrupt): predict_files(model, [tmp_path], tmp_path/'out')
    assert len(json.loads((tmp_path/'out'/'predictions.json').read_text())['photographs']) == 1

# --- the commands ---

def ends(command, argv):
    "The exit code of a command."
    try: command([str(a) for a in argv])
    except SystemExit as e: return e.code or 0
    return 0

def test_predict_ends_with_what_was_wrong(tmp_path, picture, capsys):
    picture.save(tmp_path/'a.png')
    assert ends(commands.predict, ['pretrained', tmp_path/'a.png', '--out', tmp_path/'out', '--tiled', '--device', 'cpu']) == 0
    assert 'a.png: ' in capsys.readouterr().out and json.loads((tmp_path/'out'/'predictions.json').read_text())['scale'] == 1
    (tmp_path/'b.png').write_text('none')
    assert ends(commands.predict, ['pretrained', tmp_path/'b.png', tmp_path/'a.png', tmp_path/'c.png', '--out', tmp_path/'out', '--device', 'cpu']) == 1
    said = capsys.readouterr()
    assert 'b.png: cannot be read' in said.err and 'c.png: cannot be read' in said.err and '1 of 3' in said.err and said.out.count('\n') == 1

@pytest.mark.parametrize('options, said', [(['--tile', '64'], '--tiled'), (['--scale', 'big'], "'trained'"), (['--scale', '7'], 'up to 4'), (['--device', 'tpu'], 'allowed')])
def test_predict_refuses(tmp_path, picture, capsys, options, said):
    picture.save(tmp_path/'a.png')
    assert ends(commands.predict, ['pretrained', tmp_path/'a.png', '--out', tmp_path/'out', *options]) == 2
    assert said in capsys.readouterr().err

def test_a_run_is_scored_as_it_scored_itself(tmp_path, capsys):
    run, data = tmp_path/'run', Path(__file__).parent.parent/'data'
    assert ends(commands.train, ['--data', data, '--cache', 'off', '--out', run, '--steps', '2', '--clf-batch', '2', '--seg-batch', '2', '--valid', '0.4', '--device', 'cpu']) == 0
    wanted = json.loads((run/'metrics.json').read_text())
    for more in [], ['--data', data, '--cache', 'off', '--part', 'valid']:
        capsys.readouterr()
        assert ends(commands.evaluate, [run, '--json', '--out', tmp_path/'scores.json', '--device', 'cpu', *more]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores == json.loads((tmp_path/'scores.json').read_text()) and scores['part'] == 'valid' and scores['photographs'] == wanted['valid']
        assert {k: scores[k] for k in ('miou', 'lesion_miou', 'top1', 'kappa', 'iou')} == {k: wanted[k] for k in ('miou', 'lesion_miou', 'top1', 'kappa', 'iou')}
    assert ends(commands.evaluate, [run, '--part', 'train', '--json', '--device', 'cpu']) == 0
    assert json.loads(capsys.readouterr().out)['photographs'] == wanted['train']
    assert ends(commands.predict, [run, data/'images', '--out', tmp_path/'out', '--device', 'cpu']) == 0
    other = tmp_path/'data'
    write_folder(other, n=8, seed=9, size=64)
    capsys.readouterr()
    assert ends(commands.evaluate, [run, '--data', other, '--cache', 'off', '--part', 'valid', '--device', 'cpu']) == 2
    assert 'the run was begun with' in capsys.readouterr().err   # what it held out is not to be found in others
    (tmp_path/'file').write_text('')
    assert ends(commands.predict, [run, data/'images', '--out', tmp_path/'file', '--device', 'cpu']) == 2 and 'is a file' in capsys.readouterr().err

def test_a_network_of_photographs_with_their_surround_is_given_such(tmp_path, capsys):
    "Reading, training, predicting, scoring and exporting agree on what a photograph is."
    data, run = tmp_path/'eyes', tmp_path/'run'
    write_folder(data, n=12, seed=3, size=96)
    for f in data.rglob('*.png'):
        with Image.open(f) as im: out = Image.new(im.mode, (192, 96)); out.paste(im, (48, 0))
        out.save(f)
    tiny = recipe('pocket', size=32, crop=32, pad=2, steps=2, clf_batch=2, seg_batch=2, patience=0, valid=0.4, precision='float32')
    wanted = fit(tiny, run, data=str(data), reading=dict(crop_field=False, cache=False), device='cpu', progress=False, label='grade')
    model, (_, source) = load_model(run), run_source(run)
    file = sorted((data/'images').iterdir())[0]
    with torch.no_grad(): seen = model(standardise(source.images[[source.names.index(file.stem)]]))[0].softmax(1)[0].numpy()
    said = predict_photo(model, file)
    assert np.allclose(said.probabilities, seen, atol=1e-5) and said.cam_place.box == (0, 0, 192, 96)
    assert json.loads(_described(model))['crop_field'] is False
    assert ends(commands.predict, [run, file, '--out', tmp_path/'out', '--device', 'cpu']) == 0
    row = json.loads((tmp_path/'out'/'predictions.json').read_text())['photographs'][0]
    assert np.allclose(list(row['probabilities'].values()), seen, atol=1e-4)
    for part, count in (('valid', wanted['valid']), ('all', len(source))):
        capsys.readouterr()
        assert ends(commands.evaluate, [run, '--data', data, '--label', 'grade', '--cache', 'off', '--part', part, '--json', '--device', 'cpu']) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores['photographs'] == count and scores['miou'] == (wanted['miou'] if part == 'valid' else evaluate(model, source).metrics()['miou'])

def test_evaluate_draws_as_many_eyes_as_were_asked_for(capsys):
    for data, n in (('embedded:20', 20), ('embedded:3', 3)):
        assert ends(commands.evaluate, ['pretrained', '--data', data, '--json', '--device', 'cpu']) == 0
        assert json.loads(capsys.readouterr().out)['photographs'] == n
    assert ends(commands.evaluate, ['pretrained', '--data', 'embedded:0', '--device', 'cpu']) == 2 and 'at least one eye' in capsys.readouterr().err
    assert ends(commands.evaluate, ['pretrained', '--data', 'embedded:x', '--device', 'cpu']) == 2 and 'is not there' in capsys.readouterr().err

def test_evaluate_refuses(tmp_path, capsys):
    data = Path(__file__).parent.parent/'data'
    for argv, said in ((['pretrained'], '--data'), (['pretrained', '--data', data, '--part', 'valid'], 'no folder of a run'), (['pretrained', '--data', tmp_path/'none'], 'is not there'),
                       (['pretrained', '--data', data, '--cache', 'off', '--label', 'has_dr'], 'was trained on'), ([tmp_path/'none', '--data', data], 'is not there'),
                       (['pretrained', '--data', data, '--out', tmp_path/'none'/'x.json'], 'not there')):
        assert ends(commands.evaluate, [*argv, '--device', 'cpu']) == 2
        assert said in capsys.readouterr().err, argv

def test_export_writes_by_the_ending(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('jointseg_nb.export.save_program', lambda model, path: Path(path).write_bytes(b'x'*9) and Path(path))
    assert ends(commands.export, ['pretrained', tmp_path/'m.pt2']) == 0 and 'm.pt2' in capsys.readouterr().out
    assert ends(commands.export, ['pretrained', tmp_path/'m.pth']) == 2 and '.onnx or .pt2' in capsys.readouterr().err

def test_a_photograph_that_is_not_there_is_said_before_any_work(tmp_path, capsys):
    assert ends(commands.predict, ['pretrained', tmp_path/'none.jpg', '--out', tmp_path/'out']) == 2
    assert "none.jpg' is not there" in capsys.readouterr().err and not (tmp_path/'out').exists()

@pytest.mark.skipif(not Path('/dev/full').is_char_device(), reason='no /dev/full here')
def test_a_full_disk_is_no_mistake_of_the_caller(capsys):
    data = Path(__file__).parent.parent/'data'
    assert ends(commands.evaluate, ['pretrained', '--data', data, '--cache', 'off', '--out', '/dev/full', '--device', 'cpu']) == 1
    assert 'make room' in capsys.readouterr().err

def test_help_does_not_wait_for_torch():
    code = "import sys; from jointseg_nb import commands as c; [p().format_help() for p in (c.predict_parser, c.evaluate_parser, c.export_parser)]; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == 'False'
