"""Readers against trees with every fault we know; the real ones where they are, and twins made of embedded eyes everywhere."""
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jointseg_nb.data import Stream, embedded
from jointseg_nb.datasets import layout_of, load_entries, read, read_folder, read_idrid, read_table
from jointseg_nb.photos import ProblemsError, class_name, field_box, lesion_peaks, read_mask, read_photo, shrink
from jointseg_nb.fundus import LESIONS

DATA = Path(os.environ.get('JOINTSEG_DATA', Path(__file__).parents[1]/'..'/'shared'/'data'))
real = pytest.mark.skipif(not (DATA/'idrid512').is_dir(), reason='no IDRiD photographs here; JOINTSEG_DATA names the folder that holds idrid512/')
N, SIZE = 8, 64


@pytest.fixture(scope='module')
def eyes(): return embedded(N, seed=2, size=SIZE)


def photo(source, i): return Image.fromarray(source.images[i].permute(1, 2, 0).numpy())


def write(path, source, grades=None, suffix='.png'):
    (path/'images').mkdir(parents=True)
    for c, name in enumerate(LESIONS[1:], 1):
        folder = path/'masks'/name.replace(' ', '_')
        folder.mkdir(parents=True)
        for i in range(N):
            if (source.masks[i] == c).any(): Image.fromarray((source.masks[i] == c).numpy()).save(folder/f'e{i}.png')
    for i in range(N): photo(source, i).save(path/'images'/f'e{i}{suffix}')
    grades = source.labels.tolist() if grades is None else grades
    (path/'labels.csv').write_text('image,grade\n' + ''.join(f'e{i}{suffix},{g}\n' for i, g in enumerate(grades)))
    return path


@pytest.fixture
def tree(tmp_path, eyes): return write(tmp_path/'set', eyes)


def problems(path, **kwargs):
    with pytest.raises(ProblemsError) as e: read_folder(path, 32, **kwargs)
    return e.value.problems


def mask_of(tree): return sorted((tree/'masks'/'haemorrhage').glob('*.png'))[0]


def test_what_is_written_is_read(tree, eyes):
    s = read_folder(tree, SIZE, crop_field=False, empty_masks='all')
    assert torch.equal(s.images, eyes.images) and torch.equal(s.masks, eyes.masks) and torch.equal(s.labels, eyes.labels)
    assert s.mask_classes == LESIONS and s.problems == []


# --- one fault at a time: it is named, with its file, and nothing else is

def cut(file, n): file.write_bytes(file.read_bytes()[:n])


