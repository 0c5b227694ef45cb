"""Every published layout in small, written from embedded eyes, with the traps that the real ones have. Each writer returns what a reader must find."""
import struct
from collections import namedtuple
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from jointseg_nb.data import embedded
from jointseg_nb.fundus import LESIONS

SHORT = {'MA': 'microaneurysm', 'HE': 'haemorrhage', 'EX': 'hard exudate', 'SE': 'soft exudate'}

# path: the folder (or file) to read; photos: {name of the entry: Photo} of everything that is in it, all parts and tasks
Tree = namedtuple('Tree', 'path photos')
# eye: which eye of the source; grade: -1 = unknown; patient: group; part: as published; masked: the mask is known
Photo = namedtuple('Photo', 'eye grade patient part masked')


@lru_cache(maxsize=4)
def eyes(n=24, size=96, seed=2):
    "The embedded eyes that the trees are made of."
    return embedded(n, seed=seed, size=size)


def picture(source, i): return Image.fromarray(source.images[i].permute(1, 2, 0).numpy())


def mask(source, i, name): return (source.masks[i] == LESIONS.index(name)).numpy()


def save(image, file, **kwargs):
    "Write an image (an array or a PIL image), its folder made if it is not there."
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() in ('.jpg', '.jpeg'): kwargs = {'format': 'JPEG', 'quality': 95, **kwargs}
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, **kwargs)
    return file


def write_rows(file, rows, end='', encoding='utf-8', delimiter=','):
    "Write a table; `end` is put after every row (IDRiD has nine commas there)."
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(''.join(delimiter.join(map(str, r)) + end + '\n' for r in rows), encoding=encoding)
    return file


def one_bit_palette_tiff(mask):
    "Bytes of a TIFF with one bit for each pixel and a palette whose index 1 is nearly black, as IDRiD's; Pillow reads such files and writes none."
    bits = np.packbits(mask, axis=1).tobytes()
    palette = struct.pack('<6H', 0, 9 * 257, 0, 0, 0, 0)
    tags = [(256, 4, 1, mask.shape[1]), (257, 4, 1, mask.shape[0]), (258, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 3), (273, 4, 1, 8), (277, 3, 1, 1),
            (278, 4, 1, mask.shape[0]), (279, 4, 1, len(bits)), (320, 3, 6, 8 + len(bits))]
    return struct.pack('<2sHI', b'II', 42, 8 + len(bits + palette)) + bits + palette + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + bytes(4)


