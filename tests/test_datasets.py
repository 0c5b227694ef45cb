"""Every reader against a tree in its published layout, with its traps, and against what goes wrong in them; the real IDRiD where it is, twins made of embedded eyes everywhere."""
import os
import re
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

import trees
from jointseg_nb.data import Stream, embedded, join, split
from jointseg_nb.datasets import LAYOUTS, find, layout_of, read, read_table, to_folder
from jointseg_nb.fundus import LESIONS, write_folder as folder_of_eyes
from jointseg_nb.photos import ProblemsError, class_name, field_box, lesion_peaks, read_mask, read_photo, shrink
from trees import TREES, eyes, one_bit_palette_tiff, picture, save, write_folder

DATA = Path(os.environ.get('JOINTSEG_DATA', Path(__file__).parents[1]/'..'/'shared'/'data'))
real = pytest.mark.skipif(not (DATA/'idrid512').is_dir(), reason='no IDRiD photographs here; JOINTSEG_DATA names the folder that holds idrid512/')
N, SIZE = 8, 96


def now(path, **kwargs):
    "`read` in memory."
    return read(path, cache=False, **{'size': SIZE, **kwargs})


def all_of(name): return dict(part='all', task='both' if LAYOUTS[name].tasks else None)


def bad(problems): return [p for p in problems if p.level != 'note']


def notes(problems): return [p for p in problems if p.level == 'note']


@pytest.fixture(scope='module')
def grown(tmp_path_factory):
    "One tree of each layout, not to be changed."
    return {name: write(tmp_path_factory.mktemp('trees')/name) for name, write in TREES.items()}


# --- what is published is found and read, exactly

@pytest.mark.parametrize('name', TREES)
def test_a_tree_is_found_as_what_it_is(grown, name):
    tree = grown[name]
    found = find(tree.path, **all_of(name))
    assert layout_of(tree.path) == found.layout == name and bad(found.problems) == []
    assert {e.name: (e.label, e.group, e.part, e.has_mask) for e in found.entries} == {k: (p.grade, p.patient, p.part, p.masked) for k, p in tree.photos.items()}
    assert found.label == 'grade' and len(found.label_names) == 5 and found.classes == LESIONS


@pytest.mark.parametrize('name', TREES)
def test_a_tree_is_read_eye_by_eye(grown, name):
    tree, size = grown[name], 64 if name == 'retinamnist' else SIZE
    s, world = now(tree.path, size=size, crop_field=False, **all_of(name)), eyes()
    small = torch.stack([torch.from_numpy(np.asarray(picture(world, i).resize((size, size)))).permute(2, 0, 1) for i in range(len(world))]).float()
    for i, photo in enumerate(tree.photos[n] for n in s.names):
        assert (small - s.images[i].float()).abs().mean((1, 2, 3)).argmin() == photo.eye
        if photo.masked:
            there = world.masks[photo.eye] * (torch.ones(()) if name == 'folder' else (world.masks[photo.eye] <= 4))
            assert torch.equal(s.masks[i].long(), there.long())
    assert dict(zip(s.names, s.labels.tolist())) == {k: p.grade for k, p in tree.photos.items()}
    assert len(s) == len(tree.photos) and s.has_mask.tolist() == [tree.photos[n].masked for n in s.names]


@pytest.mark.parametrize('name', TREES)
def test_patients_stay_together(grown, name):
    "Also where the two halves of a set share a photograph, and where two eyes are of one patient."
    s = now(grown[name].path, size=32, **all_of(name))
    for seed in range(4):
        train, held = split(s, valid=.3, seed=seed)
        assert {s.groups[i] for i in train} & {s.groups[i] for i in held} == set() and len(train) + len(held) == len(s)


@pytest.mark.parametrize('name', TREES)
def test_finding_opens_no_photograph(grown, name, monkeypatch):
    monkeypatch.setattr(Image, 'open', lambda *a, **k: pytest.fail('a photograph was opened'))
    assert find(grown[name].path, **all_of(name)).entries


@pytest.mark.parametrize('name', TREES)
def test_one_part(grown, name):
    parts = LAYOUTS[name].parts
    for part in parts: assert {e.part for e in find(grown[name].path, part=part).entries} == {part}
    if not parts: assert len(find(grown[name].path).entries) == len(grown[name].photos)
    with pytest.raises(ValueError, match="part='dev'"): find(grown[name].path, part='dev')
    with pytest.raises(ValueError, match="task='vessels'"): find(grown[name].path, task='vessels')


@pytest.mark.parametrize('name', [n for n in TREES if n != 'retinamnist'])
def test_in_a_folder_of_the_zip_files_name(tmp_path, name):
    tree = TREES[name](tmp_path/'data_release_v2'/'set')
    assert layout_of(tmp_path/'data_release_v2') == name
    if name != 'folder': assert [e.group for e in find(tmp_path/'data_release_v2').entries] == [e.group for e in find(tree.path).entries]


@pytest.mark.parametrize('name', TREES)
def test_a_layout_that_is_not_there_is_refused(grown, name):
    for other in set(TREES) - {name, 'folder' if name == 'messidor2' else name}: # its IMAGES/ make it a folder too, for who wants that
        with pytest.raises(ProblemsError, match=f'is no {other}'): find(grown[name].path, layout=other)
    assert find(grown[name].path, layout=name).layout == name


