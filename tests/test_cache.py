"""The cache against what happens to it: kills, changes, damage, two at once, full disks."""
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

import jointseg_nb.cache as room
import jointseg_nb.photos as photos
from jointseg_nb.cache import Cache, default_cache, from_lines, in_order, prepare, to_line
from jointseg_nb.data import Source, Stream, embedded
from jointseg_nb.photos import Entry, Preparation, load_entry

N, SMALL = 24, Preparation(32)
linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs signals, limits and users of Linux')


@pytest.fixture(scope='module')
def eyes(): return embedded(N, seed=6, size=48)


def write_eyes(folder, eyes, n=N):
    "Photographs, masks of two classes, and one mask in three unknown."
    entries = []
    folder.mkdir()
    for i in range(n):
        Image.fromarray(eyes.images[i].permute(1, 2, 0).numpy()).save(folder/f'{i}.png')
        masks = {}
        for c, name in ((1, 'hard exudate'), (3, 'haemorrhage')):
            if i % 3: Image.fromarray((eyes.masks[i] == c).numpy()).save(folder/f'{i}_{c}.gif'); masks[name] = folder/f'{i}_{c}.gif'
        entries.append(Entry(f'eye {i}', folder/f'{i}.png', masks, has_mask=bool(i % 3), label=int(eyes.labels[i])))
    return entries


@pytest.fixture
def entries(tmp_path, eyes): return write_eyes(tmp_path/'set', eyes)


@pytest.fixture
def folder(tmp_path): return tmp_path/'cache'


def pixels(p): return p.images[:], p.masks[:] if p.masks is not None else None


def same(a, b):
    (x, m), (y, k) = pixels(a), pixels(b)
    return torch.equal(x, y) and (m is None) == (k is None) and (m is None or torch.equal(m, k)) and a.rows == b.rows


def files(folder): return {f: (folder/f).read_bytes() for f in ('images.u8', 'masks.u8')}


@pytest.fixture
def decoded(monkeypatch):
    "Names of the entries that were decoded since the list was last emptied."
    names, real = [], room.load_entry
    monkeypatch.setattr(room, 'load_entry', lambda e, p: names.append(e.name) or real(e, p))
    return names


def later(): time.sleep(0.02) # the clock of a file system is coarse


# --- what comes back

def test_disk_equals_memory_equals_one_by_one(entries, folder):
    on_disk, in_memory, again = prepare(entries, SMALL, folder), prepare(entries, SMALL), prepare(entries, SMALL, folder)
    assert same(on_disk, in_memory) and same(on_disk, again)
    for i, e in enumerate(entries):
        one = load_entry(e, SMALL)
        assert torch.equal(on_disk.images[i], torch.from_numpy(one.image.copy()).permute(2, 0, 1))
        assert on_disk.rows[i].mask_ok == bool(i % 3) and on_disk.rows[i].content == one.content and on_disk.rows[i].full == (48, 48)
        assert (on_disk.masks[i] == 255).all() if not i % 3 else torch.equal(on_disk.masks[i], torch.from_numpy(one.mask))


def test_no_masks_at_all(entries, folder):
    plain = [Entry(e.name, e.image) for e in entries]
    assert prepare(plain, SMALL, folder).masks is None and prepare(plain, SMALL).masks is None


def test_a_part_and_the_rest_share_a_folder(entries, folder, decoded):
    prepare(entries[:10], SMALL, folder); prepare(entries[10:], SMALL, folder)
    decoded.clear()
    backwards = prepare(entries[::-1], SMALL, folder)
    assert not decoded and same(backwards, prepare(entries[::-1], SMALL))


