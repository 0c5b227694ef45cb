"""`check` against folders with every fault we could think of: each is named, in its own line and at its own level, and nothing else is."""
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import trees
from jointseg_nb import commands
from jointseg_nb.check import check
from jointseg_nb.data import embedded
from jointseg_nb.datasets import read
from jointseg_nb.photos import ProblemsError

DATA = Path(os.environ.get('JOINTSEG_DATA', Path(__file__).parents[1]/'..'/'shared'/'data'))
real = pytest.mark.skipif(not (DATA/'idrid512').is_dir(), reason='no IDRiD photographs here; JOINTSEG_DATA names the folder that holds idrid512/')
N, SIZE = 96, 64
CLASSES = 'HE', 'MA', 'EX', 'SE'
EXIF_TURNED = Image.Exif(); EXIF_TURNED[0x0112] = 6


@pytest.fixture(scope='module')
def eyes():
    "Eyes, each another one, as PIL images of 64 x 48 px: upright and turned ones differ in shape."
    return [Image.fromarray(im.permute(1, 2, 0).numpy()).crop((0, 8, 64, 56)) for im in embedded(N, seed=5, size=SIZE, workers=1).images]


class Set:
    "A folder in the package's own layout that is good, and into which faults are planted, each on an eye of its own."
    def __init__(self, path, eyes, n=N - 8):
        self.path, self.eyes, self.rows, self.expected, self.used = path, eyes, {}, [], 0
        (path/'images').mkdir(parents=True)
        for c in CLASSES: (path/'masks'/c).mkdir(parents=True)
        for i in range(n): self.add(f'e{i:02}', i)

    def add(self, name, i, suffix='.png', row=True):
        file = self.path/'images'/(name + suffix)
        self.eyes[i].resize((256, 192)).save(file)
        if row: self.rows[name] = [name, str(i % 5), '', '']
        self.mask(name, CLASSES[i % 4])
        return file

    def mask(self, name, c, size=(256, 192), spot=(40, 40, 60, 60)):
        m = Image.new('1', size); m.paste(1, spot)
        file = self.path/'masks'/c/f'{name}.png'
        m.save(file)
        return file

    def take(self, suffix='.png'):
        "The file, name, and mask file of a good eye that no fault has yet."
        name, i = f'e{self.used:02}', self.used
        self.used += 1
        file = self.path/'images'/f'{name}.png'
        if suffix != '.png': file.unlink(); file = file.with_suffix(suffix); self.eyes[i].resize((256, 192)).save(file)
        return file, name, self.path/'masks'/CLASSES[i % 4]/f'{name}.png'

    def expect(self, file, words, level='problem'):
        self.expected.append((file, words, level))

    def write(self, header='image,grade,has_dr,patient'):
        rows = [r for rows in self.rows.values() for r in (rows if isinstance(rows[0], list) else [rows])]
        (self.path/'labels.csv').write_text('\n'.join([header, *(','.join(r) for r in rows)]) + '\n')
        return self.path

    def line(self, name, k=0):
        "Where the table names an eye: its line, the header being line 1."
        names = [key for key, rows in self.rows.items() for _ in range(len(rows) if isinstance(rows[0], list) else 1)]
        return f"{self.path/'labels.csv'} line {names.index(name) + 2 + k}"


def cut(file, keep): file.write_bytes(file.read_bytes()[:keep if keep >= 0 else len(file.read_bytes()) + keep])