@pytest.mark.parametrize('name', [n for n in TREES if n != 'retinamnist'])
def test_a_photograph_too_few_and_one_too_many(tmp_path, name):
    tree = TREES[name](tmp_path/name)
    file = next(e.image for e in find(tree.path, **all_of(name)).entries if e.label >= 0)
    file.rename(file.with_name('0_extra' + file.suffix))
    found = find(tree.path, **all_of(name))
    row, masks = ([p for p in bad(found.problems) if ('has no photograph' in p.what) == row] for row in (True, False))
    assert len(row) == 1 and file.stem in row[0].what and all('mask of a photograph that is not there' in p.what and file.stem in p.file for p in masks)
    assert any('0_extra' in p.file and 'has no row' in p.what for p in notes(found.problems))


def test_equal_photographs_of_one_set_and_of_two_halves_are_one_patient(tmp_path):
    tree = trees.write_aptos(tmp_path/'aptos')
    shutil.copy(tree.path/'train_images'/'000c1434d8d7.png', tree.path/'train_images'/'ffffffffffff.png')
    s = now(tree.path)
    assert s.groups[s.names.index('train/000c1434d8d7')] == s.groups[s.names.index('train/ffffffffffff')] and len(set(s.groups)) == len(s) - 1


def test_sets_read_apart_and_joined(tmp_path, grown):
    "Equal names of two clinics are two patients; the halves of DDR know each other's patients also when they are read one by one."
    for clinic, seed in (('north', 2), ('south', 3)): write_folder(tmp_path/clinic, eyes(8, 64, seed))
    both = join(*(now(tmp_path/c, size=64) for c in ('north', 'south')))
    assert len(both) == 16 and len(set(both.groups)) == 16 and {'north:e0', 'south:e0'} <= set(both.groups)
    ddr = join(*(now(grown['ddr'].path/half) for half in ('DR_grading', 'lesion_segmentation')))
    assert Counter(ddr.groups)['ddr:007-0000-000'] == 2 and len(ddr) == 6


def test_whether_the_surround_was_cut_away_is_kept(tmp_path, grown):
    write_folder(tmp_path/'north', eyes(8, 64, 2)); write_folder(tmp_path/'south', eyes(8, 64, 3))
    cut, uncut = (now(tmp_path/c, size=64, crop_field=k) for c, k in (('north', True), ('south', False)))
    published = now(grown['retinamnist'].path, size=64, crop_field=False)
    assert (cut.crop_field, uncut.crop_field, published.crop_field, embedded(2).crop_field) == (True, False, None, None)
    for s in (cut, uncut):
        both = join(s, embedded(2), published)
        assert [o.crop_field for o in (both, both.subset([0, 9]), both.in_memory(), both.to('cpu'), join(embedded(2, seed=1), both))] == [s.crop_field]*5
    assert join(published, embedded(2)).crop_field is None
    with pytest.raises(ValueError, match="'north' was read with crop_field=True, 'south' with crop_field=False; read both"): join(cut, published, uncut)


# --- layout by layout

def test_idrid_parts_are_never_joined_by_number(grown):
    s = now(grown['idrid'].path, **all_of('idrid'))
    assert len(set(s.groups)) == len(s) == 10 and {'segmentation/train/IDRiD_01', 'grading/train/IDRiD_001', 'grading/test/IDRiD_001'} <= set(s.names)
    assert now(grown['idrid'].path).title == 'IDRiD segmentation and grading, train'


def test_idrid_halves_alone(grown):
    path = grown['idrid'].path
    for half, task, n in (('A. Segmentation', 'segmentation', 3), ('B. Disease Grading', 'grading', 4)):
        assert layout_of(path/half) == 'idrid' and [e.name.split('/')[0] for e in find(path/half).entries] == [task] * n
        assert len(find(path, task=task).entries) == n


def test_idrid_disc_and_oedema(grown):
    path = grown['idrid'].path
    s = now(path, task='segmentation', classes=('background', 'optic disc'), crop_field=False)
    assert np.array_equal(s.masks[0].numpy() == 1, trees.disc(eyes()))
    found = find(path, task='grading', part='all', label='Risk of  macular edema ')
    assert found.label_names == ('0', '1', '2') and [e.label for e in found.entries] == [1, 2, 0, 1, 1, 2]
    assert [p.file[-13:] for p in notes(find(path, task='segmentation').problems)] == ['5. Optic Disc']


def test_idrid_without_its_grading_photographs(tmp_path):
    path = trees.write_idrid(tmp_path/'i', grading_photos=False).path
    found = find(path)
    assert len(found.entries) == 3 and len([p for p in notes(found.problems) if 'for grading' in p.what]) == 1 and not bad(found.problems)
    for task, n in (('grading', 0), ('both', 3)):
        found = find(path, task=task)
        assert len(found.entries) == n and [p.what for p in bad(found.problems)] == ['has no photographs for grading']
        with pytest.raises(ProblemsError, match='no photographs for grading'): now(path, task=task)


def test_a_class_that_every_copy_has_may_not_be_missing(tmp_path):
    path = trees.write_idrid(tmp_path/'i').path
    shutil.rmtree(next(path.rglob('3. Hard Exudates')))
    for strict in (True, False):
        with pytest.raises(ProblemsError, match="no folder with masks of 'hard exudate'"): now(path, task='segmentation', strict=strict)
    assert now(path, task='segmentation', classes=('background', 'microaneurysm')).n_classes == 2


@pytest.mark.parametrize('inner', ['{part}', '{part}/{part}', '.', 'Diabetic_{part}'])
def test_eyepacs_however_it_was_unpacked(tmp_path, inner):
    tree = trees.write_eyepacs(tmp_path/'e', inner=inner)
    for part in ('train', 'test', 'all'):
        found = find(tree.path, part=part)
        assert {e.name: (e.label, e.group) for e in found.entries} == {k: (p.grade, p.patient) for k, p in tree.photos.items() if part in ('all', p.part)}
        assert found.problems == []