def test_arrays_instead_of_files(entries, folder, decoded):
    def of(images): return [Entry(f'row {i}', im) for i, im in enumerate(images)]
    images = np.stack([np.asarray(Image.open(e.image)) for e in entries])
    a = prepare(of(images), SMALL, folder)
    assert same(a, prepare(of(images), SMALL)); decoded.clear()
    prepare(of(images.copy()), SMALL, folder); assert not decoded
    images[4] = images[5]
    assert same(prepare(of(images), SMALL, folder), prepare(of(images), SMALL)) and decoded[0] == 'row 4'


def test_problems_come_back_with_the_rows(entries, folder, decoded):
    entries[2].image.write_bytes(b'no image'); Image.new('1', (20, 20)).save(entries[4].masks['haemorrhage']); entries[5].image.unlink()
    p = prepare(entries, SMALL, folder); decoded.clear()
    again = prepare(entries, SMALL, folder)
    assert same(p, again) and not decoded and len(p.images) == N - 2
    assert [r.row for r in p.rows[:7]] == [0, 1, None, 2, 3, None, 4] and not p.rows[4].mask_ok and (p.masks[3] == 255).all()
    assert [Path(q.file).name for q in again.problems] == ['2.png', '4_3.gif', '5.png'] and 'gone' in again.problems[2].what


def test_what_passes_is_not_held_against_a_photograph(entries, folder, monkeypatch):
    def busy(file): raise OSError(errno.EMFILE, 'Too many open files', str(file))
    with monkeypatch.context() as m:
        m.setattr(photos, 'read_bytes', busy)
        with pytest.raises(ValueError, match=r'0\.\w+: cannot be read at this moment \(Too many open files\).*try again'): prepare(entries, SMALL, folder)
    assert not prepare(entries, SMALL, folder).problems


def test_a_source_and_its_stream_touch_only_their_rows(entries, folder):
    p = prepare(entries, SMALL, folder)
    s = Source(p.images, p.masks, [r.mask_ok for r in p.rows], [e.label for e in entries], [e.name for e in entries], contents=[r.content for r in p.rows])
    batch = next(Stream(s, s.segmentable, 4))
    assert batch.x.shape == (4, 3, 32, 32) and batch.y.max() < 7


# --- what changed

def touch(e): os.utime(e.image)

def change(e): Image.fromarray(255 - np.asarray(Image.open(e.image))).save(e.image)