FAULTS = {
    'zero bytes': (lambda t: cut(t/'images'/'e3.png', 0), 'e3.png', 'zero bytes'),
    'truncated': (lambda t: cut(t/'images'/'e3.png', 700), 'e3.png', 'cannot be read as an image'),
    'not an image': (lambda t: (t/'images'/'e3.png').write_text('hello'), 'e3.png', 'cannot identify'),
    'a text file': (lambda t: (t/'images'/'readme.md').write_text('hello'), 'readme.md', 'is no image'),
    'a folder': (lambda t: (t/'images'/'more').mkdir(), 'more', 'is no image'),
    'two of a name': (lambda t: Image.new('RGB', (64, 64)).save(t/'images'/'e8.png') or Image.new('RGB', (64, 64)).save(t/'images'/'e8.jpg'), 'e8.png', 'same name as e8.jpg'),
    'sixteen bits': (lambda t: Image.fromarray(np.zeros((64, 64), np.uint16)).save(t/'images'/'e3.png'), 'e3.png', 'more than 8 bits'),
    'mask of another size': (lambda t: Image.new('1', (32, 64)).save(mask_of(t)), None, '32x64 px'),
    'mask truncated': (lambda t: cut(mask_of(t), 60), None, 'cannot be read as a mask'),
    'mask of nobody': (lambda t: Image.new('1', (64, 64)).save(t/'masks'/'drusen'/'x.png'), 'x.png', 'not there'),
    'two masks': (lambda t: Image.new('1', (64, 64)).save(mask_of(t).with_name(mask_of(t).stem + '_HE.png')), '_HE.png', 'second mask'),
    'unknown class': (lambda t: (t/'masks'/'scars').mkdir(), 'scars', 'not known'),
    'row of nobody': (lambda t: append(t, 'x.png,0'), 'labels.csv line 10', 'no photograph'),
    'row twice': (lambda t: append(t, 'e1,0'), 'labels.csv line 10', 'second time'),
    'grade out of range': (lambda t: swap(t, 2, 'e0.png,5'), 'labels.csv line 2', 'out of range'),
    'negative grade': (lambda t: swap(t, 2, 'e0.png,-1'), 'labels.csv line 2', 'out of range'),
    'unknown label': (lambda t: swap(t, 2, 'e0.png,worse'), 'labels.csv line 2', 'not known'),
    'half a grade': (lambda t: swap(t, 2, 'e0.png,1.5'), 'labels.csv line 2', 'not known'),
    'no image column': (lambda t: swap(t, 1, 'patient,grade'), 'labels.csv', "no column 'image'"),
    'empty table': (lambda t: (t/'labels.csv').write_text(''), 'labels.csv', 'no rows'),
    'quote not closed': (lambda t: append(t, '"e1.png,0'), 'labels.csv', 'in the row that starts on line 10'),
    'mask neither dark nor bright': (lambda t: Image.new('L', (64, 64), 76).save(mask_of(t)), None, 'brightest pixel has level 76'),
    'not utf-8': (lambda t: (t/'labels.csv').write_bytes('image,grade\nstra\xdfe.png,1\n'.encode('latin-1')), 'labels.csv', 'UTF-8'),
}


def append(tree, line): (tree/'labels.csv').write_text((tree/'labels.csv').read_text() + line + '\n')


def swap(tree, number, line):
    lines = (tree/'labels.csv').read_text().splitlines(); lines[number - 1] = line
    (tree/'labels.csv').write_text('\n'.join(lines))


@pytest.mark.parametrize('fault', FAULTS)
def test_one_fault_is_named_and_nothing_else(tree, fault):
    spoil, file, words = FAULTS[fault]
    spoil(tree)
    found = problems(tree)
    assert len(found) == 1, found
    assert (file or mask_of(tree).name) in found[0].file and words in str(found[0])


@pytest.mark.parametrize('fault', [f for f in FAULTS if f not in ('no image column', 'empty table', 'quote not closed', 'not utf-8')])
def test_strict_false_reads_the_rest(tree, fault):
    FAULTS[fault][0](tree)
    with pytest.warns(UserWarning, match='left out'): s = read_folder(tree, 32, strict=False)
    assert len(s) >= N - 1 and len(s.problems) == 1


@pytest.mark.parametrize('fault', ['no image column', 'empty table', 'not utf-8'])
def test_a_table_that_cannot_be_used_is_fatal_and_hides_nothing(tree, fault):
    FAULTS[fault][0](tree); FAULTS['zero bytes'][0](tree)
    for strict in (True, False): assert len(problems(tree, strict=strict)) == 2
    with pytest.raises(ProblemsError) as e: read_folder(tree, 32)
    assert 'strict=False' not in str(e.value)


def test_all_faults_are_listed_at_once(tree):
    for fault in ('zero bytes', 'a text file', 'mask of another size', 'unknown class', 'row of nobody', 'grade out of range'): FAULTS[fault][0](tree)
    assert len(problems(tree)) == 6


@pytest.mark.parametrize('make,words', [(lambda p: None, 'is not there'), (lambda p: p.mkdir(), 'is empty'), (lambda p: p.write_text(''), 'not a folder'),
                                        (lambda p: (p/'photos').mkdir(parents=True), 'only photos'), (lambda p: (p/'images').mkdir(parents=True), 'holds no images')])
