"""Colour and detail of drawn eyes beside real photographs without retinopathy. Writes realism.json (numbers only) beside this file.

    python benchmarks/realism.py FOLDER      # a folder of photographs, such as the images of IDRiD

The drawn eyes are erased twins (no signs), without drusen or artefacts: those 60 photographs show none either.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from jointseg_nb.fundus import photograph, scene

BANDS = [(1, 3), (3, 6), (6, 12), (12, 20), (20, 32)]  # cycles in 64 pixels


def drawn(index, seed=3, size=128):
    "An eye without signs, drusen or artefacts."
    s = scene(index, seed)
    s.drusen, s.artefacts, s.glare = s.drusen[:0], s.artefacts[:0], None
    return photograph(s, size, lesions=False)[0]


def color(image):
    "Median and spread of R, G, B inside the field."
    field = image[image.astype(int).sum(2) > 60].astype(float)
    return np.concatenate([np.median(field, 0), field.std(0)])


def power(image):
    "Mean power of the green channel of the centre, in bands of spatial frequency."
    g = image[32:96, 32:96, 1].astype(float)
    p = np.abs(np.fft.fft2((g - g.mean()) * np.outer(np.hanning(64), np.hanning(64)))) ** 2
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64))) * 64
    return [p[(k >= lo) & (k < hi)].mean() for lo, hi in BANDS]


def summary(images):
    c = np.array([color(i) for i in images])
    out = {f'p{q}': np.percentile(c, q, 0).round(1).tolist() for q in (10, 50, 90)}
    return {**out, 'log10_power': np.log10(np.median([power(i) for i in images], 0)).round(3).tolist(), 'n': len(images)}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('folder', type=Path)
    ap.add_argument('--match', default='*NAR*.jpg', help='which files: eyes without retinopathy')
    a = ap.parse_args()
    files = sorted(a.folder.glob(a.match))
    if not files: raise SystemExit(f'{a.folder}: no file matches {a.match}')
    real = [np.array(Image.open(f).convert('RGB').resize((128, 128), Image.BOX)) for f in files]
    out = {'command': 'python benchmarks/realism.py FOLDER', 'date': time.strftime('%Y-%m-%d'), 'photographs': 'IDRiD, no apparent retinopathy, 128 px',
           'bands': [(lo + hi) / 2 for lo, hi in BANDS], 'real': summary(real), 'drawn': summary([drawn(i) for i in range(len(real))])}
    Path(__file__).with_suffix('.json').write_text(json.dumps(out, indent=1) + '\n')
    print(json.dumps(out))


if __name__ == '__main__': main()
