"""Processes that find PyTorch loaded, and pictures that cost nothing: what makes tests of whole trainings quick."""
import multiprocessing, os

import pytest
from PIL import Image

from jointseg_nb import commands, fit as room

context = multiprocessing.get_context('forkserver')
context.set_forkserver_preload(['jointseg_nb.fit', 'jointseg_nb.commands', 'torch._dynamo'])


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