def png(width, height, depth, color, rows=b''):
    "A PNG written by hand: what Pillow itself would never write."
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def bomb(width, height):
    "A whole, valid PNG of one bit for each pixel, all black: kilobytes on disk, hundreds of megabytes when decoded."
    pack, row = zlib.compressobj(9), bytes(1 + (width + 7)//8)
    data = b''.join(pack.compress(row) for _ in range(height)) + pack.flush()
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


# --- one function for each fault; its name says what it is. It plants, and says what has to be reported: which file, in which words, at which level.

PLANTS = {}


def plant(f): PLANTS[f.__name__] = f; return f


def photo_fault(name, suffix, spoil, words, level='problem'):
    def f(s):
        file, _, _ = s.take(suffix)
        spoil(file, s)
        s.expect(file, words, level)
    PLANTS[name] = f


READ = 'cannot be read as an image'
frames = lambda s: [im.resize((256, 192)) for im in s.eyes[:3]]
save_as = lambda kind, **kw: (lambda f, s: frames(s)[0].save(f, kind, **kw))

# photographs: not whole
photo_fault('a JPEG cut within its header', '.jpg', lambda f, s: cut(f, 20), READ)
photo_fault('a JPEG cut at a quarter', '.jpg', lambda f, s: cut(f, f.stat().st_size//4), READ)
photo_fault('a JPEG cut in the middle', '.jpg', lambda f, s: cut(f, f.stat().st_size//2), READ)
photo_fault('a JPEG without its last bytes', '.jpeg', lambda f, s: cut(f, -40), READ)
photo_fault('a JPEG whose second half was never written', '.jpg', lambda f, s: f.write_bytes(f.read_bytes()[:f.stat().st_size//2] + bytes(f.stat().st_size//2)), READ)
photo_fault('a PNG cut within its header', '.png', lambda f, s: cut(f, 30), READ)
photo_fault('a PNG cut in the middle', '.png', lambda f, s: cut(f, f.stat().st_size//2), READ)
photo_fault('a PNG cut near its end', '.png', lambda f, s: cut(f, -300), READ)
photo_fault('a PNG of which little was ever written', '.png', lambda f, s: f.write_bytes(f.read_bytes()[:1500] + bytes(f.stat().st_size - 1500)), READ)
photo_fault('a PNG with bytes that flipped', '.png', lambda f, s: f.write_bytes(f.read_bytes()[:9000] + bytes(99) + f.read_bytes()[9099:]), READ)
photo_fault('a TIFF cut in the middle', '.tif', lambda f, s: cut(f, f.stat().st_size//2), READ)
photo_fault('a BMP cut in the middle', '.bmp', lambda f, s: cut(f, f.stat().st_size//2), READ)
photo_fault('a WebP cut in the middle', '.webp', lambda f, s: cut(f, f.stat().st_size//2), READ)
photo_fault('zero bytes', '.jpg', lambda f, s: f.write_bytes(b''), 'zero bytes')
photo_fault('one byte', '.png', lambda f, s: f.write_bytes(b'\x89'), READ)

# photographs: not what they seem
photo_fault('a CMYK JPEG', '.jpg', lambda f, s: frames(s)[0].convert('CMYK').save(f), 'CMYK')
photo_fault('a CMYK TIFF', '.tif', lambda f, s: frames(s)[1].convert('CMYK').save(f), 'CMYK')
photo_fault('a grey PNG of 16 bits', '.png', lambda f, s: Image.fromarray(np.full((192, 256), 4000, np.uint16)).save(f), '8 bits|16')
photo_fault('a colour PNG of 16 bits', '.png', lambda f, s: f.write_bytes(png(32, 24, 16, 2, (b'\0' + bytes(range(192))) * 24)), '8 bits|16')
photo_fault('a TIFF of 16 bits', '.tiff', lambda f, s: Image.fromarray(np.full((192, 256), 5000, np.uint16)).save(f), '8 bits|16')
photo_fault('a TIFF of 32-bit numbers', '.tif', lambda f, s: Image.fromarray(np.full((192, 256), .5, np.float32)).save(f), '8 bits|32')
photo_fault('an animated GIF named .png', '.png', lambda f, s: frames(s)[0].save(f, 'GIF', save_all=True, append_images=frames(s)[1:]), 'pictures in one file')
photo_fault('an animated PNG', '.png', lambda f, s: frames(s)[0].save(f, 'PNG', save_all=True, append_images=frames(s)[1:]), 'pictures in one file')
photo_fault('an animated WebP', '.webp', lambda f, s: frames(s)[0].save(f, 'WEBP', save_all=True, append_images=frames(s)[1:]), 'pictures in one file')
photo_fault('a TIFF of several pages', '.tif', lambda f, s: frames(s)[0].save(f, 'TIFF', save_all=True, append_images=frames(s)[1:]), 'pictures in one file')
photo_fault('a text named .jpg', '.jpg', lambda f, s: f.write_text('The photograph will follow by post.\n'), READ)
photo_fault('a web page named .png', '.png', lambda f, s: f.write_text('<!doctype html><html><title>404</title></html>'), READ)
photo_fault('a PDF named .tif', '.tif', lambda f, s: f.write_bytes(b'%PDF-1.4\n1 0 obj << /Type /Catalog >> endobj\ntrailer << >>\n%%EOF\n'), READ)
photo_fault('a zip named .jpg', '.jpg', lambda f, s: zipfile.ZipFile(f, 'w').writestr('a.txt', 'hello') or True, READ)
photo_fault('a PNG whose header says 40000 x 40000', '.png', lambda f, s: f.write_bytes(png(40000, 40000, 8, 2, bytes(99))), '40000|limit of')
photo_fault('a bomb: 28,000 x 28,000 black pixels in some kilobytes', '.png', lambda f, s: f.write_bytes(bomb(28000, 28000)), '28000|limit of')
photo_fault('a PNG whose header says 0 x 0', '.png', lambda f, s: f.write_bytes(png(0, 0, 8, 2)), READ)

# photographs: worth knowing
photo_fault('a grey photograph', '.jpg', lambda f, s: Image.open(f).convert('L').save(f), 'grey', 'note')
photo_fault('a photograph of nothing', '.png', lambda f, s: Image.new('RGB', (256, 192), (3, 2, 1)).save(f), 'shows nothing|one colour', 'note')


@plant
def a_turned_photograph(s):
    file, name, mask = s.take('.jpg')
    s.eyes[s.used].resize((256, 192)).save(file, exif=EXIF_TURNED); s.mask(name, mask.parent.name, (192, 256))
    s.expect(file, 'turn|rotat', 'note')


@plant
def a_turned_photograph_whose_mask_is_not(s):
    file, name, mask = s.take('.jpg')
    s.eyes[s.used + 9].resize((256, 192)).save(file, exif=EXIF_TURNED)
    s.expect(file, 'turn|rotat', 'note'); s.expect(mask, '256x192')


# files that are no files

@plant
def a_folder_named_jpg(s): (s.path/'images'/'folder.jpg').mkdir(); s.expect(s.path/'images'/'folder.jpg', 'folder|no image|no plain file')


@plant
def a_pipe_named_jpg(s): os.mkfifo(s.path/'images'/'pipe.jpg'); s.expect(s.path/'images'/'pipe.jpg', 'pipe|no image|no plain|no regular')


@plant
def a_socket_named_png(s):
    here = os.getcwd()
    os.chdir(s.path/'images')  # a socket's name may have 100 letters
    try:
        with socket.socket(socket.AF_UNIX) as k: k.bind('socket.png')
    finally: os.chdir(here)
    s.expect(s.path/'images'/'socket.png', 'socket|no image|no plain|no regular')


@plant
def a_broken_link(s): (s.path/'images'/'broken.png').symlink_to('nowhere.png'); s.expect(s.path/'images'/'broken.png', 'link')


@plant
def a_link_to_itself(s): (s.path/'images'/'loop.png').symlink_to('loop.png'); s.expect(s.path/'images'/'loop.png', 'link|loop')


@plant
def a_link_that_leaves_the_folder(s):
    outside = s.path.parent/'outside.png'
    s.eyes[88].resize((256, 192)).save(outside); (s.path/'images'/'leaves.png').symlink_to(outside)
    s.expect(s.path/'images'/'leaves.png', 'link|leaves|outside')


@plant
def a_text_file_among_the_images(s): (s.path/'images'/'readme.md').write_text('hello'); s.expect(s.path/'images'/'readme.md', 'no image')


@plant
def a_film_among_the_images(s): (s.path/'images'/'angiography.avi').write_bytes(b'RIFF'); s.expect(s.path/'images'/'angiography.avi', 'no image')


@plant
def what_systems_leave_behind_is_no_fault(s):
    for junk in ('.DS_Store', '._e01.png', 'Thumbs.db', 'desktop.ini', '.e02.png.swp'): (s.path/'images'/junk).write_bytes(b'junk')
    (s.path/'masks'/'.DS_Store').write_bytes(b'junk')


# names

@plant
def names_that_differ_in_their_ending(s):
    s.add('twin', 91, '.png'); s.add('twin', 92, '.jpg', row=False)
    s.expect(s.path/'images'/'twin.png', 'same name')


@plant
def names_that_differ_in_case(s):
    _, name, _ = s.take()
    s.eyes[93].resize((256, 192)).save(s.path/'images'/f'{name.upper()}.png')
    s.expect(s.path/'images'/f'{name}.png', 'same name|case')


@plant
def a_name_that_is_not_utf8(s):
    file = s.path/'images'/os.fsdecode(b'na\xefve.png')
    try: s.eyes[94].resize((256, 192)).save(file)
    except OSError: return  # a file system that takes no such names
    s.expect(str(file).encode('utf-8', 'replace').decode(), 'UTF-8')


@plant
def what_is_odd_but_fine_is_no_fault(s):
    file, _, _ = s.take('.jpg'); Image.open(file).save(file, progressive=True, quality=90)
    file, _, _ = s.take('.png'); Image.open(file).convert('RGBA').save(file)
    file, _, mask = s.take('.png'); file.rename(file.with_suffix('.PNG')); Image.open(mask).convert('RGB').save(mask)
    file, _, mask = s.take('.png'); Image.open(mask).convert('P').save(mask)
    file, _, mask = s.take('.png'); Image.open(mask).convert('L').point(lambda v: v//255).save(mask)
    file, name, _ = s.take('.png'); inside = s.path/'more'/'inside.png'
    inside.parent.mkdir(); file.rename(inside); file.symlink_to(inside)
    file, _, mask = s.take('.png'); mask.unlink()
    s.add('Ann left', 95); s.rows['Ann left'][3] = 'Ann'


# masks

def mask_fault(name, spoil, words, level='problem'):
    def f(s):
        _, name, mask = s.take()
        spoil(mask, s)
        s.expect(mask, words, level)
    PLANTS[name] = f


MASK = 'cannot be read as a mask'
mask_fault('a mask of another size', lambda f, s: Image.new('1', (128, 96), 1).save(f), '128x96')
mask_fault('a mask turned by 90 degrees', lambda f, s: Image.open(f).transpose(Image.Transpose.ROTATE_90).save(f), '192x256')
mask_fault('a mask one pixel too wide', lambda f, s: Image.new('1', (257, 192), 1).save(f), '257x192')
mask_fault('a mask neither dark nor bright', lambda f, s: Image.new('L', (256, 192), 76).save(f), '76')
mask_fault('a CMYK mask', lambda f, s: Image.new('CMYK', (256, 192)).save(f, 'JPEG'), 'CMYK')
mask_fault('a truncated mask', lambda f, s: (Image.effect_noise((256, 192), 99).save(f), cut(f, 9000)), MASK)
mask_fault('a mask of which little was ever written', lambda f, s: (Image.effect_noise((256, 192), 99).save(f), f.write_bytes(f.read_bytes()[:1500] + bytes(f.stat().st_size - 1500))), MASK)
mask_fault('an empty mask file', lambda f, s: f.write_bytes(b''), 'zero bytes')
mask_fault('a text for a mask', lambda f, s: f.write_text('no lesion'), MASK)
mask_fault('an animated mask', lambda f, s: Image.new('L', (256, 192)).save(f, 'PNG', save_all=True, append_images=[Image.new('L', (256, 192), 255)]), 'pictures in one file')
mask_fault('a gigantic mask', lambda f, s: f.write_bytes(png(50000, 50000, 1, 0, bytes(9))), '50000|limit of')


@plant
def a_mask_of_nobody(s): s.expect(s.mask('nobody', 'HE'), 'not there')


@plant
def a_second_mask_of_one_class(s):
    _, name, mask = s.take()
    c = mask.parent.name
    s.mask(f'{name}_{c}', c); s.expect(mask.with_name(f'{name}_{c}.png'), 'second mask')


@plant
def an_unknown_class(s): (s.path/'masks'/'scars').mkdir(); s.expect(s.path/'masks'/'scars', 'not known')


@plant
def a_mask_outside_its_class(s): Image.new('1', (256, 192)).save(s.path/'masks'/'stray.png'); s.expect(s.path/'masks'/'stray.png', '')


@plant
def a_pipe_for_a_mask(s):
    _, name, mask = s.take(); mask.unlink(); os.mkfifo(mask); s.expect(mask, '')


# rows of the table

def row_fault(name, row, words, level='problem'):
    def f(s):
        _, eye, _ = s.take()
        s.rows[eye] = [eye, *row]
        s.expect(lambda: s.line(eye), words, level)
    PLANTS[name] = f


row_fault('grade 7', ['7', '', ''], 'out of range')
row_fault('grade -1', ['-1', '', ''], 'out of range')
row_fault('grade bad', ['bad', '', ''], 'bad')
row_fault('grade 2.5', ['2.5', '', ''], '2.5')
row_fault('grade inf', ['inf', '', ''], 'inf')
row_fault('grade 1e3', ['1e3', '', ''], '1e3')
row_fault('has_dr maybe', ['2', 'maybe', ''], 'maybe')
row_fault('a grade that contradicts has_dr', ['0', '1', ''], 'contradicts')


@plant
def a_row_without_photograph(s): s.rows['ghost'] = ['ghost', '1', '', '']; s.expect(lambda: s.line('ghost'), 'no photograph')


@plant
def a_row_without_name(s): s.rows[''] = ['', '1', '', '']; s.expect(lambda: s.line(''), '')


@plant
def a_photograph_in_two_rows(s):
    _, name, _ = s.take()
    s.rows[name] = [s.rows[name], s.rows[name]]; s.expect(lambda: s.line(name, 1), 'second time')


@plant
def a_photograph_without_row(s):
    file, name, _ = s.take(); del s.rows[name]; s.expect(file, 'no row|table', 'note')


# the same eye again

def copy(s, grade, save):
    file, name, _ = s.take(); _, twin, mask = s.take()
    s.rows[name][1] = '2'; s.rows[twin][1] = grade
    path = s.path/'images'/f'{twin}.png'
    save(file, path)
    return path


@plant
def a_copy(s): s.expect(copy(s, '2', lambda a, b: b.write_bytes(a.read_bytes())), 'same photograph', 'note')


@plant
def a_copy_saved_anew(s): s.expect(copy(s, '2', lambda a, b: Image.open(a).save(b, compress_level=1)), 'same photograph', 'note')


@plant
def a_copy_of_another_grade(s): s.expect(copy(s, '4', lambda a, b: b.write_bytes(a.read_bytes())), 'graded')


# --- all of them at once

def command(*args, seconds=120):
    "(exit code, what is printed) of `jointseg-check`, in a process of its own that is killed when it hangs."
    code = 'import sys; from jointseg_nb.commands import check; check(sys.argv[1:])'
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=seconds)
    return done.returncode, done.stdout, done.stderr


def compare(problems, expected):
    "Each expected line occurs exactly once, at its level and in its words, and nothing else is there."
    expected = [(f() if callable(f) else str(f), words, level) for f, words, level in expected]
    got, want = [(p['file'], p['level']) for p in problems], [(f, level) for f, _, level in expected]
    lines = [f"{p['level']} {p['file']}: {p['what']}" for p in problems]
    assert not [w for w in want if w not in got], ('not named', [w for w in want if w not in got], lines)
    assert not [l for l, g in zip(lines, got) if g not in want], 'named without being a fault'
    assert sorted(got) == sorted(want)
    for file, words, level in expected:
        p, = [p for p in problems if (p['file'], p['level']) == (file, level)]
        assert re.search(words, p['what']) and p['todo'], (words, p)


@pytest.fixture(scope='module')
def spoilt(tmp_path_factory, eyes):
    s = Set(tmp_path_factory.mktemp('spoilt')/'clinic', eyes)
    for f in PLANTS.values(): f(s)
    s.write()
    return s


@pytest.fixture(scope='module')
def report(spoilt, tmp_path_factory):
    file = tmp_path_factory.mktemp('report')/'report.json'
    code, out, err = command('--data', spoilt.path, '--json', file)
    return code, out, err, json.loads(file.read_text())


def test_a_good_folder_has_nothing_to_be_said(tmp_path, eyes):
    report = check(Set(tmp_path/'good', eyes, 8).write(), size=64)
    assert report.ok and not report.problems and len(report.seen) == 8
    assert report.counts()['all']['graded'] == 8 and report.coverage()['haemorrhage'][0] == 2


def test_every_planted_fault_is_named_and_nothing_else(spoilt, report):
    code, out, err, found = report
    assert len(spoilt.expected) == 79, 'faults in one folder; a table can be spoilt in one way only, so these stand below'
    compare(found['problems'], spoilt.expected)
    assert code == 1 and not found['ok'] and 'Traceback' not in err


def test_the_page_names_each_kind_and_folds_the_rest(spoilt, report):
    _, out, _, found = report
    assert 'Not good' in out and 'more like these' in out and len(out.splitlines()) < 200
    for todo in {p['todo'] for p in found['problems']}: assert todo in out


def test_strict_is_refused_and_the_rest_is_read(spoilt, report):
    with pytest.raises(ProblemsError): read(spoilt.path, size=32, cache=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        rest = read(spoilt.path, size=32, strict=False, cache=False)
    found = report[3]
    photographs = found['counts']['all']['photographs']
    assert len(rest) == photographs and photographs >= N - len(spoilt.expected)
    assert any('left out' in str(w.message) for w in said)


# --- faults of which a folder can have only one

TABLES = {
    'UTF-16 without a mark': lambda rows: rows.encode('utf-16-le'),
    'Latin-1': lambda rows: rows.replace('e01', 'Größe').encode('latin-1'),
    'NUL bytes': lambda rows: rows.encode() + bytes(64),
    'a spreadsheet': lambda rows: b'PK\x03\x04\x14\0\x08\0' + bytes(range(256)) * 4,
    'no header': lambda rows: rows.split('\n', 1)[1].encode(),
    'a quote that is not closed': lambda rows: rows.replace('e01', '"e01').encode(),
    'empty': lambda rows: b'',
    'a header alone': lambda rows: b'image,grade\n',
    'no column that can be used': lambda rows: rows.replace('image,', 'eye,').encode(),
}


@pytest.mark.parametrize('fault', TABLES)
def test_a_table_that_cannot_be_used(tmp_path, eyes, fault):
    s = Set(tmp_path/'clinic', eyes, 6); path = s.write()
    (path/'labels.csv').write_bytes(TABLES[fault]((path/'labels.csv').read_text()))
    s.expect(path/'labels.csv', '')
    report = check(path, size=32)
    assert not report.ok
    bad = [p for p in report.problems if p.level != 'note']
    assert [p.file.split(' line')[0] for p in bad] == [str(path/'labels.csv')], bad


@pytest.mark.parametrize('make', [lambda f: f.mkdir(), lambda f: f.symlink_to('nowhere.csv')], ids=['folder', 'broken link'])
def test_a_table_that_is_no_file(tmp_path, eyes, make):
    path = Set(tmp_path/'clinic', eyes, 4).write()
    (path/'labels.csv').unlink(); make(path/'labels.csv')
    assert [p.file for p in check(path, size=32).problems if p.level != 'note'] == [str(path/'labels.csv')]


def test_a_table_that_is_a_pipe_does_not_hang_the_command(tmp_path, eyes):
    path = Set(tmp_path/'clinic', eyes, 4).write()
    (path/'labels.csv').unlink(); os.mkfifo(path/'labels.csv')
    code, out, _ = command('--data', path)
    assert code == 1 and 'labels.csv: is no plain file' in out


@pytest.mark.parametrize('make,words', [(lambda p: p.mkdir(), 'empty|nothing'), (lambda p: (p/'images').mkdir(parents=True), 'no (images|photographs)'),
                                        (lambda p: (p/'a'/'b').mkdir(parents=True), 'layout|images/')], ids=['empty', 'no images', 'no layout'])
def test_a_folder_that_is_no_set(tmp_path, make, words):
    make(tmp_path/'x')
    report = check(tmp_path/'x')
    assert not report.ok and re.search(words, str(report)) and json.loads(report.to_json())['ok'] is False


def test_images_that_are_a_link_out_of_the_folder(tmp_path, eyes):
    path = Set(tmp_path/'clinic', eyes, 4).write()
    (path/'images').rename(tmp_path/'elsewhere'); (path/'images').symlink_to(tmp_path/'elsewhere', target_is_directory=True)
    report = check(path, size=32)
    assert not report.ok and [p.file for p in report.problems if p.level != 'note'] == [str(path/'images')]
    assert check(path, size=32, links=True).ok


def test_a_folder_of_masks_that_is_a_link_out_of_the_folder(tmp_path, eyes):
    path = Set(tmp_path/'clinic', eyes, 4).write()
    (path/'masks'/'MA').rename(tmp_path/'elsewhere'); (path/'masks'/'MA').symlink_to(tmp_path/'elsewhere', target_is_directory=True)
    report = check(path, size=32)
    assert not report.ok and [p.file for p in report.problems if p.level != 'note'] == [str(path/'masks'/'MA')]
    assert check(path, size=32, links=True).ok


WITHOUT_RIGHTS = '''
import json, os, sys
from jointseg_nb.check import check
check(sys.argv[1] + '/whole', size=32)  # everything is imported before the rights go
if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(json.dumps({k: [p.file for p in check(sys.argv[1] + '/' + k, size=32).problems if p.level != 'note'] for k in 'abcd'}))
'''


def test_what_may_not_be_read(eyes):
    "Run as nobody: to root everything is open."
    with tempfile.TemporaryDirectory() as room:
        os.chmod(room, 0o755)
        for k in ('whole', *'abcd'): Set(Path(room)/k, eyes, 4).write()
        spoil = {'a': ['images/e00.png', 'masks/MA/e01.png'], 'b': ['images'], 'c': ['labels.csv'], 'd': ['masks/MA']}
        spoil = {k: [f'{room}/{k}/{f}' for f in files] for k, files in spoil.items()}
        try:
            for f in sum(spoil.values(), []): os.chmod(f, 0)
            done = subprocess.run([sys.executable, '-c', WITHOUT_RIGHTS, room], capture_output=True, text=True, timeout=120)
            assert json.loads(done.stdout) == spoil, done.stderr
        finally:
            for f in sum(spoil.values(), []): os.chmod(f, 0o755)


# --- the published layouts

def test_patients_and_copies_in_two_parts(tmp_path):
    path = trees.write_eyepacs(tmp_path/'kaggle').path
    assert check(path, size=64).ok
    (path/'test'/'1_left.jpeg').write_bytes((path/'train'/'13_left.jpeg').read_bytes())
    (path/'test'/'10_left.jpeg').write_bytes((path/'train'/'15_left.jpeg').read_bytes()[:-2] + b'\xff\xfe\0\4hi\xff\xd9')
    Image.effect_noise((64, 64), 50).convert('RGB').save(path/'test'/'16_left.jpeg')
    with open(path/'retinopathy_solution.csv', 'a') as f: f.write('10_left,0,Public\n16_left,0,Public\n')
    report = check(path, size=64)
    bad = {Path(p.file).name: p.what for p in report.problems if p.level != 'note'}
    assert set(bad) == {'1_left.jpeg', '10_left.jpeg', '16_left.jpeg'}
    assert 'of the train part' in bad['1_left.jpeg'] and 'shows the patient' in bad['16_left.jpeg']
    assert json.loads(report.to_json())['leaks']['pixels'] == [['train/13_left', 'test/1_left'], ['train/15_left', 'test/10_left']]
    assert check(path, part='train', size=64).ok and check(path, part='test', size=64).ok


@pytest.mark.parametrize('name', trees.TREES)
def test_published_layouts_are_good(tmp_path, name):
    tree = trees.TREES[name](tmp_path/name)
    report = check(tree.path, size=64)
    assert report.ok, report
    assert report.layout.startswith(name[:3]) and len(report.seen) == len([p for p in tree.photos.values() if p.part is None or p.part in report.counts()])


@pytest.mark.parametrize('name', trees.TREES)
def test_one_file_cut_is_the_one_problem_in_every_layout(tmp_path, name):
    tree = trees.TREES[name](tmp_path/name)
    files = [f for f in tree.path.rglob('*') if f.suffix.lower() in ('.jpg', '.jpeg', '.png') and 'Masks' not in str(f)] if tree.path.is_dir() else [tree.path]
    files.sort(key=lambda f: ('rain' not in str(f.relative_to(tmp_path)), f))
    cut(files[0], files[0].stat().st_size//2)
    report = check(tree.path, size=64)
    assert [p.file for p in report.problems if p.level != 'note'] == [str(files[0])], report


# --- the command

def exit_code(*args):
    try: return commands.check([str(a) for a in args]) or 0
    except SystemExit as e: return e.code


def test_the_command_says_by_its_exit_code_what_is_wrong(tmp_path, capsys):
    path = trees.write_folder(tmp_path/'set').path
    assert exit_code('--data', path) == 0 and 'Good' in capsys.readouterr().out
    assert exit_code('--data', path, '--json', '-') == 0 and json.loads(capsys.readouterr().out)['counts']['all']['photographs'] == 8
    for wrong in (['--data', tmp_path/'nowhere'], ['--data', path, '--layout', 'nothing'], ['--data', path, '--task', 'dance'], ['--data', path, '--part', 'best'],
                  ['--data', path, '--size', '0'], ['--data', path, '--json', tmp_path/'nowhere'/'x.json'], []):
        assert exit_code(*wrong) == 2 and 'jointseg-check' in capsys.readouterr().err
    (path/'images'/'e0.png').write_bytes(b'')
    assert exit_code('--data', path, '--json', tmp_path/'x.json') == 1 and 'zero bytes' in capsys.readouterr().out
    assert json.loads((tmp_path/'x.json').read_text())['unread'] == 1


@real
def test_the_photographs_at_hand():
    report = check(DATA/'idrid512', size=128)
    assert report.ok and len(report.seen) == 100 and report.counts()['all']['with masks'] == 100
    assert any('has_dr' in p.what + p.todo for p in report.problems if p.level == 'note')


@real
def test_what_is_missing_is_a_note_unless_it_is_asked_for():
    report = check(DATA/'idrid_original_layout', size=128)
    assert report.ok and len(report.seen) == 4 and any('grading' in p.what for p in report.problems if p.level == 'note')
    report = check(DATA/'idrid_original_layout', task='grading', size=128)
    assert not report.ok and any('grading' in p.what for p in report.problems if p.level != 'note')
