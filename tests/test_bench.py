"""The benchmark: the naive step is ours, `jointseg-bench` writes every figure, and says what is wrong."""
import json, subprocess, sys
from dataclasses import replace

import pytest
import torch

from jointseg_nb import bench as room, commands
from jointseg_nb.bench import CONTENDERS, KINDS, Case, breakdown, counted_flops, groups, limits, load_benchmark, naive_loop, our_trainer, random_batches, ratios, same_step, take_turns

TINY = Case(net='small', images=4, side=64, threads=1)
RATIOS = {'naive', 'naive_fp32', 'smp_default', 'smp_best', 'memory', 'peak_fraction', 'inference'}


@pytest.mark.parametrize('stem', [1, 2])
def test_naive_is_ours(stem):
    "In double precision to rounding; in single precision what comes out to 1e-4, and most gradients (ReLU may take either side of zero)."
    case = replace(TINY, stem=stem)
    same = same_step(case)
    assert max(same.values()) < 1e-9
    assert {'label logits', 'mask logits', 'clf loss', 'seg loss'} <= set(same)
    parameters = {n for n, _ in our_trainer(case).model.named_parameters()}
    compared = {n.split(' of ')[1] for n in same if 'gradient' in n}
    assert compared == parameters
    single = same_step(case, torch.float32)
    assert max(v for n, v in single.items() if 'gradient' not in n) < 1e-4
    assert sorted(single.values())[len(single)//2] < 1e-3


def test_one_step_moves_both_alike():
    "Weights after a step of both agents, momentum and weight decay included."
    trainer, batches = our_trainer(TINY, 'float32'), random_batches(TINY)
    trainer.model.double()
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    loop = naive_loop(TINY, trainer.model)
    loop.net.double(), load_benchmark('naive').copy_weights(trainer.model, loop.net)
    batches = [t.double() if t.is_floating_point() else t for t in batches]
    for s, (x, y) in zip(('clf', 'seg'), (batches[:2], batches[2:])):
        b = next(trainer.streams[s])
        b.x = x
    for _ in range(2): trainer.step(), loop.step(*batches)
    weights = load_benchmark('naive').named_as_ours(loop.net, trainer.model, lambda p: p.detach())
    for n, p in trainer.model.named_parameters():
        moved, theirs = p.detach() - before[n], weights[n] - before[n]
        assert theirs.abs().max() > 0
        torch.testing.assert_close(moved, theirs, rtol=1e-6, atol=1e-9*theirs.abs().max().item() + 1e-18, msg=n)


def test_backward_through_one_head_gives_the_same_gradients():
    both, one = (naive_loop(TINY, our_trainer(TINY).model, b) for b in (True, False))
    x, y, *_ = random_batches(TINY)
    for loop in (both, one): sum(loop.losses(x, y)).backward()
    for p, q in zip(both.net.shared() + both.net.of_classifier(), one.net.shared() + one.net.of_classifier()): torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)
    assert all(p.grad is None for p in one.net.of_segmenter())
    assert all((p.grad == 0).all() for p in both.net.of_segmenter())


