"""Train the small checkpoint that ships in the package: `python tools/pretrained.py`.

The `pocket` recipe for longer and on more eyes, from random initialisation; about ten minutes on two cores. Writes
jointseg_nb/pocket.safetensors, whose `meta` says how it was made and what it scored on 500 eyes of a seed that it never saw.
"""
import datetime
from pathlib import Path

from tqdm import tqdm

from jointseg_nb.agents import JointSeg
from jointseg_nb.cooperate import set_up
from jointseg_nb.data import embedded
from jointseg_nb.engine import facts
from jointseg_nb.evaluate import evaluate
from jointseg_nb.recipes import recipe

OUT = Path(__file__).parents[1]/'jointseg_nb'/'pocket.safetensors'


def main():
    r = recipe('pocket', steps=1600)
    setup = set_up(r, embedded(4000, seed=0, size=r.size, progress=True))
    t = setup.trainer
    for report in (bar := tqdm(t.steps(), total=r.steps, unit='step')):
        if report.step % 20 == 0: bar.set_postfix_str(f'clf {report.clf_loss:.2f} seg {report.seg_loss:.2f}')
    unseen = embedded(500, seed=1, size=r.size)
    made = dict(made_by='python tools/pretrained.py', date=datetime.date.today().isoformat(), steps=t.step_done, eyes=len(setup.train))
    t.model.save(OUT)
    model = JointSeg.load(OUT)   # in float32, as everybody will use it
    model.meta |= made | dict(scores=evaluate(model, unseen).metrics(), machine=facts(t.engine))
    model.save(OUT)
    print(model.meta)


if __name__ == '__main__': main()