def replace_unseen(e):
    "Other bytes, but the same size and the same date."
    was, data = e.image.stat(), bytearray(e.image.read_bytes())
    new = e.image.with_suffix('.new'); new.write_bytes(bytes(len(data))); os.replace(new, e.image)
    os.utime(e.image, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (e.image.stat().st_size, e.image.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)

def change_mask(e): Image.new('1', (48, 48), 1).save(e.masks['haemorrhage'])

def lose_mask(e): e.masks.pop('haemorrhage')

def unknown_mask(e): e.masks, e.has_mask = {}, False


@pytest.mark.parametrize('what, n_decoded', [(touch, 0), (change, 1), (replace_unseen, 1), (change_mask, 1), (lose_mask, 1), (unknown_mask, 1)])
def test_what_changed_is_read_again_and_nothing_else(entries, folder, decoded, what, n_decoded):
    prepare(entries, SMALL, folder); decoded.clear(); later()
    what(entries[7])
    p = prepare(entries, SMALL, folder)
    assert decoded == ['eye 7'] * n_decoded and same(p, prepare(entries, SMALL))
    decoded.clear(); stamps = Cache(folder, SMALL).stamps
    assert same(prepare(entries, SMALL, folder), p) and not decoded
    assert Cache(folder, SMALL).stamps == stamps # and nothing was written


def test_a_set_that_moved_is_known_by_its_content(entries, folder, decoded, tmp_path):
    p = prepare(entries, SMALL, folder); decoded.clear()
    shutil.move(tmp_path/'set', tmp_path/'elsewhere')
    moved = [Entry(e.name, tmp_path/'elsewhere'/e.image.name, {k: tmp_path/'elsewhere'/f.name for k, f in e.masks.items()}, e.has_mask) for e in entries]
    assert same(prepare(moved, SMALL, folder), p) and not decoded


def test_added_and_removed(entries, folder, decoded):
    prepare(entries[:20], SMALL, folder); decoded.clear()
    assert same(prepare(entries[5:], SMALL, folder), prepare(entries[5:], SMALL))
    assert decoded[:4] == [f'eye {i}' for i in range(20, 24)] and len(decoded) == 4 + N - 5


@pytest.mark.parametrize('other', [Preparation(16), Preparation(32, crop_field=False), Preparation(32, mask_resize='nearest'), Preparation(32, classes=('background', 'haemorrhage', 'hard exudate'))])
def test_another_preparation_never_uses_these_rows(entries, folder, decoded, other):
    prepare(entries, SMALL, folder); decoded.clear()
    p = prepare(entries, other, folder)
    assert len(decoded) == N and same(p, prepare(entries, other)) and len(from_lines((folder/'rows.log').read_bytes())) == N + 1
    assert default_cache('x', SMALL) != default_cache('x', other)


def test_a_cache_of_another_version_is_never_used(entries, folder, decoded, monkeypatch):
    prepare(entries, SMALL, folder); decoded.clear()
    monkeypatch.setattr(room, 'VERSION', room.VERSION + 1)
    prepare(entries, SMALL, folder)
    assert len(decoded) == N


def test_rows_that_were_replaced_do_not_pile_up(entries, folder):
    for i in range(20):
        for e in entries[:8]: Image.new('RGB', (40, 40), (i, 0, 0)).save(e.image)
        p = prepare(entries[:8], SMALL, folder)
    assert p.images[0].max() >= 18 and (folder/'images.u8').stat().st_size <= (2 * 8 + 100 + 8) * 3 * 32 * 32


# --- damage

def flip(file, at):
    with open(file, 'r+b') as f:
        f.seek(at, 2 if at < 0 else 0); byte = f.read(1); f.seek(-1, 1); f.write(bytes([byte[0] ^ 4]))


def damage(folder, what):
    if what == 'header': flip(folder/'rows.log', 20)
    elif what == 'line': flip(folder/'rows.log', 3000)
    elif what == 'line end':
        at = (folder/'rows.log').read_bytes().index(b'\n', 2000); flip(folder/'rows.log', at)
    elif what in ('images.u8', 'masks.u8'): flip(folder/what, 5000); flip(folder/what, -1)
    elif what == 'zeros':
        with open(folder/'images.u8', 'r+b') as f: f.seek(4096); f.write(bytes(4096))
    elif what == 'short': os.truncate(folder/'images.u8', (folder/'images.u8').stat().st_size - 3500)
    elif what == 'short journal': os.truncate(folder/'rows.log', (folder/'rows.log').stat().st_size - 700)
    elif what == 'no pixels': (folder/'images.u8').unlink()
    elif what == 'no masks': (folder/'masks.u8').unlink()
    elif what == 'no journal': (folder/'rows.log').unlink()
    elif what == 'swapped':
        a = (folder/'images.u8').read_bytes(); k = 3 * 32 * 32
        (folder/'images.u8').write_bytes(a[k:2 * k] + a[:k] + a[2 * k:])


DAMAGE = ['header', 'line', 'line end', 'images.u8', 'masks.u8', 'zeros', 'short', 'short journal', 'no pixels', 'no masks', 'no journal', 'swapped']


@pytest.mark.parametrize('what', DAMAGE)
def test_damage_is_found_and_mended(entries, folder, decoded, what):
    good = prepare(entries, SMALL); prepare(entries, SMALL, folder); decoded.clear(); later()
    damage(folder, what)
    assert not Cache(folder, SMALL).sound
    mended = prepare(entries, SMALL, folder)
    assert same(mended, good) and decoded
    decoded.clear()
    assert same(prepare(entries, SMALL, folder), good) and not decoded and Cache(folder, SMALL).sound


def test_damage_whose_file_is_gone_is_said(entries, folder):
    prepare(entries, SMALL, folder); later()
    flip(folder/'images.u8', 5 * 3 * 32 * 32 + 9); entries[5].image.unlink()
    p = prepare(entries, SMALL, folder)
    assert p.rows[5].row is None and 'the file is gone' in p.problems[0].what


@settings(max_examples=60, deadline=None)
@given(st.binary(), st.lists(st.dictionaries(st.text(), st.integers()), max_size=5), st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_journal_never_yields_a_line_that_was_not_written(tail, records, at, xor):
    data = bytearray(b''.join(map(to_line, records)))
    if data: data[at % len(data)] ^= xor
    assert all(r in records for r in from_lines(bytes(data)))
    assert all(r in from_lines(b''.join(map(to_line, records)) + tail.replace(b'\n', b'')) for r in records)


# --- kills

BUILD = """
import json, sys, time
from pathlib import Path
import jointseg_nb.cache as room
import jointseg_nb.photos as photos
from jointseg_nb.photos import Entry, Preparation
from PIL import Image
Image.init()
real = room.load_entry
{before}
room.load_entry = lambda e, p: time.sleep({pause}) or real(e, p)
entries = [Entry(d['name'], Path(d['image']), dict((k, Path(v)) for k, v in d['masks'].items()), d['has_mask']) for d in json.loads(Path(sys.argv[1]).read_text())]
print('ready', flush=True); sys.stdin.readline()
p = room.prepare(entries, Preparation(32), sys.argv[2], workers=2)
print(len(p.images), flush=True)
"""


def listed(entries, path):
    path.write_text(json.dumps([dict(name=e.name, image=str(e.image), masks={k: str(v) for k, v in e.masks.items()}, has_mask=e.has_mask) for e in entries]))
    return path


def builder(path, folder, pause=0.01, before=''):
    "A process that builds the cache of a list of entries as soon as it gets a line."
    p = subprocess.Popen([sys.executable, '-c', BUILD.format(pause=pause, before=before), str(path), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'ready\n', p.communicate()[1]
    return p


def go(p): p.stdin.write('\n'); p.stdin.flush()


def built(path, folder, before=''):
    "(exit status, what it said, what it complained of) of a whole build."
    p = builder(path, folder, 0, before)
    out, err = p.communicate('\n', timeout=120)
    return p.returncode, out, err


def lines(folder): return len(from_lines((folder/'rows.log').read_bytes())) if (folder/'rows.log').exists() else 0


@linux
def test_killed_at_random_moments(entries, folder, tmp_path):
    "The arrays of a build that was killed again and again are those of one that was not, byte for byte."
    prepare(entries, SMALL, tmp_path/'whole', workers=2)
    chance, kills = random.Random(1), 0
    for _ in range(4):
        p, there = builder(listed(entries, tmp_path/'list.json'), folder), lines(folder)
        try:
            go(p)
            while p.poll() is None and lines(folder) < min(there + 3, N): time.sleep(0.001)
            time.sleep(chance.random() * 0.02)
            kills += p.poll() is None
        finally: p.kill(); p.communicate()
    assert kills >= 3 and 3 < lines(folder) <= N
    before = lines(folder) - 1
    assert same(prepare(entries, SMALL, folder), prepare(entries, SMALL))
    assert files(folder) == files(tmp_path/'whole') and before >= 9


@pytest.mark.parametrize('cut', [1, 700, 3071, 3072, 3073, 9000])
def test_killed_between_pixels_and_line(entries, folder, tmp_path, cut):
    "Every state that a kill can leave: so many bytes of the pixels, and the lines up to there."
    prepare(entries, SMALL, tmp_path/'whole', workers=1)
    prepare(entries, SMALL, folder, workers=1)
    (folder/'checked.json').unlink()
    journal = (folder/'rows.log').read_bytes()
    n = cut // 3072
    os.truncate(folder/'images.u8', cut); os.truncate(folder/'masks.u8', 1024 * sum(i % 3 > 0 for i in range(n)) + (n > 0))
    (folder/'rows.log').write_bytes(b'\n'.join(journal.split(b'\n')[:1 + n]) + b'\n' + journal[:30])
    assert same(prepare(entries, SMALL, folder), prepare(entries, SMALL))
    assert files(folder) == files(tmp_path/'whole')


def test_stopped_by_hand_says_that_nothing_is_lost(entries, folder, monkeypatch, decoded):
    real = room._make
    def stop(e, *args):
        if e.name == 'eye 15': raise KeyboardInterrupt
        return real(e, *args)
    monkeypatch.setattr(room, '_make', stop)
    with pytest.raises(KeyboardInterrupt, match='caching set .* nothing is lost'): prepare(entries, SMALL, folder, workers=1, title='set')
    monkeypatch.setattr(room, '_make', real); decoded.clear()
    assert same(prepare(entries, SMALL, folder), prepare(entries, SMALL))
    assert decoded[0] == 'eye 15'


# --- two at once

@linux
def test_the_second_builder_waits_and_says_so(entries, folder, tmp_path):
    path = listed(entries, tmp_path/'list.json')
    first, second = builder(path, folder, 0.1), builder(path, folder, 0.1)
    go(first)
    while lines(folder) < 2 and first.poll() is None: time.sleep(0.001)
    said, out = second.communicate('\n', timeout=60), first.communicate(timeout=60)
    assert out[0].strip() == str(N) and said[0].strip() == str(N) and 'waiting for another process' in said[1]
    assert lines(folder) == N + 1 and (folder/'images.u8').stat().st_size == N * 3 * 32 * 32 # each was made once


def test_two_threads(entries, folder):
    found = []
    threads = [threading.Thread(target=lambda: found.append(prepare(entries, SMALL, folder))) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert same(*found) and lines(folder) == N + 1


def test_pixels_in_use_stay_as_they_are_while_others_write(entries, folder):
    p, want = prepare(entries[:10], SMALL, folder), prepare(entries[:10], SMALL)
    later()
    for e in entries[:5]: change(e)
    prepare(entries, SMALL, folder); prepare(entries, Preparation(16), folder)
    assert same(p, want)


# --- places that cannot be written to

@linux
def test_a_full_disk_is_said_and_the_rest_goes_on(entries, folder, tmp_path):
    status, _, said = built(listed(entries, tmp_path/'list.json'), folder, 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))')
    assert status and 'OSError' in said and 'JOINTSEG_CACHE' in said and 'cache=FOLDER' in said and str(folder) in said
    assert 5 < lines(folder) < N and same(prepare(entries, SMALL, folder), prepare(entries, SMALL))


@linux
@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() != 0 or not shutil.which('mount'), reason='only the administrator may mount')
def test_a_disk_that_is_really_full(entries, tmp_path):
    disk = tmp_path/'disk'; disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(disk)], capture_output=True).returncode: pytest.skip('mounting is not allowed here')
    try:
        with pytest.raises(OSError, match='No space left'): prepare(entries, SMALL, disk/'cache')
        for f in disk.rglob('*.u8'): assert f.stat().st_size <= 65536
    finally: subprocess.run(['umount', str(disk)], check=True)


def test_a_place_that_cannot_be(entries, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='JOINTSEG_CACHE'): prepare(entries, SMALL, tmp_path/'file'/'cache')


@linux
def test_a_read_only_cache_is_used_and_never_written_to(eyes):
    "A folder below the root that another user may read: as the administrator, who may always write, we turn into that user."
    nobody = 'import os; os.getuid() or os.setuid(65534)'
    with tempfile.TemporaryDirectory() as t:
        os.chmod(t, 0o755)
        copies = write_eyes(Path(t)/'set', eyes)
        path, folder = listed(copies, Path(t)/'list.json'), Path(t)/'cache'
        prepare(copies, SMALL, folder)
        shutil.copytree(folder, Path(t)/'copied'); (Path(t)/'copied'/'lock').unlink(missing_ok=True)
        for f in (folder, Path(t)/'copied'): os.chmod(f, 0o555)
        for f in (folder, Path(t)/'copied'):
            assert built(path, f, nobody)[:2] == (0, f'{N}\n')
        change(copies[3])
        status, _, said = built(path, folder, nobody)
        assert status and 'JOINTSEG_CACHE' in said and str(folder) in said
        for f in (folder, Path(t)/'copied'): os.chmod(f, 0o755)


def test_a_folder_with_other_things_is_not_touched(entries, tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.tex').write_text('all of it')
    with pytest.raises(ValueError, match="holds other files .'thesis.tex'"): prepare(entries, SMALL, tmp_path/'mine')
    assert [f.name for f in (tmp_path/'mine').iterdir()] == ['thesis.tex']


# --- where, how many

def test_default_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JOINTSEG_CACHE', str(tmp_path/'all'))
    assert default_cache('a b/c d').parent == tmp_path/'all' and default_cache('a/x') != default_cache('b/x')
    assert default_cache('a/x') == default_cache(Path('a')/'..'/'a'/'x') and default_cache('x', root='there').parent == Path('there')
    monkeypatch.delenv('JOINTSEG_CACHE'); monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'xdg'))
    if sys.platform.startswith('linux'): assert default_cache('x').parent == tmp_path/'xdg'/'jointseg_nb'


