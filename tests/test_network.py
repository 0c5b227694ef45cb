"""The network's mechanism: files, precision, layout, sizes. What it means is in notebooks 01 to 03."""
import copy, json
from pathlib import Path
import pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from jointseg_nb import agents
from jointseg_nb.agents import JointSeg, LocalContrast, _digest
from jointseg_nb.attention import ATTENTIONS
from jointseg_nb.blocks import count_flops
from jointseg_nb.data import embedded
from jointseg_nb.evaluate import evaluate
from jointseg_nb.rivals import Ablation, Rival

tiny = dict(size='small', widths=(16, 16, 24), c_width=32, n_labels=3, n_classes=4)

def net(seed=0, **kwargs):
    "A small net with statistics of its own."
    model = JointSeg(**{**tiny, **kwargs}, seed=seed)
    x = images(4, 16, 24)
    model.classify(x), model.segment(x)
    return model.eval()

def images(n, h, w, seed=1): return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(seed))

def header_of(path):
    with safe_open(path, 'pt') as f: return f.metadata()

every_net = pytest.mark.parametrize('kind', ATTENTIONS), pytest.mark.parametrize('norm', ['batch', 'agent', 'group']), pytest.mark.parametrize('stem', [1, 2])
def each(f):
    for mark in every_net: f = mark(f)
    return f

@each
def test_round_trip(tmp_path, kind, norm, stem):
    model, x = net(attention=kind, norm=norm, stem_stride=stem), images(2, 16, 24)
    model.switches[0] = False
    model.meta = dict(classes=['é', 'b'], size=64)
    again = JointSeg.load(model.save(tmp_path/'deep'/'m.safetensors'))
    for mine, theirs in zip(model(x), again(x)): assert torch.equal(mine, theirs)
    assert again.config == model.config and again.meta == model.meta and torch.equal(again.switches, model.switches) and not again.training

@each
def test_both_equals_each_alone(kind, norm, stem):
    model, x = net(attention=kind, norm=norm, stem_stride=stem), images(2, 16, 24)
    labels, masks = model(x)
    assert torch.equal(labels, model.classify(x)) and torch.equal(masks, model.segment(x))
    assert torch.equal(labels, model(x, agent='classifier')) and torch.equal(masks, model(x, agent='segmenter'))

@each
def test_every_parameter_has_a_gradient(kind, norm, stem):
    model = net(attention=kind, norm=norm, stem_stride=stem).train()
    model.switches[:] = False
    labels, masks = model(images(2, 16, 24))
    (labels.square().mean() + masks.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

@each
def test_bfloat16_autocast(kind, norm, stem):
    model, x = net(attention=kind, norm=norm, stem_stride=stem), images(2, 16, 24)
    with torch.autocast('cpu', torch.bfloat16): labels, masks = model(x)
    exact = model(x)
    assert masks.dtype == torch.bfloat16 and labels.dtype == torch.bfloat16
    assert (masks.float() - exact[1]).abs().max() < .1 * exact[1].abs().max() and (labels.float() - exact[0]).abs().max() < .1 * (1 + exact[0].abs().max())

@each
def test_channels_last(kind, norm, stem):
    "In double precision, outputs and gradients agree to rounding."
    plain = net(attention=kind, norm=norm, stem_stride=stem).double().train()
    last, x = copy.deepcopy(plain).to(memory_format=torch.channels_last), images(2, 16, 24).double()
    for model, xb in (plain, x), (last, x.contiguous(memory_format=torch.channels_last)): model.segment(xb).square().mean().backward()
    for p, q in zip(plain.shared_parameters() + plain.segmenter_parameters(), last.shared_parameters() + last.segmenter_parameters()):
        assert (p.grad - q.grad).norm() <= 1e-9 * (1 + p.grad.norm())

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_types_and_layouts_are_saved(tmp_path, dtype):
    model = net().to(dtype).to(memory_format=torch.channels_last)
    again = JointSeg.load(model.save(tmp_path/'m.safetensors'))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(model.state_dict().values(), again.state_dict().values()))

