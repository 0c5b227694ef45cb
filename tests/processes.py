"""Processes that find PyTorch loaded, and pictures that cost nothing: what makes tests of whole trainings quick."""
import multiprocessing, os
from dataclasses import replace
from functools import cache

import pytest, torch
from PIL import Image

from jointseg_nb import commands, fit as room
from jointseg_nb.data import embedded
from jointseg_nb.fit import fit
from jointseg_nb.recipes import recipe
from jointseg_nb.runs import RunFailed

TINY = recipe('pocket', size=32, crop=32, pad=2, steps=12, clf_batch=3, seg_batch=3, precision='float32')
QUIET = dict(device='cpu', progress=False, every=4)


@cache
def eyes():
    "Drawn in each process: one that has used PyTorch's threads must not be forked."
    return embedded(20, seed=3, size=32)


context = multiprocessing.get_context('forkserver')
context.set_forkserver_preload(['processes', 'jointseg_nb.export'])   # this file imports the rest


def start(target, *args):
    "A process of its own that runs `target`."
    p = context.Process(target=target, args=args)
    p.start()
    return p


def run_train(argv, cwd, out, err):
    "`jointseg-train` in this process, its output in two files."
    for number, path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    plain_pictures(pytest.MonkeyPatch())
    commands.train(argv)


def plain_pictures(monkeypatch):
    "Two of the three pictures at the end take longer than a short training: a stand-in."
    class Picture:
        def savefig(self, path): Image.new('L', (4, 4)).save(path)
    for name in ('picture', 'film_strip'): monkeypatch.setattr(room, name, lambda *_: Picture())


def at_step(n, do):
    "A listener that does something after step n."
    def listen(row):
        if row['step'] == n: do()
    return listen


def train_tiny(out, steps, resume):
    "A training with a checkpoint every 2 steps."
    torch.set_num_threads(1)
    fit(None if resume else replace(TINY, steps=steps), out, eyes(), resume=resume, checkpoint_every=2, **QUIET)


def fill_disk(out, say):
    "A training that may write no file of more than 200 kB after step 6."
    import resource
    torch.set_num_threads(1)
    fill = at_step(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY)))
    try: fit(TINY, out, eyes(), checkpoint_every=4, listeners=[fill], **QUIET)
    except RunFailed as e: say.put(str(e))