def test_eyepacs_without_the_grades_of_the_testing_set(tmp_path):
    tree = trees.write_eyepacs(tmp_path/'e')
    (tree.path/'retinopathy_solution.csv').unlink()
    assert find(tree.path).problems == []
    assert [p.file[-24:] for p in bad(find(tree.path, part='test').problems)] == ['retinopathy_solution.csv']


def test_aptos_names_of_digits_and_the_testing_set(grown):
    s = find(grown['aptos'].path, part='test')
    assert [e.label for e in s.entries] == [-1, -1] and 'train/123456789012' in grown['aptos'].photos


def test_ddr_ungradable_and_shared(grown):
    found = find(grown['ddr'].path)
    assert [p.what for p in found.problems] == ['1 of 5 photographs are left out, since it says that they are not gradable'] and len(found.entries) == 6
    s = now(grown['ddr'].path)
    assert [n for n, g in zip(s.names, s.groups) if g == 'ddr:007-0000-000'] == ['grading/train/007-0000-000', 'segmentation/train/007-0000-000']
    for half, n in (('DR_grading', 4), ('lesion_segmentation', 2)): assert len(find(grown['ddr'].path/half).entries) == n


@pytest.mark.parametrize('task', ['grading', 'segmentation'])
def test_ddr_with_one_half(tmp_path, task):
    tree = trees.write_ddr(tmp_path/'d', tasks=(task,))
    assert {e.name for e in find(tree.path, part='all').entries} == set(tree.photos)
    assert len([p for p in notes(find(tree.path).problems) if 'has no photographs for' in p.what]) == 1
    with pytest.raises(ProblemsError, match='has no photographs for'): now(tree.path, task='both')


def test_fgadr_with_irma_and_new_vessels(grown):
    path, disc = grown['fgadr'].path, trees.disc(eyes())
    assert Counter(p.file.rpartition('/')[2] for p in find(path).problems) == {'IRMA_Masks': 1, 'Neovascularization_Masks': 1}
    s = now(path, classes=(*LESIONS, 'IRMA', 'new vessels'), crop_field=False)
    assert s.problems == s.notes == [] and (s.masks[1] == 7).any() and (s.masks[2] == 8).sum() + (s.masks[2] == 7).sum() > .5 * disc.sum() and not (s.masks[0] > 4).any()
    assert s.mask_colors[7:].tolist() == [[213, 94, 0], [120, 94, 240]]


def test_fgadr_without_its_table_still_has_masks(tmp_path):
    tree = trees.write_fgadr(tmp_path/'f')
    (tree.path/'Seg-set'/'DR_Seg_Grading_Label.csv').unlink()
    with pytest.raises(ProblemsError, match='is not there'): now(tree.path)
    s = now(tree.path, strict=False, quiet=True)
    assert len(s.segmentable) == 8 and len(s.gradable) == 0


def test_messidor2_pairs_and_endings(tmp_path):
    tree = trees.write_messidor2(tmp_path/'m', pairs=False)
    found = find(tree.path)
    assert {e.name: e.group for e in found.entries} == {k: p.patient for k, p in tree.photos.items()}
    assert sorted(p.what.split(',')[0] for p in found.problems) == ['1 of 8 photographs are left out', 'has no messidor-2.csv', 'has no row in messidor_data.csv']
    assert {e.image.suffix for e in found.entries} == {'.png', '.JPG'}


def test_messidor2_oedema(grown): assert find(grown['messidor2'].path, label='adjudicated_dme').label_names == ('0.0', '1.0')


def test_retinamnist_that_is_something_else(tmp_path):
    path = tmp_path/'retinamnist.npz'
    for arrays, words in ((dict(train_images=np.zeros((3, 8, 8), np.uint8), train_labels=np.zeros((3, 1))), r'images \(3, 8, 8\)'), (dict(x=np.zeros(3)), 'has no train photographs'),
                          (dict(train_images=np.zeros((3, 8, 8, 3), np.uint8), train_labels=np.full((3, 1), 7)), 'grade 7 is out of range')):
        np.savez(path, **arrays)
        with pytest.raises(ProblemsError, match=words): now(path, size=8)
    path.write_bytes(b'PK not really')
    with pytest.raises(ProblemsError, match='cannot be read as RetinaMNIST'): now(path)
    assert layout_of(tmp_path) == 'retinamnist'


def test_has_dr_of_every_graded_set(grown):
    for name, tree in grown.items():
        found = find(tree.path, label='has_dr', **all_of(name))
        assert {e.name: e.label for e in found.entries} == {k: min(p.grade, 1) for k, p in tree.photos.items()} and found.label_names == ('no DR', 'DR')


# --- the cache

def test_the_cache_gives_what_memory_gives(grown, tmp_path):
    for name, tree in grown.items():
        a, b, c = now(tree.path, **all_of(name)), *(read(tree.path, size=SIZE, cache=tmp_path/'cache', **all_of(name)) for _ in range(2))
        for s in (b, c):
            assert torch.equal(a.images[:], s.images[:]) and a.names == s.names and a.groups == s.groups and a.has_mask.tolist() == s.has_mask.tolist()
            if a.has_mask.any(): assert torch.equal(a.masks[:][a.has_mask], s.masks[:][a.has_mask])


def test_the_default_cache_is_the_users(grown, monkeypatch, tmp_path):
    monkeypatch.setenv('JOINTSEG_CACHE', str(tmp_path/'users'))
    read(grown['aptos'].path, size=32)
    assert len(list((tmp_path/'users').iterdir())) == 1
    read(grown['aptos'].path, size=32, part='test'); read(grown['aptos'].path, size=16, cache=False)
    assert len(list((tmp_path/'users').iterdir())) == 1