@pytest.mark.slow
def test_quick_writes_every_figure(tmp_path):
    out = tmp_path/'new'/'step.json'
    code = 'from jointseg_nb.commands import bench; bench()'
    done = subprocess.run([sys.executable, '-c', code, '--quick', '--device', 'cpu', '--threads', '1', '--out', str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = json.loads(out.read_text())
    assert {'machine', 'date', 'command', 'ratios', 'limits', 'times', 'memory', 'equal'} <= set(made) and RATIOS <= set(made['ratios'])
    assert all(made['ratios'][k] > 0 for k in RATIOS - {'smp_default', 'smp_best'})
    assert made['ratios']['smp_default'] is None     # no --peers
    assert made['equal']['float64']['gradients'] < 1e-9 and made['equal']['float32']['outputs'] < 1e-4
    step = made['times']['step']
    for name in ('ours', 'ours_fp32', 'naive', 'naive_one_backward'):
        assert len(step[name]['seconds']) == len(step[name]['kernel_seconds']) == 2 and step[name]['parameters'] == step['ours']['parameters']
    assert 0 < step['ours']['flops'] == step['ours_fp32']['flops'] < step['naive_one_backward']['flops'] < step['naive']['flops']
    assert len(step['peak']['flops_per_second']) == 2 and made['limits']['outside_kernel']['naive'] > 0
    assert abs(sum(made['limits']['share'].values()) - 1) < 1e-9 and 0 < made['limits']['convolutions_of_step'] < 1
    assert made['times']['inference']['ours_inference']['parameters'] > 1000 and step['ours']['first'] > 0 and 'of the step: convolutions' in done.stdout


class Stub:
    "A process of the benchmark that needs none; real ones work in the notebook and in the slow test."
    def __init__(self, case, job): self.case = case
    def hear(self):
        if self.case.who == 'nobody': raise RuntimeError('no compiler')
        return dict(first=2., parameters=1)
    def ask(self): return dict(seconds=1.)


def test_what_cannot_compile_is_left_out(monkeypatch):
    said, ended = [], []
    monkeypatch.setattr(room, 'Worker', Stub), monkeypatch.setattr(room, '_end', ended.append)
    found = take_turns(dict(ours=TINY, ours_compiled=replace(TINY, who='nobody')), 3, tell=said.append)
    assert found == dict(ours=dict(first=2., parameters=1, seconds=[1., 1., 1.])) and 'without ours_compiled' in said[0] and len(ended) == 2
    with pytest.raises(RuntimeError, match='no compiler'): take_turns(dict(ours=TINY, naive=replace(TINY, who='nobody')), 3, tell=said.append)
    assert len(ended) == 4    # those who had begun are ended too


def test_the_profile_counts_every_microsecond_once():
    "The kinds sum to the time within the step, and each has the work that is known to be there."
    spent = breakdown(TINY, steps=1)
    assert set(spent) == {*KINDS, 'optimisers', 'rest'} and list(spent.values()) == sorted(spent.values(), reverse=True)
    assert all(spent[k] > 0 for k in spent)
    assert spent['convolutions, backward'] + spent['convolutions, forward'] > spent['pooling']


def test_a_compiled_step_is_asked_for():
    assert 'ours_compiled' not in groups(TINY, False, False)['step'] and 'ours_compiled' in groups(TINY, False, True)['step']


@pytest.mark.slow
def test_a_compiled_step_is_ours():
    "Compiled by the processor's C++ compiler, where there is one: same losses."
    from torch._inductor.cpp_builder import get_cpp_compiler
    try: get_cpp_compiler()
    except Exception: pytest.skip('no C++ compiler here')
    case, said = TINY, []
    found = take_turns(dict(ours=case, ours_compiled=replace(case, who='ours_compiled')), 1, tell=said.append)
    assert set(found) == {'ours', 'ours_compiled'}, said
    plain, quick = our_trainer(case, 'float32'), our_trainer(case, 'float32')
    for name in ('classify', 'segment'): setattr(quick.model, name, torch.compile(getattr(quick.model, name)))
    for _ in range(2): a, b = plain.step(), quick.step()
    assert abs(a.clf_loss - b.clf_loss) < 1e-4 and abs(a.seg_loss - b.seg_loss) < 1e-4


def test_errors(capsys):
    with pytest.raises(SystemExit) as e: commands.bench(['--repeats', '0', '--device', 'cpu'])
    assert e.value.code == 2 and 'repeats=0' in capsys.readouterr().err


def test_ratios_are_quotients():
    times = dict(step=dict(ours=2., ours_fp32=4., naive=10., smp_best=3., peak=1000.), stem1=dict(ours=1., ours_fp32=2., naive=5.), inference=dict(ours_inference=1., naive_inference=4.))
    r = ratios(times, dict(ours=1, naive=2), 400.)
    assert r['naive'] == 5 and r['naive_fp32'] == 2.5 and r['smp_best'] == 1.5 and r['smp_default'] is None and r['peak_fraction'] == 0.2


def test_limits_are_those_of_the_convolutions():
    found = limits({'convolutions, backward': 2., 'convolutions, forward': 1., 'batch norm': 1.}, flops=300., peak=200., naive=12.)
    assert found['convolutions_of_step'] == 0.75 and found['convolutions_of_peak'] == 0.5 and found['naive_over_convolutions_alone'] == 4
    assert found['share']['batch norm'] == 0.25


def test_useful_work_is_that_of_one_agent_each():
    "A step of 4 + 1 has less than two thirds of what the naive loop multiplies."
    ours, naive = (counted_flops(CONTENDERS[who](TINY)[0]) for who in ('ours', 'naive'))
    assert 0.3*naive < ours < 0.67*naive