def test_folder_and_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not there'): JointSeg.load(tmp_path)
    assert net().save(tmp_path) == tmp_path/'model.safetensors'
    JointSeg.load(tmp_path)
    with pytest.raises(FileNotFoundError, match='is not there'): JointSeg.load(tmp_path/'other.safetensors')

def test_altered_weights_are_refused(tmp_path):
    path = net().save(tmp_path/'m.safetensors')
    tensors = load_file(path)
    tensors['decoder.head.bias'][0] += 1
    save_file(tensors, path, header_of(path))
    with pytest.raises(ValueError, match='altered'): JointSeg.load(path)

def test_altered_configuration_is_refused(tmp_path):
    path = net().save(tmp_path/'m.safetensors')
    info = header_of(path)
    info['jointseg'] = info['jointseg'].replace('"blocks": 1', '"blocks": 2')
    save_file(load_file(path), path, info)
    with pytest.raises(ValueError, match='altered'): JointSeg.load(path)

@pytest.mark.parametrize('change, reason', [(dict(config=dict(n_classes=9)), 'does not fit'), (dict(format=2), 'update the package')])
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, reason):
    path = net().save(tmp_path/'m.safetensors')
    header, tensors = json.loads(header_of(path)['jointseg']), load_file(path)
    header = json.dumps({**header, **{k: {**header[k], **v} if isinstance(v, dict) else v for k, v in change.items()}})
    save_file(tensors, path, dict(jointseg=header, sha256=_digest(header, tensors)))
    with pytest.raises(ValueError, match=reason): JointSeg.load(path)

def test_foreign_files_are_refused(tmp_path):
    path = tmp_path/'m.safetensors'
    save_file({'w': torch.zeros(2)}, path)
    with pytest.raises(ValueError, match='holds no JointSeg'): JointSeg.load(path)
    for content in (b'', b'\x80\x04K\x01.', b'x'*100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='no complete safetensors'): JointSeg.load(path)

def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = net().save(tmp_path/'m.safetensors')
    before = path.read_bytes()
    write = Path.write_bytes
    def full_disk(part, content):
        write(part, content[:len(content)//2])
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full_disk)
    with pytest.raises(OSError, match='No space'): net(seed=1).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

def test_meta_that_json_cannot_hold(tmp_path):
    model = net()
    model.meta = dict(weights=torch.zeros(1))
    with pytest.raises(ValueError, match='meta'): model.save(tmp_path/'m.safetensors')
    assert not list(tmp_path.iterdir())

models = {stem: net(stem_stride=stem) for stem in (1, 2)}
sides = st.integers(1, 40)

@settings(deadline=None, max_examples=60)
@given(stem=st.sampled_from([1, 2]), h=sides, w=sides)
def test_any_size_works_or_says_why(stem, h, w):
    model, x = models[stem], torch.zeros(1, 3, h, w)
    if h % model.stride == 0 and w % model.stride == 0:
        labels, masks = model(x)
        assert masks.shape == (1, 4, h, w) and labels.shape == (1, 3)
        return
    for call in (model, model.classify, model.segment, model.encode):
        with pytest.raises(ValueError) as e: call(x)
    message = str(e.value)
    assert f'({1}, 3, {h}, {w})' in message and f'multiples of {model.stride}' in message
    height, width = message.split('nearest height ')[1].split(', nearest width ')
    for a, b in zip(height.split(' or '), width.split(' or ')): assert model.segment(torch.zeros(1, 3, int(a), int(b))).shape[2:] == (int(a), int(b))

@settings(deadline=None, max_examples=30)
@given(on=st.lists(st.booleans(), min_size=6, max_size=6), h=st.integers(1, 4), w=st.integers(1, 4))
def test_switches_there_and_back(on, h, w):
    model, x = models[1], images(1, 4*h, 4*w)
    before = model.segment(x)
    model.switches = torch.tensor(on).view(2, 3)
    assert torch.equal(model.switches, torch.tensor(on).view(2, 3) & model.possible)
    model.segment(x)
    model.switches = model.possible
    assert torch.equal(model.segment(x), before)

def test_one_pixel_of_one_image_trains_only_without_batch_norm():
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="norm='group'"): net().train().classify(x)
    net().train().segment(x)
    net(norm='group').train()(x)
    net().train().classify(torch.zeros(2, 3, 8, 8))

