"The embedded world, where it is mechanism: processes, platforms, every index; what reads as a lesson is tested in nbs/00_fundus.ipynb."
import hashlib
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from jointseg_nb.fundus import LESIONS, eye, eyes, grade_of, scene, write_folder

ROOT = Path(__file__).parents[1]
SAMPLE = [(0, 0, 64), (5, 0, 64), (7, 9, 65), (13, 1, 128), (2, 2, 256), (12_345_678_901, 2**40, 100)]


def digest(one):
    "SHA-256 of one eye's image, mask and grade."
    e = eye(*one)
    return hashlib.sha256(e.image.tobytes() + e.mask.tobytes() + bytes([e.grade])).hexdigest()


def promised():
    "The fingerprint that the notebook states: the one place where it is written."
    return re.search(r"FINGERPRINT = '([0-9a-f]{64})'", (ROOT/'nbs'/'00_fundus.ipynb').read_text()).group(1)


@pytest.mark.parametrize('env', [{}, {'PYTHONHASHSEED': '1', 'OMP_NUM_THREADS': '1'}, {'LC_ALL': 'C', 'PYTHONOPTIMIZE': '2'}])
def test_a_fresh_process_draws_the_promised_bytes(env):
    code = ('import hashlib\nfrom jointseg_nb.fundus import eye\nh = hashlib.sha256()\n'
            f'for a in {SAMPLE}:\n    e = eye(*a); h.update(e.image.tobytes() + e.mask.tobytes() + bytes([e.grade]))\nprint(h.hexdigest())')
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == promised()


def test_spawned_workers_draw_the_same_bytes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn')) as pool:
        assert list(pool.map(digest, SAMPLE)) == [digest(one) for one in SAMPLE]


def test_order_and_neighbours_do_not_matter():
    images, masks, grades = eyes(3, seed=7, size=48, start=4)
    for k in (2, 0, 1):
        e = eye(4 + k, seed=7, size=48)
        assert (e.image == images[k]).all() and (e.mask == masks[k]).all() and e.grade == grades[k]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(32, 150))
def test_any_eye_is_well_formed(index, seed, size):
    e, twin = eye(index, seed, size), eye(index, seed, size, lesions=False)
    assert e.image.shape == (size, size, 3) and e.mask.shape == (size, size) and e.mask.max() < len(LESIONS)
    assert e.grade == grade_of(e.counts) == twin.grade
    assert set(np.unique(twin.mask)) <= {0, 5, 6}  # drusen and artefacts are no sign of diabetes
    assert (e.image != twin.image).any() == (e.grade > 0)
    for k in range(1, 5):
        if any(e.counts[LESIONS[k]]) and size >= 64: assert (e.mask == k).any()


def test_erasing_touches_nothing_far_from_a_sign():
    "In an eye with microaneurysms only, every changed pixel lies within a few pixels of one in the mask."
    i = next(i for i in range(100) if scene(i).grade == 1)
    e, twin = eye(i, size=128), eye(i, size=128, lesions=False)
    near = np.zeros((128, 128), bool)
    for y, x in np.argwhere(e.mask == 4): near[max(0, y - 6):y + 7, max(0, x - 6):x + 7] = True
    assert not (e.image != twin.image).any(2)[~near].any()


@pytest.mark.parametrize('call', [lambda: eye(-1), lambda: eye(2**63), lambda: eye(0, seed=-1), lambda: eye(0, size=31), lambda: eye(0, size=4096),
                                  lambda: eye(True), lambda: eye('3'), lambda: eye(1.0), lambda: eyes(0), lambda: eyes(2, start=-1)])
def test_wrong_arguments_name_themselves(call):
    with pytest.raises(ValueError, match=r'(index|seed|size|n|start)=.*: give a whole number from \d+ to \d+'): call()


def test_numpy_integers_are_whole_numbers():
    assert (eye(np.int64(3), np.uint8(1), np.int32(40)).image == eye(3, 1, 40).image).all()


def test_folder_has_masks_of_one_bit_only_where_a_class_is(tmp_path):
    folder = write_folder(tmp_path/'set', n=4, seed=12, size=64)
    assert (folder/'labels.csv').read_text().splitlines()[0] == 'image,grade,has_dr'
    for i in range(4):
        e = eye(i, 12, 64)
        assert (np.array(Image.open(folder/'images'/f'eye_{i:04d}.png')) == e.image).all()
        for k, name in enumerate(LESIONS[1:], 1):
            f = folder/'masks'/name.replace(' ', '_')/f'eye_{i:04d}.png'
            assert f.exists() == (e.mask == k).any()
            if f.exists(): assert Image.open(f).mode == '1' and (np.array(Image.open(f)) == (e.mask == k)).all()
    with pytest.raises(ValueError, match='holds a set already'): write_folder(folder)