# --- one fault at a time: it is named, with its file, and nothing else is

@pytest.fixture
def tree(tmp_path): return write_folder(tmp_path/'set', n=N).path


def problems(path, **kwargs):
    with pytest.raises(ProblemsError) as e: now(path, size=32, **kwargs)
    return e.value.problems


def mask_of(tree): return sorted((tree/'masks'/'haemorrhage').glob('*.png'))[0]


def photo(i): return picture(eyes(), i)


def test_what_is_written_is_read(tree):
    s, world = now(tree, crop_field=False, empty_masks='all'), eyes()
    assert torch.equal(s.images[:], world.images[:N]) and torch.equal(s.masks[:], world.masks[:N]) and torch.equal(s.labels, world.labels[:N])
    assert s.mask_classes == LESIONS and s.problems == s.notes == []


def test_a_source_written_as_a_folder_comes_back(grown, tmp_path):
    for name, given in (('messidor2', {}), ('ddr', dict(task='both')), ('fgadr', dict(classes=(*LESIONS, 'IRMA'))), ('eyepacs', dict(label='has_dr'))):
        s = now(grown[name].path, crop_field=False, **given)
        back = now(to_folder(s, tmp_path/name), crop_field=False, empty_masks='never', label=given.get('label', 'grade'), classes=given.get('classes'))
        at = [back.names.index(n.replace('/', '_')) for n in s.names]
        assert torch.equal(back.images[at], s.images[:]) and back.labels[at].tolist() == s.labels.tolist() and back.has_mask[at].tolist() == s.has_mask.tolist()
        if s.has_mask.any(): assert torch.equal(back.masks[at][s.has_mask], s.masks[:][s.has_mask])
        together = lambda groups: [groups.index(g) for g in groups]
        assert together([back.groups[i] for i in at]) == together(s.groups)
    with pytest.raises(ValueError, match='holds a set already'): to_folder(s, tmp_path/name)


def cut(file, n): file.write_bytes(file.read_bytes()[:n])


def pipe(file): file.unlink(); os.mkfifo(file)


def outside(tree, name='elsewhere.png'):
    return save(photo(9), tree.parent/name)


def link_folder(tree, folder):
    (tree/folder).rename(tree.parent/'moved'); (tree/folder).symlink_to(tree.parent/'moved')