def test_what_is_no_data_set(tmp_path, make, words):
    make(tmp_path/'x')
    for reader in (read_folder,) if words in ('is empty', 'only photos') else (read_folder, read):
        with pytest.raises(ProblemsError, match=words): reader(tmp_path/'x')
    assert 'strict=False' not in str(pytest.raises(ProblemsError, read_folder, tmp_path/'x').value)


def test_nothing_at_all_can_be_read(tree):
    for f in (tree/'images').iterdir(): f.write_bytes(b'')
    with pytest.raises(ProblemsError) as e: read_folder(tree, 32, strict=False)
    assert len(e.value.problems) == N


@pytest.mark.parametrize('share', [.02, .1, .3, .6, .9, .99])
def test_a_truncated_jpeg_never_crashes_and_never_passes(tmp_path, eyes, share):
    photo(eyes, 0).resize((900, 900)).save(tmp_path/'a.jpg')
    cut(tmp_path/'a.jpg', int(share * (tmp_path/'a.jpg').stat().st_size))
    with pytest.raises(Exception): read_photo(tmp_path/'a.jpg', 64)


# --- what is odd but fine

def test_odd_files_that_are_fine(tmp_path, eyes):
    images = tmp_path/'s'/'images'; images.mkdir(parents=True)
    photo(eyes, 0).save(images/'Ann left.JPG', format='JPEG')
    photo(eyes, 1).convert('L').save(images/'grey.png')
    photo(eyes, 2).convert('CMYK').save(images/'cmyk.jpeg')
    photo(eyes, 3).convert('RGBA').save(images/'Größe_é.png')
    photo(eyes, 4).save(images/'b.TIFF', format='TIFF')
    for junk in ('.DS_Store', '._grey.png', 'Thumbs.db'): (images/junk).write_bytes(b'junk')
    (tmp_path/'s'/'labels.csv').write_bytes('\ufeffImage Name ; Level ;;\r\nAnn left.JPG; 2 ;;\r\ngrey;;;\r\n\r\nGröße_é.png;4;;\r\n'.encode())
    s = read_folder(tmp_path/'s', 64)
    assert dict(zip(s.names, s.labels.tolist())) == {'Ann left': 2, 'b': -1, 'cmyk': -1, 'grey': -1, 'Größe_é': 4}
    assert len(s.segmentable) == 0 and s.images.amax((1, 2, 3)).min() > 100


def test_a_turned_photograph_is_turned_back_and_its_mask_fits(tmp_path):
    wide = Image.new('RGB', (90, 60), (120, 60, 20)); wide.paste((250, 250, 90), (0, 0, 30, 20))
    exif = Image.Exif(); exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to see it
    (tmp_path/'images').mkdir(); wide.save(tmp_path/'images'/'a.jpg', exif=exif, quality=95)
    (tmp_path/'masks'/'EX').mkdir(parents=True)
    upright = np.zeros((90, 60), np.uint8); upright[:30, 40:] = 255
    Image.fromarray(upright).save(tmp_path/'masks'/'EX'/'a.png')
    s = read_folder(tmp_path, 90, crop_field=False)
    bright, lesion = s.images[0, 1] > 150, s.masks[0] == LESIONS.index('hard exudate')
    assert (bright & lesion).sum() / (bright | lesion).sum() > .9


def test_has_dr_patients_and_other_columns(tree):
    rows = ['image,grade,has_dr,patient,camera'] + [f"e{i}.png,{'' if i > 3 else i},{'1' if i > 5 else ''},p{i // 2},{'AB'[i % 2]}" for i in range(N)]
    (tree/'labels.csv').write_text('\n'.join(rows))
    s = read_folder(tree, 32, 'has_dr')
    assert s.labels.tolist() == [0, 1, 1, 1, -1, -1, 1, 1] and s.label_names == ('no DR', 'DR') and s.groups[2:4] == ['p1', 'p1']
    assert read_folder(tree, 32, 'camera').label_names == ('a', 'b')
    assert read_folder(tree, 32, 'camera').labels.tolist() == [0, 1] * 4
    swap(tree, 2, 'e0.png,0,1,p0,A')
    assert 'contradicts grade 0' in str(problems(tree)[0])