def test_a_copy_is_a_model_of_its_own():
    model = net()
    twin = copy.deepcopy(model)
    twin.switches[:] = False
    assert model.switches.any() and not torch.equal(model.segment(images(1, 16, 16)), twin.segment(images(1, 16, 16)))

def test_counting_leaves_the_model_alone():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    assert count_flops(model.segment, (1, 3, 16, 16)) == count_flops(model.segment, torch.zeros(1, 3, 16, 16)) > 0
    assert model.training and all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))

def test_compiled_and_rewired():
    "Traced by torch.compile (no code generation), a model still heeds its switches."
    model, x = net(), images(1, 16, 16)
    fast = torch.compile(model, backend='eager')
    for on in (model.possible, model.possible & False):
        model.switches = on
        for a, b in zip(fast(x), model(x)): assert torch.allclose(a, b, atol=1e-5)

def test_the_shipped_model_is_small_and_finds_lesions():
    "It is in the package, and good on eyes that it was not trained on."
    assert Path(agents.__file__).with_name('pocket.safetensors').stat().st_size <= 3_000_000
    model = JointSeg.pretrained()
    scores = evaluate(model, embedded(50, seed=2, size=model.meta['size'])).metrics()
    assert scores['lesion_miou'] >= .5 and scores['top1'] > scores['majority'] + .2, scores

def test_a_package_without_its_model_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(agents, '__file__', str(tmp_path/'agents.py'))
    with pytest.raises(FileNotFoundError, match='jointseg-train'): JointSeg.pretrained()


def test_local_contrast_is_what_both_agents_see(tmp_path):
    "As if the images had been changed before; also in a rival, in an ablation, and after a round trip."
    x, plain = images(2, 32, 48), net()
    with_it = JointSeg(**plain.config | dict(local_contrast=16), seed=0).eval()
    assert with_it.state_dict().keys() == plain.state_dict().keys()
    with_it.load_state_dict(plain.state_dict())
    for a, b in zip(with_it(x), plain(LocalContrast(16)(x))): assert torch.equal(a, b)
    for a, b in zip(JointSeg.load(with_it.save(tmp_path/'m.safetensors'))(x), with_it(x)): assert torch.equal(a, b)
    for make in (lambda side: Rival('unet', width=.1, seed=0, local_contrast=side), lambda side: Ablation(size='small', seed=0, local_contrast=side)):
        assert torch.equal(make(16).eval().segment(x), make(0).eval().segment(LocalContrast(16)(x)))
    with pytest.raises(ValueError, match='local_contrast=3'): JointSeg(local_contrast=3)
    assert with_it.to('meta')(x.to('meta'))[1].shape == (2, plain.config['n_classes'], 32, 48)   # where FLOPs are counted

def test_local_contrast_against_a_slow_one():
    "Whole squares of a picture whose blocks of 4 x 4 are flat, far from its edges; and nothing of it is rounded to bfloat16."
    x = images(1, 16, 16).repeat_interleave(4, 2).repeat_interleave(4, 3)
    x[:, 0] += 9; x[..., -1, -1] = -9   # all is inside but a corner
    seen, k = LocalContrast(20)(x), 20//4//2
    assert torch.equal(seen[..., -1, -1], torch.zeros(1, 3))
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(LocalContrast(20)(x), seen)
    small = x[..., ::4, ::4].double()
    mean = lambda y, i, j: y[..., i - k:i + k + 1, j - k:j + k + 1].mean((-2, -1))
    wide = torch.nn.functional.interpolate(torch.stack([torch.stack([mean(small[0], i, j) for j in range(16 - k)[k:]], 1) for i in range(16 - k)[k:]], 1)[None], scale_factor=4, mode='bilinear')[0]
    part = (x[0].double()[:, 4*k:-4*k, 4*k:-4*k] - wide)[:, 12:-12, 12:-12]
    ours = seen[0, :, 4*k + 12:-4*k - 12, 4*k + 12:-4*k - 12].double()
    ratio = part/ours   # the deviation, the same of all channels
    assert (ratio.amax(0) - ratio.amin(0)).abs().max() < 1e-2*ratio.mean() and ratio.min() > 0