def save_palette(mask, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(one_bit_palette_tiff(mask))


def write_folder(path, source=None, grades=None, suffix='.png', n=8):
    "images/e0.png, masks/hard_exudate/e0.png (1 bit; none where the class is absent), labels.csv."
    source, path = source or eyes(), Path(path)
    n = min(n, len(source))
    for c in LESIONS[1:]: (path/'masks'/c.replace(' ', '_')).mkdir(parents=True)
    for i in range(n):
        save(picture(source, i), path/'images'/f'e{i}{suffix}')
        for c in LESIONS[1:]:
            if mask(source, i, c).any(): save(mask(source, i, c), path/'masks'/c.replace(' ', '_')/f'e{i}.png')
    grades = source.labels.tolist()[:n] if grades is None else grades
    write_rows(path/'labels.csv', [('image', 'grade'), *((f'e{i}{suffix}', g) for i, g in enumerate(grades))])
    known = [g if g != '' else -1 for g in grades]
    return Tree(path, {f'e{i}': Photo(i, g, f'{path.name}:e{i}', None, bool((source.masks[i] > 0).any() or g == 0)) for i, g in enumerate(known)})


IDRID_PARTS = {'train': ('a. Training Set', 'a. IDRiD_Disease Grading_Training Labels.csv'), 'test': ('b. Testing Set', 'b. IDRiD_Disease Grading_Testing Labels.csv')}
IDRID_MASKS = {'MA': '1. Microaneurysms', 'HE': '2. Haemorrhages', 'EX': '3. Hard Exudates', 'SE': '4. Soft Exudates', 'OD': '5. Optic Disc'}

def write_idrid(path, source=None, grading_photos=True):
    """Segmentation: eyes 0 to 2 and 3 (test); grading: eyes 4 to 7 and 8 to 9 (test).

    Traps: IDRiD_01 and IDRiD_001 are different eyes, the numbers of the testing part start anew; masks are 1-bit palette images with index 1 nearly black; a class that an eye has
    not got has no file; the header has spaces and every row nine empty columns; one ending is in capitals."""
    source, path, photos = source or eyes(), Path(path), {}
    seg, grading = path/'A. Segmentation', path/'B. Disease Grading'
    for part, numbers in (('train', (0, 1, 2)), ('test', (3,))):
        for k, i in enumerate(numbers, 1 if part == 'train' else 55):
            name, place = f'IDRiD_{k:02}', IDRID_PARTS[part][0]
            save(picture(source, i), seg/'1. Original Images'/place/(name + ('.JPG' if i == 2 else '.jpg')))
            for short, folder in IDRID_MASKS.items():
                truth = seg/'2. All Segmentation Groundtruths'/place/folder
                truth.mkdir(parents=True, exist_ok=True)
                m = disc(source) if short == 'OD' else mask(source, i, SHORT[short])
                if m.any(): save_palette(m, truth/f'{name}_{short}.tif')
            photos[f'segmentation/{part}/{name}'] = Photo(i, -1, f'idrid:segmentation/{part}/{name}', part, True)
    for part, numbers in (('train', (4, 5, 6, 7)), ('test', (8, 9))):
        rows = [('Image name', 'Retinopathy grade', 'Risk of macular edema ')]
        for k, i in enumerate(numbers, 1):
            name, grade = f'IDRiD_{k:03}', int(source.labels[i])
            rows.append((name, grade, k % 3))
            if grading_photos:
                save(picture(source, i), grading/'1. Original Images'/IDRID_PARTS[part][0]/f'{name}.jpg')
                photos[f'grading/{part}/{name}'] = Photo(i, grade, f'idrid:grading/{part}/{name}', part, False)
        write_rows(grading/'2. Groundtruths'/IDRID_PARTS[part][1], rows, end=',' * 9)
    return Tree(path, photos)


def disc(source):
    "A disc, for sets that have one."
    size = source.images.shape[-1]
    y, x = np.indices((size, size))
    return np.hypot(y - size / 2, x - size / 4) < size / 12


def write_eyepacs(path, source=None, inner='{part}'):
    "Both eyes of patients 10 to 13 for training, of 1 and 2 for testing; `inner`: where the photographs of a part lie ('.' = beside the tables, '{part}/{part}' = as some unpack them)."
    source, path, photos = source or eyes(), Path(path), {}
    for part, patients, file in (('train', (10, 13, 15, 16), 'trainLabels.csv'), ('test', (1, 2), 'retinopathy_solution.csv')):
        rows = [('image', 'level') + (('Usage',) if part == 'test' else ())]
        for k, (patient, side) in enumerate((p, s) for p in patients for s in ('left', 'right')):
            i, name = k + (8 if part == 'test' else 0), f'{patient}_{side}'
            save(picture(source, i), path/inner.format(part=part)/f'{name}.jpeg')
            rows.append((name, int(source.labels[i])) + ((('Public', 'Private')[k % 2],) if part == 'test' else ()))
            photos[f'{part}/{name}'] = Photo(i, int(source.labels[i]), f'eyepacs:{patient}', part, False)
        write_rows(path/file, rows)
    return Tree(path, photos)


def write_aptos(path, source=None):
    "Eyes 0 to 7 with a grade, 8 and 9 for testing without; the names are twelve hexadecimal digits, some of them digits only."
    source, path, photos = source or eyes(), Path(path), {}
    names = ['000c1434d8d7', '001639a390f0', '0024cdab0c1e', '123456789012', '005b95c28852', '0083ee8054ee', '0097f532ac9f', '00a8624548a9', '0005cfc8afb6', '003f0afdcd15']
    for i, name in enumerate(names):
        part = 'train' if i < 8 else 'test'
        save(picture(source, i), path/f'{part}_images'/f'{name}.png')
        photos[f'{part}/{name}'] = Photo(i, int(source.labels[i]) if i < 8 else -1, f'aptos:{name}', part, False)
    write_rows(path/'train.csv', [('id_code', 'diagnosis'), *((n, int(source.labels[i])) for i, n in enumerate(names[:8]))])
    write_rows(path/'test.csv', [('id_code',), *((n,) for n in names[8:])])
    write_rows(path/'sample_submission.csv', [('id_code', 'diagnosis'), *((n, 0) for n in names[8:])])
    return Tree(path, photos)


def write_ddr(path, source=None, tasks=('grading', 'segmentation')):
    """Grading: eyes 0 to 4 (train, the last one ungradable: grade 5), 5 (valid), 6 and 7 (test); segmentation: 0 and 8 (train), 9 (valid), 10 (test).

    Traps: a table without header, a space between name and grade; `valid` calls its masks `segmentation label`; one photograph is in both halves under one name; every class has a file,
    black where the class is absent."""
    source, path, photos = source or eyes(), Path(path), {}
    name = lambda i: f'007-{i:04}-000' if i % 2 == 0 else f'2017032309330560{i:02}'
    for part, numbers in (('train', (0, 1, 2, 3, 4)), ('valid', (5,)), ('test', (6, 7))):
        if 'grading' not in tasks: break
        rows = []
        for i in numbers:
            save(picture(source, i), path/'DR_grading'/part/f'{name(i)}.jpg')
            grade = 5 if i == 4 else int(source.labels[i])
            rows.append((f'{name(i)}.jpg', grade))
            if grade < 5: photos[f'grading/{part}/{name(i)}'] = Photo(i, grade, f'ddr:{name(i)}', part, False)
        write_rows(path/'DR_grading'/f'{part}.txt', rows, delimiter=' ')
    for part, numbers in (('train', (0, 8)), ('valid', (9,)), ('test', (10,))):
        if 'segmentation' not in tasks: break
        for i in numbers:
            save(picture(source, i), path/'lesion_segmentation'/part/'image'/f'{name(i)}.jpg')
            for short, lesion in SHORT.items():
                save(mask(source, i, lesion).astype(np.uint8) * 255, path/'lesion_segmentation'/part/('segmentation label' if part == 'valid' else 'label')/short/f'{name(i)}.tif')
            photos[f'segmentation/{part}/{name(i)}'] = Photo(i, -1, f'ddr:{name(i)}', part, True)
    return Tree(path, photos)


FGADR_MASKS = {'HardExudate_Masks': 'hard exudate', 'SoftExudate_Masks': 'soft exudate', 'Hemohedge_Masks': 'haemorrhage', 'Microaneurysms_Masks': 'microaneurysm'}

def write_fgadr(path, source=None, n=8):
    """Eyes 0 to 7. Traps: masks are grey or RGB and their edges soft (levels below 128 lie outside); `Hemohedge` is their spelling; IRMA and new vessels for few eyes only; the table has no header."""
    source, path, photos, rows = source or eyes(), Path(path), {}, []
    for i in range(n):
        name, grade = f'{i:04}_{1 + i % 3}', int(source.labels[i])
        save(picture(source, i), path/'Seg-set'/'Original_Images'/f'{name}.png')
        for folder, lesion in FGADR_MASKS.items(): save(soft(mask(source, i, lesion), rgb=i % 2), path/'Seg-set'/folder/f'{name}.png')
        rows.append((f'{name}.png', grade))
        photos[name] = Photo(i, grade, f'fgadr:{name}', None, True)
    for folder, few in (('IRMA_Masks', (1, 2)), ('Neovascularization_Masks', (2,))):
        for i in few: save(soft(disc(source)), path/'Seg-set'/folder/f'{i:04}_{1 + i % 3}.png')
    write_rows(path/'Seg-set'/'DR_Seg_Grading_Label.csv', rows)
    return Tree(path, photos)


def soft(m, rgb=False):
    "A mask with soft edges: 255 inside, 90 in a ring of one pixel around."
    p = np.pad(m, 1)
    ring = (p[:-2, 1:-1] | p[2:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:]) & ~m
    level = (m * 255 + ring * 90).astype(np.uint8)
    if not m.any(): level[:] = 0
    return np.stack([level] * 3, 2) if rgb else level


def write_messidor2(path, source=None, pairs=True):
    "Eyes 0 to 7, four patients. Traps: grades are written 2.0; number 5 is not gradable; number 7 has no row; the endings .png and .JPG, where the table says .jpg; the table of pairs has semicolons."
    source, path, photos, names = source or eyes(), Path(path), {}, []
    rows = [('image_id', 'adjudicated_dr_grade', 'adjudicated_dme', 'adjudicated_gradable')]
    for i in range(8):
        name, suffix = (f'20051020_4380{i}_0100_PP', '.png') if i < 4 else (f'IM00323{i}', '.JPG')
        save(picture(source, i), path/'IMAGES'/(name + suffix)); names.append(name + suffix)
        if i == 5: rows.append((f'{name}.jpg', '', '', 0))
        elif i < 7: rows.append((name + suffix.lower(), float(source.labels[i]), float(i % 2), 1))
        patient = f'messidor2:{names[i - i % 2].rsplit(".", 1)[0]}' if pairs else f'messidor2:{name}'
        if i != 5: photos[name] = Photo(i, int(source.labels[i]) if i < 7 else -1, patient, None, False)
    write_rows(path/'messidor_data.csv', rows)
    if pairs: write_rows(path/'messidor-2.csv', [('left', 'right'), *zip(names[::2], names[1::2])], delimiter=';')
    return Tree(path, photos)


def write_retinamnist(path, source=None, size=64):
    "retinamnist_64.npz: eyes 0 to 7 (train), 8 and 9 (val), 10 to 12 (test); labels of shape (N, 1)."
    source, path, photos, arrays = source or eyes(), Path(path), {}, {}
    for key, part, numbers in (('train', 'train', range(8)), ('val', 'valid', range(8, 10)), ('test', 'test', range(10, 13))):
        arrays[f'{key}_images'] = np.stack([np.asarray(picture(source, i).resize((size, size))) for i in numbers])
        arrays[f'{key}_labels'] = source.labels[list(numbers)].numpy().astype(np.uint8)[:, None]
        photos.update({f'{part}/{k}': Photo(i, int(source.labels[i]), f'retinamnist:{part}/{k}', part, False) for k, i in enumerate(numbers)})
    path.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path/'retinamnist_64.npz', **arrays)
    return Tree(path/'retinamnist_64.npz', photos)


TREES = {'folder': write_folder, 'idrid': write_idrid, 'eyepacs': write_eyepacs, 'aptos': write_aptos, 'ddr': write_ddr, 'fgadr': write_fgadr, 'messidor2': write_messidor2,
         'retinamnist': write_retinamnist}
