"""How the `pocket` recipe was chosen: the same network, eyes and steps under different rates and agents.

    python benchmarks/pocket.py                       # all conditions, three seeds; resumes where it stopped
    python benchmarks/pocket.py --seeds 1 --only pocket,ratio30

What is in benchmarks/pocket.json already, and was made by the same recipe, is kept; each run is written as it ends, so that
a call that was stopped goes on where it stood, and the conditions can be done in parts.

Writes benchmarks/pocket.json: for every condition and seed the scores on held-out eyes along the way and at the end. About two
minutes a run on two cores with bfloat16 units, half as long again without.
"""
import argparse, datetime, json, shlex, sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from jointseg_nb.cooperate import set_up
from jointseg_nb.data import embedded
from jointseg_nb.engine import facts
from jointseg_nb.evaluate import evaluate
from jointseg_nb.experiments import told
from jointseg_nb.fit import quick_scores
from jointseg_nb.recipes import recipe
from jointseg_nb.runs import write_atomic

CONDITIONS = dict(
    pocket={},                                                       # as shipped
    equal=dict(lr_ratio=1.),                                         # both agents move M equally fast
    ratio30_shared=dict(lr_ratio=30.),                               # the classifier moves M 30 times as fast; private rates as shipped
    ratio30=dict(ratio_on='agent', lr_ratio=30., lr=None),           # the paper's words: the whole classifier 30 times as fast; lr so that the classifier has the shipped rate
    segmenter=dict(agents='segmenter'),
    classifier=dict(agents='classifier'),
    # what a longer training may want, one thing at a time
    norm_agent=dict(norm='agent'),
    norm_group=dict(norm='group'),
    average=dict(average=0.99),
    ce=dict(seg_loss='ce'),                                          # the paper's loss, its classes weighted as shipped
    smoothing=dict(label_smoothing=0.1),
    warmup=dict(warmup=50),
    clip=dict(clip=1.),
    rotate=dict(rotate=20.),
    stride2=dict(stem_stride=2),
    together=dict(norm='agent', average=0.99, weight_power=0.3, label_smoothing=0.1, warmup=50, clip=5., rotate=20.),  # all but the stride, and milder weights
    # other readings and other ways
    simultaneous=dict(update='simultaneous'),
    dice_alone=dict(seg_loss='dice', weight_power=0.),
    plain=dict(seg_loss='ce', weight_power=0.),                      # the paper's loss
    no_attention=dict(attention='none'),
)


def condition(name, seed):
    "The recipe of a condition."
    changes = dict(CONDITIONS[name])
    if 'lr' in changes: changes['lr'] = recipe('pocket').lr / changes['lr_ratio']
    return recipe('pocket', name=name, seed=seed, **changes)


@cache
def pocket_eyes():
    "The eyes on which all learn, drawn once a process."
    return embedded(1000, seed=0, size=recipe('pocket').size)


def one_run(name, seed, threads=None, every=50):
    "Scores along the way, and on all held-out eyes at the end."
    if threads: torch.set_num_threads(threads)
    source = pocket_eyes()
    setup = set_up(condition(name, seed), source)
    curve = []
    for report in tqdm(setup.trainer.steps(), f'{name}, seed {seed}', setup.trainer.recipe.steps, disable=None):
        if report.step % every == 0: curve.append(dict(step=report.step, cosine=report.cosine) | quick_scores(setup))
    t = setup.trainer
    final = evaluate(t.eval_model, source, setup.valid, t.recipe.crop, engine=t.engine).metrics()
    return dict(condition=name, seed=seed, final=final, curve=curve), facts(t.engine)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--only', default=','.join(CONDITIONS), help='conditions, by comma')
    p.add_argument('--workers', type=int, default=1, help='trainings at once, one thread each if more than one')
    p.add_argument('--out', default=Path(__file__).with_suffix('.json'), type=Path)
    args = p.parse_args()
    wanted = [(s, c) for s in range(args.seeds) for c in args.only.split(',')]
    # What a recipe tells is the key: a run of another recipe is never mixed with these, and a field that is new changes nothing.
    key = {c: told(condition(c, 0)) for c in CONDITIONS}
    old = json.loads(args.out.read_text()) if args.out.exists() else {}
    runs = [r for r in old.get('runs', []) if r['condition'] in key and old['recipes'].get(r['condition']) == key[r['condition']]]
    wanted = [w for w in wanted if not any((r['seed'], r['condition']) == w for r in runs)]
    with ProcessPoolExecutor(args.workers, get_context('spawn')) as pool:
        jobs = [pool.submit(one_run, name, seed, 1 if args.workers > 1 else None) for seed, name in wanted]
        for job in as_completed(jobs):
            run, machine = job.result()
            runs.append(run)
            content = dict(command=shlex.join(['python', 'benchmarks/pocket.py', *sys.argv[1:]]), date=datetime.date.today().isoformat(),
                           machine=machine, recipes={c: key[c] for c in key if any(r['condition'] == c for r in runs)}, runs=sorted(runs, key=lambda r: (r['seed'], r['condition'])))
            write_atomic(args.out, json.dumps(content, indent=1))
            print('{condition:15s} seed {seed}'.format(**run), {k: run['final'][k] for k in ('lesion_miou', 'miou', 'top1')}, flush=True)


if __name__ == '__main__': main()
