"""JointSeg, its segmenter alone for as many steps, and segmentation_models_pytorch's Unet(resnet34) for as much time, on real eyes: five folds, the same photographs.

    python benchmarks/real.py --data PATH --out DIR               # some hours; the same call goes on where it was stopped
    python benchmarks/real.py --data PATH --out DIR --steps 100 --no-rival

PATH is a folder that `datasets.read` knows, with lesion masks and eyes without retinopathy; the extra `bench` has the rival. Every run is a line of DIR/runs.jsonl. Writes DIR/real.json and, with --keep, benchmarks/real.json: scores and
intervals, no photographs.
"""
import argparse, datetime, json, shlex
from dataclasses import replace
from pathlib import Path

from jointseg_nb.experiments import usual_workers
from jointseg_nb.real import REAL, on_real_eyes, real_eyes, real_table
from jointseg_nb.runs import write_atomic
from peers import mend_torchvision

try: mend_torchvision()   # here, so that every worker has it
except ImportError: pass  # then there is no rival either, and `on_real_eyes` says so


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True)
    p.add_argument('--out', required=True)
    p.add_argument('--steps', type=int, default=REAL.steps)
    p.add_argument('--longer', type=float, default=0, metavar='TIMES', help='train all of them for so many times as long as well, by the recipes that were chosen, at the best of three rates (default: not)')
    p.add_argument('--workers', type=int, default=usual_workers(), help='trainings at once, of one thread each if more than one (default: one for each core, at most 8; on a GPU one)')
    p.add_argument('--no-rival', action='store_true')
    p.add_argument('--report', action='store_true', help='train nothing, say what there is')
    p.add_argument('--keep', action='store_true', help='write benchmarks/real.json as well')
    args = p.parse_args()
    found = on_real_eyes(args.out, real_eyes(args.data), replace(REAL, steps=args.steps), rival=not args.no_rival, longer=args.longer, workers=args.workers, run=not args.report)
    print(real_table(found))
    if args.keep:
        command = ['python', 'benchmarks/real.py', '--data', Path(args.data).name, '--out', 'DIR', '--steps', str(args.steps), '--workers', str(args.workers)] + ['--longer', f'{args.longer:g}']*bool(args.longer) + ['--no-rival']*args.no_rival
        made = dict(date=datetime.date.today().isoformat(), command=shlex.join(command))
        write_atomic(Path(__file__).with_suffix('.json'), json.dumps(dict(made=made) | found, indent=1))


if __name__ == '__main__': main()
