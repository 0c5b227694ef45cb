"""The network as a file for others: equal to the network, whole, and in need of nothing of ours. What it means is in notebook 21."""
import copy, io, json, os, subprocess, sys, zipfile
from contextlib import suppress
import pytest, torch
from PIL import Image
from jointseg_nb import export
from jointseg_nb.agents import JointSeg
from jointseg_nb.attention import ATTENTIONS
from jointseg_nb.blocks import AgentNorm
from jointseg_nb.data import embedded, standardise
from jointseg_nb.export import Portable, fold_batch_norm, load_program, save_onnx, save_program

tiny = dict(size='small', widths=(16, 16, 24), c_width=32, n_labels=3, n_classes=4)

def net(seed=0, **kwargs):
    "A small net whose norms know something, of either agent something else."
    model, g = JointSeg(**{**tiny, **kwargs}, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(3): model.classify(torch.randn(4, 3, 16, 24, generator=g)), model.segment(torch.randn(4, 3, 16, 24, generator=g)*2 + 1)
        for p in model.parameters():
            if p.ndim == 1: p.add_(torch.randn(p.shape, generator=g)*.2)
    model.meta = dict(size=32, label_names=['a', 'b', 'ç'])
    return model.eval()

def photographs(n=2, h=32, w=40): return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(n*h*w))*255

def off(got, wanted): return max(((a.detach() - b.detach()).abs().max()/b.abs().max().clamp(min=1)).item() for a, b in zip(got, wanted))

@pytest.fixture(scope='module')
def model(): return JointSeg.pretrained()

each = [pytest.mark.parametrize('kind', ATTENTIONS), pytest.mark.parametrize('norm', ['batch', 'agent', 'group']), pytest.mark.parametrize('factorised', [False, True])]
def every_net(f):
    for mark in each: f = mark(f)
    return f

@every_net
def test_a_portable_network_is_the_network(kind, norm, factorised):
    "In double precision to rounding: no norm is forgotten, none is folded with the other agent's statistics."
    model = net(attention=kind, norm=norm, factorised_encoder=factorised, stem_stride=1 + factorised).double()
    model.switches[0, 1] = False
    portable, x = Portable(model), photographs().double()
    x0 = x - x.mean((1, 2, 3), keepdim=True); x0 = x0/x0.std((1, 2, 3), correction=0, keepdim=True)
    assert off(portable(x)[::-1], model(x0)) < 1e-12
    left = [m for m in portable.modules() if isinstance(m, (torch.nn.BatchNorm2d, AgentNorm))]
    assert not left and not any(p.requires_grad for p in portable.parameters())

@pytest.mark.parametrize('kind', ATTENTIONS)
def test_folding_keeps_the_interface_and_the_original(kind):
    model, x = net(attention=kind), standardise(photographs())
    before, state = model(x), copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    assert off(folded(x), before) < 1e-5 and off([folded.classify(x), folded.segment(x)], before) < 1e-5
    assert off(model(x), before) == 0 and list(state) == list(model.state_dict()) and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    folded.switches[:] = False; model.switches[:] = False
    assert off(folded(x), model(x)) < 1e-5

def test_the_shipped_network_folds_to_1e5(model):
    x = standardise(embedded(8, seed=5, size=64).images)
    assert off(fold_batch_norm(model)(x), model(x)) < 1e-5

def test_two_sets_of_statistics_do_not_fold_into_one():
    with pytest.raises(ValueError, match='Portable'): fold_batch_norm(net(norm='agent'))
    a, b = (fold_batch_norm(net(norm='agent').encoder, agent)(photographs())[-1] for agent in (0, 1))
    assert (a - b).abs().max() > .01

def test_standardisation_inside_is_ours(model):
    x = torch.cat([photographs(3, 32, 32), torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 7.), torch.full((1, 3, 32, 32), 7.).index_put((torch.tensor(0), torch.tensor(1), torch.tensor(2), torch.tensor(3)), torch.tensor(8.))])
    assert off(Portable(model)(x)[::-1], model(standardise(x))) < 1e-4

def test_local_contrast_is_inside():
    model, x = net(local_contrast=16), photographs(3, 48, 64)
    assert off(Portable(model)(x)[::-1], model(standardise(x))) < 1e-3

@pytest.fixture(scope='module')
def shipped(model, tmp_path_factory): return save_program(model, tmp_path_factory.mktemp('program')/'deep'/'m.pt2')

variants = {'agent, learned': dict(norm='agent', attention='learned'), 'group, sum, half': dict(norm='group', attention='sum', stem_stride=2),
            'batch, unet, factorised': dict(attention='unet', factorised_encoder=True), 'local contrast': dict(local_contrast=16)}

def same_program(path, model):
    portable, s = Portable(model), model.stride
    program, told = load_program(path)
    for shape in ((1, 3*s, 3*s), (2, 5*s, 7*s), (5, 8*s, 4*s)): assert off(program(photographs(*shape)), portable(photographs(*shape))) < 1e-5
    assert told['stride'] == s and told['size'] == model.meta['size'] and len(told['mask_classes']) == model.config['n_classes'] and told['label_names'] == model.meta['label_names']
    assert [f.name for f in path.parent.iterdir()] == ['m.pt2']

def test_the_program_is_the_network(shipped, model): same_program(shipped, model)

