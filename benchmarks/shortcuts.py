"""Can a convolutional net tell the grade of an eye whose signs were erased? Writes shortcuts.json beside this file.

    python benchmarks/shortcuts.py [--train 3000] [--test 2000] [--epochs 8]

Two nets of the same kind are trained: on erased twins, and on the same eyes with their signs, to show that the net can read. After each
epoch the net is tested, and its best epoch on the *test* eyes is kept: in favour of finding a shortcut.
"""
import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from jointseg_nb.fundus import eyes


def tensor(images):
    "Images (n, 64, 64, 3) uint8 to (n, 3, 64, 64), not standardised: colour and exposure are among the shortcuts to look for."
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def net():
    def conv(i, o, s): return [nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*conv(3, 24, 2), *conv(24, 48, 1), *conv(48, 96, 2), *conv(96, 96, 1), *conv(96, 128, 2),
                         nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(512, 5))


def best_accuracy(train, test, epochs, batch=32):
    "Train on one set; the highest accuracy of any epoch on the other."
    torch.manual_seed(0)
    model = net()
    steps = epochs * (len(train[0]) // batch)
    opt = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-3, steps)
    best = 0.
    for _ in range(epochs):
        model.train()
        for i in torch.randperm(len(train[0])).split(batch)[:len(train[0]) // batch]:
            x = train[0][i]
            if torch.rand(()) < .5: x = x.flip(3)
            loss = nn.functional.cross_entropy(model(x), train[1][i])
            opt.zero_grad(); loss.backward(); opt.step(); plan.step()
        model.eval()
        with torch.no_grad(): guess = torch.cat([model(x).argmax(1) for x in test[0].split(250)])
        best = max(best, (guess == test[1]).float().mean().item())
    return best


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    for name, n in (('train', 3000), ('test', 2000), ('epochs', 8)): ap.add_argument(f'--{name}', type=int, default=n)
    a = ap.parse_args()
    torch.set_num_threads(1)
    out = {'command': 'python benchmarks/shortcuts.py ' + ' '.join(sys.argv[1:]), 'date': time.strftime('%Y-%m-%d'),
           'machine': f'{platform.machine()}, {platform.system()}, 1 thread', 'python': platform.python_version(),
           'numpy': np.__version__, 'torch': torch.__version__, 'train': a.train, 'test': a.test, 'epochs': a.epochs}
    for name, lesions in (('erased', False), ('with signs', True)):
        start = time.time()
        (xa, _, ga), (xb, _, gb) = eyes(a.train, 31, 64, lesions=lesions), eyes(a.test, 32, 64, lesions=lesions)
        acc = best_accuracy((tensor(xa), torch.from_numpy(ga)), (tensor(xb), torch.from_numpy(gb)), a.epochs)
        share = float((gb == np.bincount(ga).argmax()).mean())
        out[name] = {'accuracy': acc, 'majority': share, 'standard_error': (share * (1 - share) / a.test) ** .5, 'seconds': round(time.time() - start)}
        print(name, out[name], flush=True)
    Path(__file__).with_suffix('.json').write_text(json.dumps(out, indent=1) + '\n')


if __name__ == '__main__': main()