FAULTS = {
    'zero bytes': (lambda t: cut(t/'images'/'e3.png', 0), 'e3.png', 'zero bytes'),
    'truncated': (lambda t: cut(t/'images'/'e3.png', 700), 'e3.png', 'cannot be read as an image'),
    'not an image': (lambda t: (t/'images'/'e3.png').write_text('hello'), 'e3.png', 'cannot identify'),
    'CMYK': (lambda t: photo(3).convert('CMYK').save(t/'images'/'e3.png', format='JPEG'), 'e3.png', 'cannot be read as an image'),
    'a text file': (lambda t: (t/'images'/'readme.md').write_text('hello'), 'readme.md', 'is no image'),
    'a folder': (lambda t: (t/'images'/'more').mkdir(), 'more', 'is a folder'),
    'a folder called like an image': (lambda t: (t/'images'/'e9.jpg').mkdir(), 'e9.jpg', 'is a folder'),
    'a folder in place of a photograph': (lambda t: (t/'images'/'e3.png').unlink() or (t/'images'/'e3.png').mkdir(), 'e3.png', 'is a folder'),
    'a pipe': (lambda t: os.mkfifo(t/'images'/'e9.jpg'), 'e9.jpg', 'is no plain file'),
    'a pipe for a mask': (lambda t: pipe(mask_of(t)), None, 'is no plain file'),
    'two endings': (lambda t: Image.new('RGB', (64, 64)).save(t/'images'/'e7.jpg'), 'e7.png', 'same name as e7.jpg'),
    'two cases': (lambda t: Image.new('RGB', (64, 64)).save(t/'images'/'E7.png'), 'e7.png', 'same name as E7.png'),
    'a name that is no text': (lambda t: photo(9).save(os.fsencode(t/'images') + b'/stra\xdfe.png', format='PNG'), 'stra?e.png', 'not in UTF-8'),
    'a link out': (lambda t: (t/'images'/'x.png').symlink_to(outside(t)), 'x.png', 'is a link out of the folder'),
    'a link in place of a photograph': (lambda t: (t/'images'/'e3.png').unlink() or (t/'images'/'e3.png').symlink_to(outside(t)), 'e3.png', 'is a link out of the folder'),
    'a link to nothing': (lambda t: (t/'images'/'x.png').symlink_to('nothing.png'), 'x.png', 'leads nowhere'),
    'a link to itself': (lambda t: (t/'images'/'x.png').symlink_to('x.png'), 'x.png', 'leads nowhere'),
    'sixteen bits': (lambda t: Image.fromarray(np.zeros((64, 64), np.uint16)).save(t/'images'/'e3.png'), 'e3.png', '16'),
    'mask of another size': (lambda t: Image.new('1', (32, 64)).save(mask_of(t)), None, '32x64 px'),
    'mask truncated': (lambda t: cut(mask_of(t), 60), None, 'cannot be read as a mask'),
    'mask of nobody': (lambda t: Image.new('1', (64, 64)).save(t/'masks'/'drusen'/'x.png'), 'x.png', 'not there'),
    'mask beside the classes': (lambda t: Image.new('1', (64, 64)).save(t/'masks'/'e3.png'), 'e3.png', 'beside the class folders'),
    'two masks': (lambda t: Image.new('1', (64, 64)).save(mask_of(t).with_name(mask_of(t).stem + '_HE.png')), '_HE.png', 'second mask'),
    'unknown class': (lambda t: (t/'masks'/'scars').mkdir(), 'scars', 'not known'),
    'row of nobody': (lambda t: append(t, 'x.png,0'), 'labels.csv line 10', 'no photograph'),
    'row of no name': (lambda t: append(t, ',0'), 'labels.csv line 10', 'names no image'),
    'row twice': (lambda t: append(t, 'e1,0'), 'labels.csv line 10', 'second time'),
    'row too long': (lambda t: swap(t, 2, 'e0.png,1,x'), 'labels.csv line 2', 'more cells than the header'),
    'grade out of range': (lambda t: swap(t, 2, 'e0.png,5'), 'labels.csv line 2', 'out of range'),
    'negative grade': (lambda t: swap(t, 2, 'e0.png,-1'), 'labels.csv line 2', 'out of range'),
    'unknown label': (lambda t: swap(t, 2, 'e0.png,worse'), 'labels.csv line 2', 'not known'),
    'half a grade': (lambda t: swap(t, 2, 'e0.png,1.5'), 'labels.csv line 2', 'not known'),
    'no end of grades': (lambda t: swap(t, 2, 'e0.png,inf'), 'labels.csv line 2', 'not known'),
    'mask neither dark nor bright': (lambda t: Image.new('L', (96, 96), 76).save(mask_of(t)), None, 'brightest pixel has level 76'),
}
FATAL = {
    'no image column': (lambda t: swap(t, 1, 'patient,grade'), 'labels.csv', "no column 'image'"),
    'no label column': (lambda t: swap(t, 1, 'image,camera'), 'labels.csv', "no column 'grade'"),
    'no header': (lambda t: swap(t, 1, 'e7.png,1'), 'labels.csv', "no column 'image'"),
    'empty table': (lambda t: (t/'labels.csv').write_text(''), 'labels.csv', 'no rows'),
    'header only': (lambda t: (t/'labels.csv').write_text('image,grade\n'), 'labels.csv', 'no rows'),
    'quote not closed': (lambda t: append(t, '"e1.png,0'), 'labels.csv', 'in the row that starts on line 10'),
    'not utf-8': (lambda t: (t/'labels.csv').write_bytes('image,grade\nstra\xdfe.png,1\n'.encode('latin-1')), 'labels.csv', 'UTF-8'),
    'utf-16 without mark': (lambda t: (t/'labels.csv').write_bytes('image,grade\n'.encode('utf-16-le')), 'labels.csv', 'zero bytes'),
    'a spreadsheet': (lambda t: (t/'labels.csv').write_bytes(b'PK\3\4...'), 'labels.csv', 'spreadsheet'),
    'table is a folder': (lambda t: (t/'labels.csv').unlink() or (t/'labels.csv').mkdir(), 'labels.csv', 'is a folder'),
    'table is a pipe': (lambda t: (t/'labels.csv').unlink() or os.mkfifo(t/'labels.csv'), 'labels.csv', 'is no plain file'),
    'table is a link out': (lambda t: (t/'labels.csv').rename(t.parent/'l.csv') and (t/'labels.csv').symlink_to(t.parent/'l.csv'), 'labels.csv', 'is a link out of the folder'),
    'images are a link out': (lambda t: link_folder(t, 'images'), 'images', 'is a link out of the folder'),
    'masks of a class are a link out': (lambda t: link_folder(t, 'masks/haemorrhage'), 'haemorrhage', 'is a link out of the folder'),
}


def append(tree, line): (tree/'labels.csv').write_text((tree/'labels.csv').read_text() + line + '\n')


def swap(tree, number, line):
    lines = (tree/'labels.csv').read_text().splitlines(); lines[number - 1] = line
    (tree/'labels.csv').write_text('\n'.join(lines))


@pytest.mark.parametrize('fault', [*FAULTS, *FATAL])
def test_one_fault_is_named_and_nothing_else(tree, fault):
    spoil, file, words = {**FAULTS, **FATAL}[fault]
    spoil(tree)
    found = problems(tree)
    assert len(found) == 1, found
    assert (file or mask_of(tree).name) in found[0].file and words in str(found[0])


@pytest.mark.parametrize('fault', FAULTS)
def test_strict_false_reads_the_rest(tree, fault):
    FAULTS[fault][0](tree)
    with pytest.warns(UserWarning, match='left out'): s = now(tree, size=32, strict=False)
    assert len(s) >= N - 1 and len(s.problems) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error'); assert now(tree, size=32, strict=False, quiet=True).problems == s.problems


@pytest.mark.parametrize('fault', FATAL)
def test_a_fatal_fault_hides_nothing_and_strict_does_not_get_past_it(tree, fault):
    FAULTS['zero bytes'][0](tree); FATAL[fault][0](tree)
    n = 1 if fault == 'images are a link out' else 2
    for strict in (True, False): assert len(problems(tree, strict=strict)) == n
    with pytest.raises(ProblemsError) as e: now(tree, size=32)
    assert 'strict=False' not in str(e.value)


def test_links_are_followed_when_asked(tree):
    link_folder(tree, 'images'); FAULTS['a link out'][0](tree)
    assert len(now(tree, size=32, links=True)) == N + 1