def test_one_label_alone_warns_and_is_refused_by_the_stream(tmp_path, eyes):
    tree = write(tmp_path/'s', eyes, grades=[0, 0, 0, '', '', '', '', ''])
    with pytest.warns(UserWarning, match="label='has_dr'"): s = read_folder(tree, 32)
    with pytest.raises(ValueError, match="label='has_dr'"): Stream(s, s.gradable, 4, target='label')


def test_empty_masks(tmp_path, eyes):
    tree = write(tmp_path/'s', eyes, grades=[0, 0, 1, 1, '', '', '', ''])
    for f in tree.glob('masks/*/*.png'):
        if f.stem in ('e0', 'e2', 'e4'): f.unlink()
    known = lambda how: read_folder(tree, 32, empty_masks=how).has_mask[[0, 2, 4]].tolist()
    assert known('normal') == [True, False, False] and known('all') == [True] * 3 and known('never') == [False] * 3
    s = read_folder(tree, 32)
    assert (s.masks[0] == 0).all() and (s.masks[2] == 255).all()


def test_classes_of_ones_own(tree):
    s = read_folder(tree, SIZE, classes={'haemorrhage': 'red', 'microaneurysm': 'red too'}, crop_field=False, empty_masks='all')
    assert s.mask_classes == ('background', 'red', 'red too') and int(s.masks.max()) <= 2
    (tree/'masks'/'scars').mkdir()
    assert read_folder(tree, 32, classes={'scars': 'scar'}).mask_classes == ('background', 'scar')


def test_threads_do_not_change_the_order(tree):
    a, b = (read_folder(tree, 32, workers=w) for w in (1, 6))
    assert a.names == b.names and torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)


# --- masks and fields

@pytest.mark.parametrize('form', ['1', 'P', 'L01', 'L', 'RGB', 'RGBA', 'tif1'])
def test_every_form_of_mask(tmp_path, form):
    m = np.zeros((20, 30), np.uint8); m[5:9, 7:20] = 1
    im = {'1': Image.fromarray(m > 0), 'tif1': Image.fromarray(m > 0), 'L01': Image.fromarray(m), 'L': Image.fromarray(m * 255)}.get(form)
    if form == 'P': im = Image.fromarray(m).convert('P'); im.putpalette([0, 0, 0, 9, 0, 0] + [0] * 762)
    if form in ('RGB', 'RGBA'): im = Image.fromarray(np.stack([m * 200, m * 0, m * 0], 2)).convert(form)
    file = tmp_path/('m.tif' if form in ('P', 'tif1') else 'm.png'); im.save(file)
    assert np.array_equal(read_mask(file), m > 0)


def one_bit_palette_tiff(mask):
    "A TIFF with one bit for each pixel and a palette whose index 1 is nearly black; Pillow reads such files and writes none."
    bits = np.packbits(mask, axis=1).tobytes()
    palette = struct.pack('<6H', 0, 9 * 257, 0, 0, 0, 0)
    tags = [(256, 4, 1, mask.shape[1]), (257, 4, 1, mask.shape[0]), (258, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 3), (273, 4, 1, 8), (277, 3, 1, 1),
            (278, 4, 1, mask.shape[0]), (279, 4, 1, len(bits)), (320, 3, 6, 8 + len(bits))]
    return struct.pack('<2sHI', b'II', 42, 8 + len(bits + palette)) + bits + palette + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + bytes(4)