@pytest.mark.slow
@pytest.mark.parametrize('kwargs', variants.values(), ids=variants)
def test_other_programs_are_their_networks(tmp_path, kwargs):
    same_program(save_program(net(**kwargs), tmp_path/'m.pt2'), net(**kwargs))

class Act:
    "Makes a folder when its pickle is read."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)

def test_who_loads_a_program_is_told_that_it_may_run_code(tmp_path, shipped):
    file, spoilt = io.BytesIO(), tmp_path/'strange.pt2'
    torch.save(Act(str(tmp_path/'ran')), file)
    with zipfile.ZipFile(shipped) as old, zipfile.ZipFile(spoilt, 'w') as new:
        for name in old.namelist(): new.writestr(name, file.getvalue() if 'sample_inputs' in name else old.read(name))
    with suppress(Exception): load_program(spoilt)
    assert not (tmp_path/'ran').exists() or all(word in load_program.__doc__ for word in ('run code', '.onnx', '.safetensors'))

def test_a_program_needs_nothing_of_ours(tmp_path, shipped, model):
    x = photographs(2, 64, 64)
    torch.save(dict(x=x, wanted=Portable(model)(x)), tmp_path/'x.pt')
    code = f"""import sys, torch
d = torch.load({str(tmp_path/'x.pt')!r})
got = torch.export.load({str(shipped)!r}).module()(d['x'])
assert all((a - b).abs().max() < 1e-4 for a, b in zip(got, d['wanted'])), 'differs'
assert not any(m.startswith('jointseg') for m in sys.modules)"""
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, timeout=120)

def same_onnx(tmp_path, model):
    onnx, _, runtime = (pytest.importorskip(n, reason="pip install 'jointseg_nb[export]'") for n in ('onnx', 'onnxscript', 'onnxruntime'))
    portable, s, path = Portable(model), model.stride, save_onnx(model, tmp_path/'m.onnx')
    onnx.checker.check_model(str(path))
    session = runtime.InferenceSession(path)
    for shape in ((1, 3*s, 3*s), (2, 5*s, 7*s), (5, 8*s, 4*s)):
        x = photographs(*shape)
        masks, grades = (torch.tensor(a) for a in session.run(['mask_logits', 'grade_logits'], {'photographs': x.numpy()}))
        assert off((masks, grades), portable(x)) < 1e-4 and masks.shape == (shape[0], model.config['n_classes'], *shape[1:])
    told = json.loads(session.get_modelmeta().custom_metadata_map['jointseg'])
    assert told['label_names'] == model.meta['label_names'] and told['switches'] == model.switches.tolist()
    assert [f.name for f in tmp_path.iterdir()] == ['m.onnx']    # one file, no weights beside it

def test_onnx_is_the_network(tmp_path, model): same_onnx(tmp_path, model)

@pytest.mark.slow
@pytest.mark.parametrize('kwargs', variants.values(), ids=variants)
def test_other_onnx_files_are_their_networks(tmp_path, kwargs): same_onnx(tmp_path, net(**kwargs))

def test_switches_are_frozen_as_they_stand(tmp_path):
    model = net()
    model.switches[:] = False
    program, told = load_program(save_program(model, tmp_path/'m.pt2'))
    x = photographs()
    assert off(program(x), Portable(model)(x)) < 1e-5 and not any(sum(told['switches'], []))
    model.switches = model.possible
    assert off(program(x), Portable(model)(x)) > 1e-3

def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path/'m.pt2').write_bytes(b'old')
    def full(src, dst): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(export.os, 'replace', full)
    with pytest.raises(OSError, match='No space'): save_program(net(), tmp_path/'m.pt2')
    assert (tmp_path/'m.pt2').read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1

def test_names_and_facts_are_asked_for_first(tmp_path):
    with pytest.raises(ValueError, match='.pt2'): save_program(net(), tmp_path/'m.onnx')
    with pytest.raises(ValueError, match='.onnx'): save_onnx(net(), tmp_path/'m.pt2')
    model = net(); model.meta = {}
    with pytest.raises(ValueError, match='size'): save_program(model, tmp_path/'m.pt2')
    assert not list(tmp_path.iterdir())

def test_without_the_extra_it_says_how(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, 'find_spec', lambda n: None)
    with pytest.raises(ValueError, match=r'jointseg_nb\[export\]'): save_onnx(net(), tmp_path/'m.onnx')

@pytest.mark.parametrize('agent, empty, files', [('classifier', 'pixels', {'cam', 'cam_array'}), ('segmenter', 'probabilities', {'mask', 'overlay'})])
def test_an_agent_that_never_trained_says_nothing(tmp_path, agent, empty, files):
    "Neither in the table nor as a file."
    model = net()
    model.meta = dict(size=32, crop=32, label_names=['a', 'b', 'c'], mask_classes=list('wxyz'), mask_colors=[[0, 0, 0]]*4, agents=[agent])
    Image.fromarray(photographs(1)[0].permute(1, 2, 0).byte().numpy()).save(tmp_path/'eye.png')
    table = export.predict_files(model, [tmp_path/'eye.png'], tmp_path/'out', progress=False)
    row = table['photographs'][0]
    assert table['agents'] == [agent] and not row[empty] and set(row['files']) == files
    assert (row['grade'] is None) == (agent == 'segmenter') and len(list((tmp_path/'out').glob('eye_*'))) == 2
    head, line = (tmp_path/'out'/'predictions.csv').read_text().splitlines()
    assert len(head.split(',')) == len(line.split(','))