def test_two_of_a_name_are_both_left_out_and_a_refused_mask_makes_masks_unknown(tree):
    FAULTS['two cases'][0](tree)
    assert len(now(tree, size=32, strict=False, quiet=True)) == N - 1
    stem = mask_of(tree).stem
    pipe(mask_of(tree))
    s = now(tree, size=32, strict=False, quiet=True)
    assert not s.has_mask[s.names.index(stem)] and len(s.problems) == 2


def test_links_inside_are_fine(tree):
    (tree/'images'/'twin.png').symlink_to('e0.png')
    s = now(tree, size=32)
    assert s.groups[s.names.index('twin')] == s.groups[s.names.index('e0')]


def test_all_faults_are_listed_at_once(tree):
    for fault in ('zero bytes', 'a text file', 'mask of another size', 'unknown class', 'row of nobody', 'grade out of range'): FAULTS[fault][0](tree)
    assert len(problems(tree)) == 6


@pytest.mark.parametrize('make,words', [(lambda p: None, 'is not there'), (lambda p: p.mkdir(), 'nothing in it'), (lambda p: p.write_text(''), 'it is a file'),
                                        (lambda p: (p/'photos').mkdir(parents=True), 'folder with photos'), (lambda p: (p/'images').mkdir(parents=True), 'holds no photographs'), (lambda p: os.mkfifo(p), 'neither')])
def test_what_is_no_data_set(tmp_path, make, words):
    make(tmp_path/'x')
    for strict in (True, False):
        with pytest.raises(ProblemsError, match=words) as e: now(tmp_path/'x', strict=strict)
        assert 'strict=False' not in str(e.value)


def test_what_was_looked_for_is_said(tmp_path):
    with pytest.raises(ProblemsError) as e: find(tmp_path)
    for l in LAYOUTS.values(): assert l.name in str(e.value) and l.looks_for in str(e.value)
    with pytest.raises(ValueError, match='choose one of folder, idrid'): find(tmp_path, layout='drive')
    (tmp_path/'set.zip').write_bytes(b'PK')
    with pytest.raises(ProblemsError, match='is packed'): find(tmp_path/'set.zip')


def test_two_sets_in_one_folder(tmp_path):
    trees.write_aptos(tmp_path); trees.write_eyepacs(tmp_path)
    with pytest.raises(ProblemsError, match='may be any of eyepacs, aptos'): find(tmp_path)
    assert len(find(tmp_path, layout='eyepacs').entries) == 8


def test_nothing_at_all_can_be_read(tree):
    for f in (tree/'images').iterdir(): f.write_bytes(b'')
    assert len(problems(tree, strict=False)) == N


@pytest.mark.parametrize('share', [.02, .1, .3, .6, .9, .99])
def test_a_truncated_jpeg_never_crashes_and_never_passes(tmp_path, share):
    photo(0).resize((900, 900)).save(tmp_path/'a.jpg')
    cut(tmp_path/'a.jpg', int(share * (tmp_path/'a.jpg').stat().st_size))
    with pytest.raises(Exception): read_photo(tmp_path/'a.jpg', 64)


# --- what is odd but fine

def test_odd_files_that_are_fine(tmp_path):
    images = tmp_path/'s'/'images'; images.mkdir(parents=True)
    photo(0).save(images/'Ann left.JPG', format='JPEG')
    photo(1).convert('L').save(images/'grey.png')
    photo(3).convert('RGBA').save(images/'Gro\u0308\xdfe_e\u0301.png') # as macOS spells it
    photo(4).save(images/'b.TIFF', format='TIFF')
    for junk in ('.DS_Store', '._grey.png', 'Thumbs.db'): (images/junk).write_bytes(b'junk')
    (tmp_path/'s'/'Labels.CSV').write_bytes('\ufeffImage Name ; Level ;;\r\nAnn left.JPG; 2 ;;\r\nimages\\grey;;;\r\n\r\nGr\xf6\xdfe_\xe9.png;4;;\r\n'.encode())
    s = now(tmp_path/'s', size=64)
    assert {n[:3]: l for n, l in zip(s.names, s.labels.tolist())} == {'Ann': 2, 'b': -1, 'gre': -1, 'Gro': 4}
    assert len(s.segmentable) == 0 and s.images[:].amax((1, 2, 3)).min() > 100


def test_a_turned_photograph_is_turned_back_and_its_mask_fits(tmp_path):
    wide = Image.new('RGB', (90, 60), (120, 60, 20)); wide.paste((250, 250, 90), (0, 0, 30, 20))
    exif = Image.Exif(); exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to see it
    (tmp_path/'images').mkdir(); wide.save(tmp_path/'images'/'a.jpg', exif=exif, quality=95)
    (tmp_path/'masks'/'EX').mkdir(parents=True)
    upright = np.zeros((90, 60), np.uint8); upright[:30, 40:] = 255
    Image.fromarray(upright).save(tmp_path/'masks'/'EX'/'a.png')
    s = now(tmp_path, size=90, crop_field=False)
    bright, lesion = s.images[0][1] > 150, s.masks[0] == LESIONS.index('hard exudate')
    assert (bright & lesion).sum() / (bright | lesion).sum() > .9


def test_has_dr_patients_and_other_columns(tree):
    rows = ['image,grade,has_dr,patient,camera'] + [f"e{i}.png,{'' if i > 3 else i},{'1' if i > 5 else ''},p{i // 2},{'AB'[i % 2]}" for i in range(N)]
    (tree/'labels.csv').write_text('\n'.join(rows))
    s = now(tree, size=32, label='has_dr')
    assert s.labels.tolist() == [0, 1, 1, 1, -1, -1, 1, 1] and s.label_names == ('no DR', 'DR') and s.groups[2:4] == ['set:p1', 'set:p1']
    assert now(tree, size=32, label='camera').label_names == ('a', 'b')
    assert now(tree, size=32, label='camera').labels.tolist() == [0, 1] * 4
    swap(tree, 2, 'e0.png,0,1,p0,A')
    assert 'contradicts grade 0' in str(problems(tree)[0])