def test_a_palette_of_one_bit_is_read_by_its_index(tmp_path):
    m = np.zeros((20, 32), np.uint8); m[5:9, 7:20] = 1
    (tmp_path/'m.tif').write_bytes(one_bit_palette_tiff(m))
    palette = Image.fromarray(m).convert('P'); palette.putpalette([0, 0, 0, 9, 0, 0]); palette.save(tmp_path/'m.png', bits=1)
    for name in ('m.tif', 'm.png'):
        with Image.open(tmp_path/name) as im: assert np.asarray(im.convert('L')).max() < 10
        assert np.array_equal(read_mask(tmp_path/name), m > 0)


@pytest.mark.parametrize('levels,lesion', [([0, 2], []), ([0, 1], [1]), ([1], [1]), ([0], []), ([0, 31], []), ([0, 1, 5, 250, 255], [250, 255]), ([0, 127, 128, 255], [128, 255]),
                                           ([0, 128], [128]), ([0, 32], None), ([0, 127], None)])
def test_grey_levels_of_a_mask(tmp_path, levels, lesion):
    m = np.resize(np.array(levels, np.uint8), (6, 10))
    Image.fromarray(m).save(tmp_path/'m.png')
    if lesion is None:
        with pytest.raises(ValueError, match=f'level {max(levels)}'): read_mask(tmp_path/'m.png')
    else: assert np.array_equal(read_mask(tmp_path/'m.png'), np.isin(m, lesion))


@pytest.mark.parametrize('quality', [40, 75, 95])
def test_a_mask_saved_as_jpeg(tmp_path, quality):
    m = np.zeros((64, 64), np.uint8); m[20:31, 9:30] = 255
    Image.fromarray(m).save(tmp_path/'m.jpg', quality=quality)
    with Image.open(tmp_path/'m.jpg') as im: assert len(np.unique(np.asarray(im))) > 2
    assert np.array_equal(read_mask(tmp_path/'m.jpg'), m > 0)


def test_line_breaks_in_a_table(tmp_path):
    file, want = tmp_path/'t.csv', [(3, 'a\nb.png'), (6, 'c.png'), (8, 'd\u2028.png')]
    for end in '\n', '\r\n', '\r':
        file.write_bytes('image,"remark\n2"\n"a\nb.png","x,\n"\nc.png,"say ""a"""\n\nd\u2028.png,\n'.replace('\n', end).encode())
        rows = read_table(file)
        assert [(r['line'], r['image']) for r in rows] == want and rows[1]['remark 2'] == 'say "a"'
    for text in '', '\n', 'image,grade\n':
        file.write_text(text)
        assert read_table(file) == []


@pytest.mark.parametrize('how', ['cover', 'nearest', 'any'])
def test_a_mask_that_keeps_its_size_is_unchanged(how):
    m = np.random.default_rng(0).random((48, 48)) < .1
    assert np.array_equal(shrink(m, (0, 0, 1, 1), 48, how), m)


def test_cover_loses_no_lone_lesion_and_invents_none():
    rng = np.random.default_rng(1)
    for _ in range(30):
        m = np.zeros((256, 256), bool); y, x = rng.integers(8, 248, 2); r = rng.integers(1, 8)
        m[y - r:y + r, x - r:x + r] = True
        small = shrink(m, (0, 0, 1, 1), 32)
        touched = shrink(m, (0, 0, 1, 1), 32, 'any')
        assert small.sum() >= (1 if r > 1 else 0) and not (small & ~touched).any()
    assert not lesion_peaks(np.zeros((4, 4))).any() and not shrink(np.zeros((64, 64), bool), (0, 0, 1, 1), 8).any()


