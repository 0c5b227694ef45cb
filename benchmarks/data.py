"""How fast photographs come, and what they cost: the cache against decoding, waiting for data, memory, cores, the first step.

    python benchmarks/data.py            # all of it, some ten minutes on two cores; the machine should do nothing else
    python benchmarks/data.py --quick    # a try with fewer and smaller things; its figures are printed, not kept
    python benchmarks/data.py --only cache_vs_decode,build_speedup

Writes data.json beside this file, if all parts were run whole. Within each part the conditions take turns, and the median of all rounds counts.
Photographs are embedded eyes drawn at 512 px, enlarged to 2048 px, with sensor noise, saved as JPEG.
"""
import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from jointseg_nb.cache import prepare
from jointseg_nb.cooperate import set_up
from jointseg_nb.data import Augment, Source, embedded, take_window
from jointseg_nb.photos import Entry, Preparation, read_photo
from jointseg_nb.recipes import recipe


def median(times): return statistics.median(times)


def camera_files(folder, n):
    "Eyes as a camera saves them: 2048 px JPEG of some 600 kB."
    noise, files = np.random.default_rng(0), []
    for i, x in enumerate(embedded(n, seed=40, size=512).images):
        im = np.asarray(Image.fromarray(x.permute(1, 2, 0).numpy()).resize((2048, 2048), Image.Resampling.BICUBIC))
        files.append(folder/f'{i}.jpg')
        Image.fromarray((im + noise.normal(0, 3, im.shape)).clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def cpu_each(f, n):
    "Seconds of the processor for each of `n` calls."
    start = time.process_time()
    for i in range(n): f(i)
    return (time.process_time() - start) / n


def cache_vs_decode(work, quick):
    "Samples of 224 px a second on one core: decoded, or copied out of the cache and cut."
    torch.set_num_threads(1)
    files, n = camera_files(work, 4 if quick else 24), 64 if quick else 512
    entries = [Entry(f'{i}', files[i % len(files)]) for i in range(n)]
    prepared = prepare(entries, Preparation(256), work/'cache')
    source = Source(prepared.images, labels=torch.arange(n) % 5)
    g, still, batch = torch.Generator().manual_seed(0), Augment(crop=224), 32

    def rows(): return source.images[torch.randint(n, (batch,), generator=g)]
    def cut(_): take_window(rows(), *still.window(torch.rand(batch, 7, generator=g), 256, 256), 0)
    def augmented(a): return lambda _: a(rows(), None, g)
    ways = {'decode_full': (lambda i: np.asarray(Image.open(files[i % len(files)])), 1, len(files)),
            'decode_reduced_crop_resize': (lambda i: read_photo(files[i % len(files)], 256), 1, len(files)),
            'cache_index_crop': (cut, batch, 20),
            'cache_index_crop_flip_standardise': (augmented(Augment(crop=224)), batch, 6),
            'cache_with_colour': (augmented(Augment(crop=224, colour=recipe('paper').colour)), batch, 6),
            'cache_with_rotation': (augmented(Augment(crop=224, rotate=20.)), batch, 6)}
    times = {k: [] for k in ways}
    for way in ways.values(): way[0](0)
    for _ in range(2 if quick else 7):
        for k, (f, size, calls) in ways.items(): times[k].append(cpu_each(f, calls) / size)
    each = {k: median(t) for k, t in times.items()}
    return dict(ratio=each['decode_full'] / each['cache_index_crop'], ratio_of_reduced_decoding=each['decode_full'] / each['decode_reduced_crop_resize'], target='ratio >= 50',
                samples_per_second_per_core={k: round(1 / t) for k, t in each.items()}, jpeg_kilobytes=round(np.mean([f.stat().st_size for f in files]) / 1000), cpu_seconds_each=times)


class Timed:
    "A stream that knows how long one waits for it."
    def __init__(self, stream): self.stream, self.waited = stream, 0.
    def __getattr__(self, name): return getattr(self.stream, name)
    def __next__(self):
        start = time.perf_counter()
        try: return next(self.stream)
        finally: self.waited += time.perf_counter() - start


def wait_share(work, quick):
    "Share of a training step on the CPU that is spent waiting for its two batches."
    torch.set_num_threads(os.cpu_count())
    out = {}
    for name, steps in (('pocket', 20 if quick else 200),) + (() if quick else (('paper', 7),)):
        r = recipe(name)
        eyes = embedded(80, seed=41, size=r.size)
        entries = [Entry(f'{i}', im.permute(1, 2, 0).numpy(), has_mask=True) for i, im in enumerate(eyes.images)]
        prepared = prepare(entries, Preparation(r.size, crop_field=False), work/f'cache of {name}')
        t = set_up(r, Source(prepared.images, eyes.masks, labels=eyes.labels), 'cpu').trainer
        t.streams = {k: Timed(s) for k, s in t.streams.items()}
        t.step()
        shares, seconds = [], []
        for _ in range(steps):
            before, start = sum(s.waited for s in t.streams.values()), time.perf_counter()
            t.step()
            seconds.append(time.perf_counter() - start); shares.append((sum(s.waited for s in t.streams.values()) - before) / seconds[-1])
        out[name] = dict(share=median(shares), step_seconds=median(seconds), shares=shares if steps < 10 else statistics.quantiles(shares, n=10))
    return dict(ratio=max(v['share'] for v in out.values()), target='ratio < 0.01', threads=torch.get_num_threads(), **out)


MEMORY = """
import re, sys
from pathlib import Path
import torch
from jointseg_nb.cache import prepare
from jointseg_nb.data import Augment, Source, Stream
from jointseg_nb.photos import Entry, Preparation
def memory(): return {k: int(re.search(k + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1000 for k in ('RssAnon', 'VmRSS')}
torch.set_num_threads(1)
n, files, folder, read = int(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), sys.argv[3], int(sys.argv[4])
def source(n, folder):
    p = prepare([Entry(str(i), files[i % len(files)], has_mask=True) for i in range(n)], Preparation(64), folder)
    return Source(p.images, p.masks, labels=torch.arange(n) % 5, contents=[r.content for r in p.rows])
def loop(s, n):
    a, b = Stream(s, s.gradable, 32, Augment(crop=56), 'label'), Stream(s, s.segmentable, 32, Augment(crop=56), 'mask')
    for _ in range(n): next(a); next(b)
loop(source(8, folder + ' warm'), 20)
start = memory()
s = source(n, folder); opened = memory()
loop(s, read); end = memory()
print(opened['RssAnon'] - start['RssAnon'], end['RssAnon'] - opened['RssAnon'], end['VmRSS'] - start['VmRSS'])
"""


def memory_mb(work, quick):
    "What a process grows by when it builds or opens a cache and reads all of it once, for few and for many photographs."
    few, many = 100, 2000 if quick else 20_000
    (work/'eyes').mkdir()
    for i, x in enumerate(embedded(40 if quick else 300, seed=42).images): Image.fromarray(x.permute(1, 2, 0).numpy()).save(work/'eyes'/f'{i:03}.png')

    def grown(n):
        out = subprocess.run([sys.executable, '-c', MEMORY, str(n), str(work/'eyes'), str(work/f'cache of {n}'), str(many // 32)], capture_output=True, text=True, check=True, env=one_thread()).stdout
        return dict(zip(('opened', 'read', 'read_with_mapped_pages'), map(float, out.split())))
    built = {n: grown(n) for n in (few, many)}
    rounds = {n: [] for n in built}
    for _ in range(2 if quick else 5):
        for n in rounds: rounds[n].append(grown(n))
    mid = {n: {k: median([r[k] for r in rs]) for k in rs[0]} for n, rs in rounds.items()}
    more = mid[many]['read'] - mid[few]['read']
    return dict(ratio=more / (many * 64 * 64 * 4 / 1e6), target='ratio about 0: nothing of what is read stays', megabytes_more_while_reading=more, pixels_megabytes=many * 64 * 64 * 4 / 1e6,
                kilobytes_known_of_each_photograph=1000 * (mid[many]['opened'] - mid[few]['opened']) / (many - few),
                note=f'{many} photographs are {len(list((work/"eyes").iterdir()))} embedded eyes of 64 px, each many times under different names, all built by the cache', found=mid, built=built, rounds=rounds)


def one_thread(): return {**os.environ, 'OMP_NUM_THREADS': '1'}


def build_speedup(work, quick):
    "Building the cache with two threads against one."
    files = camera_files(work, 4 if quick else 24)
    entries = [Entry(f'{i}', files[i % len(files)]) for i in range(16 if quick else 192)]
    times = {1: [], 2: []}
    for k in range(2 if quick else 7):
        for workers in times:
            start = time.perf_counter(); prepare(entries, Preparation(256), work/f'{k} {workers}', workers=workers)
            times[workers].append(time.perf_counter() - start)
    return dict(ratio=median(times[1]) / median(times[2]), target='ratio >= 1.7', photographs=len(entries), photographs_per_second={w: len(entries) / median(t) for w, t in times.items()}, seconds=times)


FIRST = """
import sys, time
start = time.perf_counter()
from jointseg_nb.cooperate import set_up
from jointseg_nb.datasets import read
from jointseg_nb.recipes import recipe
imported = time.perf_counter()
r = recipe(sys.argv[3])
s = read(sys.argv[1], size=r.size, cache=sys.argv[2], quiet=True); done = time.perf_counter()
t = set_up(r, s, 'cpu').trainer; ready = time.perf_counter()
if sys.argv[4] == 'step': t.step()
print(imported - start, done - imported, ready - done, time.perf_counter() - ready)
"""


def folder_of(path, n, distinct):
    "A data set of `n` photographs of 256 px with grades, one in ten with masks; each file's bytes are its own."
    eyes = embedded(distinct, seed=43, size=256)
    for f in ('images', 'masks/haemorrhage', 'masks/microaneurysm'): (path/f).mkdir(parents=True)
    for i, x in enumerate(eyes.images): Image.fromarray(x.permute(1, 2, 0).numpy()).save(path/'one.jpg', quality=92); eyes.names[i] = (path/'one.jpg').read_bytes()
    (path/'one.jpg').unlink()
    for i in range(n):
        (path/'images'/f'{i}.jpg').write_bytes(eyes.names[i % distinct] + b'%08d' % i)
        if i % 10 == 0:
            for c, name in ((3, 'haemorrhage'), (4, 'microaneurysm')): Image.fromarray((eyes.masks[i % distinct] == c).numpy()).save(path/'masks'/name/f'{i}.png')
    (path/'labels.csv').write_text('image,grade\n' + ''.join(f'{i}.jpg,{int(eyes.labels[i % distinct])}\n' for i in range(n)))
    return path


def first_step_s(work, quick):
    "From a fresh process to the first step of a training on 4,000 photographs that are cached."
    n = 400 if quick else 4000
    path = folder_of(work/'set', n, 20 if quick else 200)
    names, parts = ('pocket', 'paper'), ('import', 'read', 'set_up', 'step')
    def run(name): # the paper's step itself takes many seconds on a CPU: only its start is timed
        out = subprocess.run([sys.executable, '-c', FIRST, str(path), str(work/'caches'), name, 'step' if name == 'pocket' else 'start'], capture_output=True, text=True)
        if out.returncode: raise RuntimeError(out.stderr)
        return dict(zip(parts, map(float, out.stdout.split())))
    built = {name: run(name) for name in names}
    rounds = {name: [] for name in names}
    for _ in range(2 if quick else 5):
        for name in names: rounds[name].append(run(name))
    mid = {name: {k: median([r[k] for r in rs]) for k in parts} for name, rs in rounds.items()}
    return dict(seconds_to_the_end_of_the_first_pocket_step=sum(mid['pocket'][k] for k in parts[1:]), seconds_to_the_start_of_the_first_paper_step=mid['paper']['read'] + mid['paper']['set_up'],
                target='each < 2 s after the imports', note='of set_up, the larger part is what PyTorch itself imports when it makes its first optimiser', photographs=n, seconds=mid, seconds_when_built=built, rounds=rounds)


PARTS = (cache_vs_decode, wait_share, memory_mb, build_speedup, first_step_s)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--quick', action='store_true', help='fewer and smaller things')
    ap.add_argument('--only', default=','.join(f.__name__ for f in PARTS), help='parts, by comma')
    a = ap.parse_args()
    out = {'command': 'python benchmarks/data.py ' + ' '.join(sys.argv[1:]), 'date': time.strftime('%Y-%m-%d'), 'machine': f'{platform.machine()}, {platform.system()}, {os.cpu_count()} cores',
           'python': platform.python_version(), 'numpy': np.__version__, 'torch': torch.__version__, 'pillow': PIL.__version__}
    for part in PARTS:
        if part.__name__ not in a.only.split(','): continue
        with tempfile.TemporaryDirectory() as work: out[part.__name__] = part(Path(work), a.quick)
        print(part.__name__, json.dumps({k: v for k, v in out[part.__name__].items() if isinstance(v, (int, float, str))}), flush=True)
    text = json.dumps(out, indent=1) + '\n'
    print(text) if a.quick or a.only != ap.get_default('only') else Path(__file__).with_suffix('.json').write_text(text)


if __name__ == '__main__': main()