def test_names_of_any_kind(entries, folder):
    odd = ['', 'a\nb', 'ü/\U0001f441', os.fsdecode(b'\xff\xfe'), '../x', '"', '\u2028']
    some = [Entry(name, e.image, e.masks, e.has_mask) for name, e in zip(odd, entries)]
    assert same(prepare(some, SMALL, folder), prepare(some, SMALL, folder)) and Cache(folder, SMALL).sound


def test_wrong_calls(entries):
    with pytest.raises(ValueError, match='workers=-1'): prepare(entries, SMALL, workers=-1)
    with pytest.raises(ValueError, match='occurs more than once'): prepare(entries + entries[:1], SMALL)


def test_threads_wait_for_the_writer():
    "However slow the one who takes the results is, only a few are ahead of him."
    started = []
    for i, r in enumerate(in_order(lambda x: started.append(x) or x, range(100), workers=3)):
        assert r == i and len(started) <= i + 12
    assert len(started) == 100


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np, torch
from jointseg_nb.cache import prepare
from jointseg_nb.photos import Entry, Preparation
def own(): return int(re.search(r'RssAnon:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])
a = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
prepare([Entry('x', a)], Preparation(256), sys.argv[1] + '/warm')
before = own()
p = prepare([Entry(str(i), a) for i in range(int(sys.argv[2]))], Preparation(256), sys.argv[1] + '/cache', workers=1)
for k in torch.arange(len(p.images)).split(32): p.images[k].float().mean()
print(own() - before)
"""

# What is freed goes back to the system at once: else the allocator, not the program, decides what is measured.
GIVE_BACK = dict(OMP_NUM_THREADS='1', MALLOC_ARENA_MAX='1', MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536')


@linux
def test_memory_does_not_grow_with_the_number(tmp_path):
    "800 photographs of 197 kB are 157 MB; what grows is what is known of them, a few hundred bytes each."
    used = {}
    for n in (100, 800):
        (tmp_path/str(n)).mkdir()
        p = subprocess.run([sys.executable, '-c', MEMORY, str(tmp_path/str(n)), str(n)], capture_output=True, text=True, env={**os.environ, **GIVE_BACK})
        used[n] = int(p.stdout or pytest.fail(p.stderr)) / 1000
    assert used[800] - used[100] < 40, used