def test_photograph_and_mask_are_cut_alike(tmp_path, eyes):
    # a bright lesion in a wide frame: after field crop, padding and resizing it lies where its mask lies
    frame, mask = Image.new('RGB', (1200, 800)), np.zeros((800, 1200), np.uint8)
    frame.paste(photo(eyes, 0).resize((600, 600)), (340, 90)); frame.paste((90, 255, 255), (600, 300, 660, 350)); mask[300:350, 600:660] = 255
    (tmp_path/'images').mkdir(); (tmp_path/'masks'/'EX').mkdir(parents=True)
    frame.save(tmp_path/'images'/'a.jpg', quality=95); Image.fromarray(mask).save(tmp_path/'masks'/'EX'/'a_EX.png')
    s = read_folder(tmp_path, 128)
    bright, lesion = (s.images[0, 2] > 170), s.masks[0] == 1
    assert lesion.sum() > 60 and (bright & lesion).sum() / (bright | lesion).sum() > .75


@pytest.mark.parametrize('level', [30, 90, 250])
@pytest.mark.parametrize('cx,cy,r', [(300, 200, 150), (250, 210, 180), (320, 190, 260)])
def test_a_field_is_found_in_bright_and_dark_eyes(level, cx, cy, r):
    y, x = np.indices((400, 600))
    inside = (x - cx)**2 + (y - cy)**2 < r * r
    frame = np.where(inside[..., None], np.array([level, level // 2, level // 4]) * (1 - .4 * (np.hypot(x - cx, y - cy) / r)[..., None]**2), 3).clip(0, 255).astype(np.uint8)
    want = max(0, cx - r), max(0, cy - r), min(600, cx + r), min(400, cy + r)
    assert np.abs(np.array(field_box(Image.fromarray(frame))) - want).max() < 9


def test_names_of_published_folders():
    assert [class_name(n) for n in ('EX', 'SE', 'HE', 'MA', 'OD', '3. Hard Exudates', 'IRMA_Masks', 'Neovascularization_Masks', 'SoftExudate_Masks', 'vessels')] == \
        ['hard exudate', 'soft exudate', 'haemorrhage', 'microaneurysm', 'optic disc', 'hard exudate', 'IRMA', 'new vessels', 'soft exudate', None]


# --- IDRiD

def write_idrid(path, source, photos=True):
    for task, numbers in (('A. Segmentation', range(3)), ('B. Disease Grading', range(3, 7))):
        folder = path/task/'1. Original Images'/'a. Training Set'
        for k, i in enumerate(numbers, 1):
            if not photos and task[0] == 'B': break
            folder.mkdir(parents=True, exist_ok=True); photo(source, i).save(folder/(f'IDRiD_{k:02}.jpg' if task[0] == 'A' else f'IDRiD_{k:03}.jpg'))
    for folder, short, c in (('1. Microaneurysms', 'MA', 4), ('2. Haemorrhages', 'HE', 3), ('5. Optic Disc', 'OD', 1)):
        truth = path/'A. Segmentation'/'2. All Segmentation Groundtruths'/'a. Training Set'/folder; truth.mkdir(parents=True)
        for k in range(3):
            im = Image.fromarray((source.masks[k] == c).numpy().astype(np.uint8)).convert('P'); im.putpalette([0, 0, 0, 9, 0, 0] + [0] * 762)
            im.save(truth/f'IDRiD_{k + 1:02}_{short}.tif')
    (path/'B. Disease Grading'/'2. Groundtruths').mkdir(parents=True)
    rows = ['Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,'] + [f'IDRiD_{k:03},{int(source.labels[i])},{k % 3},,,,,,,,,' for k, i in enumerate(range(3, 7), 1)]
    (path/'B. Disease Grading'/'2. Groundtruths'/'a. IDRiD_Disease Grading_Training Labels.csv').write_text('\n'.join(rows))
    return path


def test_idrid_parts_are_never_joined_by_number(tmp_path, eyes):
    s = read_idrid(write_idrid(tmp_path/'i', eyes), 'both', SIZE, crop_field=False)
    assert s.labels.tolist() == [-1] * 3 + eyes.labels[3:7].tolist() and s.has_mask.tolist() == [True] * 3 + [False] * 4
    assert torch.equal(s.masks[:3] == 4, eyes.masks[:3] == 4) and len(set(s.groups)) == 7
    assert read(tmp_path/'i', 32).names == s.names and layout_of(tmp_path/'i'/'A. Segmentation') == layout_of(tmp_path/'i'/'B. Disease Grading') == 'idrid'
    assert len(read(tmp_path/'i'/'B. Disease Grading', 32)) == 4 and len(read(tmp_path/'i'/'A. Segmentation', 32)) == 3


def test_idrid_disc_and_oedema(tmp_path, eyes):
    path = write_idrid(tmp_path/'i', eyes)
    assert read_idrid(path, classes=('background', 'optic disc'), size=SIZE, crop_field=False).masks.eq(1).equal(eyes.masks[:3].eq(1))
    s = read_idrid(path, 'grading', 32, label='Risk of macular edema')
    assert s.label_names == ('0', '1', '2') and s.labels.tolist() == [1, 2, 0, 1]


def test_idrid_without_its_grading_photographs(tmp_path, eyes):
    path = write_idrid(tmp_path/'i', eyes, photos=False)
    assert len(read(path, 32)) == 3
    for task in ('grading', 'both'):
        with pytest.raises(ProblemsError, match='no training photographs for grading') as e: read_idrid(path, task, 32)
        assert len(e.value.problems) == 1


def test_idrid_with_a_row_too_many_and_one_too_few(tmp_path, eyes):
    path = write_idrid(tmp_path/'i', eyes)
    table = next((path/'B. Disease Grading').rglob('*.csv'))
    lines = table.read_text().splitlines(); lines[2] = 'IDRiD_099,1,0'; table.write_text('\n'.join(lines))
    with pytest.raises(ProblemsError) as e: read_idrid(path, 'grading', 32)
    assert len(e.value.problems) == 1 and 'IDRiD_099' in str(e.value)
    with pytest.warns(UserWarning): s = read_idrid(path, 'grading', 32, strict=False)
    assert s.labels[1] == -1 and len(s) == 4


# --- the real ones

@real
def test_idrid512():
    s = read(DATA/'idrid512', 64)
    assert len(s) == 100 and s.labels.bincount().tolist() == [60, 40] and len(s.segmentable) == 100
    assert len(read_folder(DATA/'idrid512', 64, 'has_dr', empty_masks='never').segmentable) == 40
    shares = torch.bincount(s.masks[s.labels == 1].flatten(), minlength=7)
    assert (shares[1:5] > 0).all() and (shares[5:] == 0).all() and (s.masks[s.labels == 0] == 0).all()
    with pytest.warns(UserWarning, match='all 60 known labels are 0'): graded = read(DATA/'idrid512', 64, 'grade')
    with pytest.raises(ValueError, match='has_dr'): Stream(graded, graded.gradable, 8, target='label')


@real
def test_idrid_original_tree():
    if not (DATA/'idrid_original_layout').is_dir(): pytest.skip('no idrid_original_layout here')
    s = read(DATA/'idrid_original_layout', 256)
    assert [n[-2:] for n in s.names] == ['01', '03', '08', '14'] and s.has_mask.all() and (s.labels == -1).all()
    tables = sorted((DATA/'idrid_original_layout').rglob('*.csv'))
    assert [len(read_table(t)) for t in tables] == [413, 103] and 'risk of macular edema' in read_table(tables[0])[0]
    with pytest.raises(ProblemsError, match='no training photographs for grading'): read_idrid(DATA/'idrid_original_layout', 'both')
    # the palette trap: the haemorrhages of IDRiD_01 are 35,430 pixels of index 1
    file = next((DATA/'idrid_original_layout').rglob('IDRiD_01_HE.tif'))
    assert read_mask(file).sum() == 35430