def test_one_label_alone_warns_and_is_refused_by_the_stream(tmp_path):
    tree = write_folder(tmp_path/'s', grades=[0, 0, 0, '', '', '', '', '']).path
    with pytest.warns(UserWarning, match="label='has_dr'"): s = now(tree, size=32)
    with pytest.raises(ValueError, match="label='has_dr'"): Stream(s, s.gradable, 4, target='label')


def test_has_dr_is_chosen_where_the_grades_are_alike_and_that_is_noted(tree):
    (tree/'labels.csv').write_text('image,grade,has_dr\n' + ''.join(f"e{i}.png,{'' if i % 2 else 0},{i % 2}\n" for i in range(N)))
    found = find(tree)
    assert found.label == 'has_dr' and [e.label for e in found.entries] == [0, 1] * 4 and ['has_dr' in p.what for p in found.problems] == [True]
    assert find(tree, label='grade').problems == []


def test_empty_masks(tmp_path):
    tree = write_folder(tmp_path/'s', grades=[0, 0, 1, 1, '', '', '', '']).path
    for f in tree.glob('masks/*/*.png'):
        if f.stem in ('e0', 'e2', 'e4'): f.unlink()
    known = lambda how: now(tree, size=32, empty_masks=how).has_mask[[0, 2, 4]].tolist()
    assert known('normal') == [True, False, False] and known('all') == [True] * 3 and known('never') == [False] * 3
    s = now(tree, size=32)
    assert (s.masks[0] == 0).all() and (s.masks[2] == 255).all()
    (tree/'masks'/'OD').mkdir()
    assert not find(tree, classes=('background', 'optic disc')).entries[0].has_mask  # a healthy eye has a disc
    with pytest.raises(ValueError, match="empty_masks='maybe'"): find(tree, empty_masks='maybe')


def test_classes_of_ones_own(tree):
    s = now(tree, classes={'haemorrhage': 'red', 'microaneurysm': 'red too'}, crop_field=False, empty_masks='all')
    assert s.mask_classes == ('background', 'red', 'red too') and int(s.masks[:].max()) <= 2
    assert len([p for p in s.notes if 'passed over' in p.what]) == 4
    (tree/'masks'/'scars').mkdir()
    assert now(tree, size=32, classes={'scars': 'scar'}).mask_classes == ('background', 'scar')


def test_a_table_under_another_name_is_noted(tree):
    (tree/'labels.csv').rename(tree/'grades.csv')
    assert [(p.level, Path(p.file).name) for p in find(tree).problems] == [('note', 'grades.csv')]


def test_threads_do_not_change_the_order(tree):
    a, b = (now(tree, size=32, workers=w) for w in (1, 6))
    assert a.names == b.names and torch.equal(a.images[:], b.images[:]) and torch.equal(a.masks[:], b.masks[:])


# --- masks and fields

@pytest.mark.parametrize('form', ['1', 'P', 'L01', 'L', 'RGB', 'RGBA', 'tif1'])
def test_every_form_of_mask(tmp_path, form):
    m = np.zeros((20, 30), np.uint8); m[5:9, 7:20] = 1
    im = {'1': Image.fromarray(m > 0), 'tif1': Image.fromarray(m > 0), 'L01': Image.fromarray(m), 'L': Image.fromarray(m * 255)}.get(form)
    if form == 'P': im = Image.fromarray(m).convert('P'); im.putpalette([0, 0, 0, 9, 0, 0] + [0] * 762)
    if form in ('RGB', 'RGBA'): im = Image.fromarray(np.stack([m * 200, m * 0, m * 0], 2)).convert(form)
    file = tmp_path/('m.tif' if form in ('P', 'tif1') else 'm.png'); im.save(file)
    assert np.array_equal(read_mask(file), m > 0)


def test_a_palette_of_one_bit_is_read_by_its_index(tmp_path):
    m = np.zeros((20, 32), np.uint8); m[5:9, 7:20] = 1
    (tmp_path/'m.tif').write_bytes(one_bit_palette_tiff(m))
    palette = Image.fromarray(m).convert('P'); palette.putpalette([0, 0, 0, 9, 0, 0]); palette.save(tmp_path/'m.png', bits=1)
    for name in ('m.tif', 'm.png'):
        with Image.open(tmp_path/name) as im: assert np.asarray(im.convert('L')).max() < 10
        assert np.array_equal(read_mask(tmp_path/name), m > 0)


@pytest.mark.parametrize('levels,lesion', [([0, 2], None), ([0, 1], [1]), ([1], [1]), ([0], []), ([0, 31], None), ([0, 1, 5, 250, 255], [250, 255]), ([0, 127, 128, 255], [128, 255]),
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


def test_photograph_and_mask_are_cut_alike(tmp_path):
    # a bright lesion in a wide frame: after field crop, padding and resizing it lies where its mask lies
    frame, mask = Image.new('RGB', (1200, 800)), np.zeros((800, 1200), np.uint8)
    frame.paste(photo(0).resize((600, 600)), (340, 90)); frame.paste((90, 255, 255), (600, 300, 660, 350)); mask[300:350, 600:660] = 255
    (tmp_path/'images').mkdir(); (tmp_path/'masks'/'EX').mkdir(parents=True)
    frame.save(tmp_path/'images'/'a.jpg', quality=95); Image.fromarray(mask).save(tmp_path/'masks'/'EX'/'a_EX.png')
    s = now(tmp_path, size=128)
    bright, lesion = (s.images[0][2] > 170), s.masks[0] == 1
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


# --- tables

def test_line_breaks_in_a_table(tmp_path):
    file, want = tmp_path/'t.csv', [(3, 'a\nb.png'), (6, 'c.png'), (8, 'd\u2028.png')]
    for end in '\n', '\r\n', '\r':
        file.write_bytes('image,"remark\n2"\n"a\nb.png","x,\n"\nc.png,"say ""a"""\n\nd\u2028.png,\n'.replace('\n', end).encode())
        rows = read_table(file)
        assert [(r['line'], r['image']) for r in rows] == want and rows[1]['remark 2'] == 'say "a"'
    for text in '', '\n', 'image,grade\n':
        file.write_text(text)
        assert read_table(file) == []


cell = st.text(st.characters(codec='utf-8', exclude_categories=['Cc', 'Cs', 'Zs', 'Zl', 'Zp']), min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cell, st.sampled_from(['0', '1', '4', '']), cell), min_size=1, max_size=6), st.sampled_from(',;\t'), st.sampled_from(['\n', '\r\n', '\r']),
       st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16']), st.integers(0, 9))
def test_any_table_comes_back(tmp_path_factory, rows, by, end, encoding, empty):
    "Whatever the separator, the end of lines, the encoding and the number of empty columns: names, grades and remarks come back, on their lines."
    quoted = lambda text: '"' + text.replace('"', '""') + '"'
    lines = [by.join((' Image name ', 'Retinopathy  grade', 'remark')), *(by.join((quoted(n), g, quoted(r))) for n, g, r in rows)]
    file = tmp_path_factory.mktemp('t')/'t.csv'
    file.write_bytes(''.join(line + by * empty + end for line in lines).encode(encoding))
    assert [(r['line'], r['image'], r['grade'], r['remark']) for r in read_table(file)] == [(i, *row) for i, row in enumerate(rows, 2)]


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_an_error_that_says_why(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('t')
    save(np.zeros((8, 8, 3), np.uint8), folder/'images'/'a.png')
    (folder/'labels.csv').write_bytes(data)
    found = find(folder)
    assert all(p.file and p.what and p.todo for p in found.problems) and len(found.entries) == 1


def test_a_list_with_a_space(tmp_path):
    (tmp_path/'t.txt').write_text('007-0004-000.jpg 0\n20170413.jpg  5 \n\n')
    assert [(r['line'], r['image'], r['grade']) for r in read_table(tmp_path/'t.txt', ('image', 'grade'))] == [(1, '007-0004-000.jpg', '0'), (2, '20170413.jpg', '5')]


def test_a_column_of_the_right_name_wins(tmp_path):
    (tmp_path/'t.csv').write_text('name,image,diagnosis,grade\nAnn,a.jpg,DME,2\n')
    assert {k: v for k, v in read_table(tmp_path/'t.csv')[0].items() if k != 'line'} == {'name': 'Ann', 'image': 'a.jpg', 'diagnosis': 'DME', 'grade': '2'}


# --- the real ones

@real
def test_idrid512():
    s = now(DATA/'idrid512', size=64)
    assert len(s) == 100 and s.labels.bincount().tolist() == [60, 40] and len(s.segmentable) == 100 and sum('has_dr' in str(p) for p in s.notes) == 1
    assert len(now(DATA/'idrid512', size=64, label='has_dr', empty_masks='never').segmentable) == 40
    shares = torch.bincount(s.masks[:][s.labels == 1].flatten(), minlength=7)
    assert (shares[1:5] > 0).all() and (shares[5:] == 0).all() and (s.masks[:][s.labels == 0] == 0).all()
    with pytest.warns(UserWarning, match='all 60 known labels are 0'): graded = now(DATA/'idrid512', size=64, label='grade')
    with pytest.raises(ValueError, match='has_dr'): Stream(graded, graded.gradable, 8, target='label')


@real
def test_idrid_original_tree():
    if not (DATA/'idrid_original_layout').is_dir(): pytest.skip('no idrid_original_layout here')
    s = now(DATA/'idrid_original_layout', size=256)
    assert [n[-2:] for n in s.names] == ['01', '03', '08', '14'] and s.has_mask.all() and (s.labels == -1).all()
    assert sorted(p.what.split("'")[0].split(' for')[0] for p in s.notes) == ['has no photographs', 'its masks of ']
    tables = sorted((DATA/'idrid_original_layout').rglob('*.csv'))
    assert [len(read_table(t)) for t in tables] == [413, 103] and 'risk of macular edema' in read_table(tables[0])[0]
    with pytest.raises(ProblemsError, match='1 problem found'): now(DATA/'idrid_original_layout', task='both')
    # the palette trap: the haemorrhages of IDRiD_01 are 35,430 pixels of index 1
    file = next((DATA/'idrid_original_layout').rglob('IDRiD_01_HE.tif'))
    assert read_mask(file).sum() == 35430


def test_a_set_without_halves_gives_both(tmp_path):
    "Where several sets are read with one task, a plain folder among them gives what it has."
    folder = folder_of_eyes(tmp_path/'set', n=6, seed=3, size=64)
    source = read(folder, size=64, task='both', cache=False)
    assert len(source.segmentable) == len(source.gradable) == 6
    with pytest.raises(ValueError, match="task='grading': the layout 'folder' has no halves.*LAYOUT:TASK=PATH"): read(folder, size=64, task='grading', cache=False)
