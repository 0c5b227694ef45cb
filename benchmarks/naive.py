"""The cooperative step as a reader of the paper would write it first: the yardstick of `jointseg-bench`. Slow on purpose; do not improve it.

Plain PyTorch, nothing of jointseg_nb in it: every branch has a 1x1 convolution of its own, everything stays in PyTorch's default layout and in
float32, and two Nesterov SGD optimisers take turns (II-A, Eq. 1 and 2). One network with two outputs and one loss over both serve both streams: what
an image has no label for is marked as unknown (grade -1, mask 255) and counts nothing, as in most training code for several tasks. So both heads
run on both streams, forward and backward. `Loop(..., both=False)` is the same with a backward pass through the head that has labels alone.

`copy_weights(ours, naive)` carries the weights of a `JointSeg` over, so that the two can be compared number by number;
`named_as_ours(naive, ours)` gives the naive network's gradients under the names and in the shapes of ours.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def conv_bn(i, o, kernel, stride=1, relu=True):
    "Convolution, batch norm, and perhaps ReLU."
    kh, kw = kernel
    layers = [nn.Conv2d(i, o, kernel, stride, (kh // 2, kw // 2), bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class Block(nn.Module):
    "Residual inception block: Fig. 2, or Fig. 3 where `factorised`."
    def __init__(self, i, o, factorised=False):
        super().__init__()
        b, r = max(16, o // 4), max(16, o // 8)

        def square(i, o, k, relu=True):
            if not factorised: return conv_bn(i, o, (k, k), relu=relu)
            return nn.Sequential(conv_bn(i, o, (1, k)), conv_bn(o, o, (k, 1), relu=relu))

        self.one = conv_bn(i, b, (1, 1))
        self.three = nn.Sequential(conv_bn(i, b, (1, 1)), square(b, b, 3))
        self.five = nn.Sequential(conv_bn(i, r, (1, 1)), square(r, b, 5))
        self.pooled = nn.Sequential(conv_bn(i, b, (1, 1)), nn.MaxPool2d(3, 1, 1), conv_bn(b, b, (1, 1)))
        self.aggregate = square(4 * b, o, 3, relu=False)
        self.shortcut = conv_bn(i, o, (1, 1), relu=False)

    def forward(self, x):
        y = torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)
        return F.relu(self.aggregate(y) + self.shortcut(x))


class Naive(nn.Module):
    "Encoder M, classifier C and decoder S with partial attention gates (Fig. 4 and 5, Eq. 3). Both heads, always."
    def __init__(self, n_labels=5, n_classes=7, widths=(32, 64, 128, 256), c_width=512, blocks=2, stem_stride=2):
        super().__init__()
        def cascade(o, factorised=False): return nn.Sequential(*[Block(o, o, factorised) for _ in range(blocks)])

        self.down, self.level = nn.ModuleList(), nn.ModuleList()
        i, stride, strides = 3, stem_stride, []
        for k, o in enumerate(widths):
            self.down.append(conv_bn(i, o, (3, 3), stem_stride if k == 0 else 2))
            self.level.append(cascade(o))
            strides.append(stride)
            i, stride = o, stride * 2
        self.c_down, self.c_level = conv_bn(i, c_width, (3, 3), 2), cascade(c_width, factorised=True)
        self.c_head = nn.Linear(c_width, n_labels)

        self.up, self.gate, self.ratios = nn.ModuleList(), nn.ModuleList(), []
        outs = [*reversed(widths[:-1]), max(16, widths[0] // 2)]
        at = strides[-1] // 2
        for o in outs:
            if at < 1: break
            ratios = [at // e for e in strides]                          # a_i of Eq. 3
            self.ratios.append(ratios)
            self.up.append(nn.ConvTranspose2d(i, o, 2, 2))
            self.gate.append(conv_bn(o + sum(w for w, a in zip(widths, ratios) if a >= 1), o, (3, 3)))
            i, at = o, at // 2
        self.s_head = nn.Conv2d(i, n_classes, 1)

    def forward(self, x):
        maps = []
        for down, level in zip(self.down, self.level):
            x = level(down(x))
            maps.append(x)
        label = self.c_head(self.c_level(self.c_down(x)).mean(dim=(2, 3)))
        for up, gate, ratios in zip(self.up, self.gate, self.ratios):
            seen = [e if a == 1 else F.max_pool2d(e, a, a) for e, a in zip(maps, ratios) if a >= 1]
            x = gate(torch.cat([up(x), *seen], dim=1))
        return label, self.s_head(x)

    def shared(self): return [*self.down.parameters(), *self.level.parameters()]
    def of_classifier(self): return [*self.c_down.parameters(), *self.c_level.parameters(), *self.c_head.parameters()]
    def of_segmenter(self): return [*self.up.parameters(), *self.gate.parameters(), *self.s_head.parameters()]


def clf_loss(label, y):
    "Cross entropy over the graded images; 0 where none is."
    return F.cross_entropy(label, y, ignore_index=-1, reduction='sum') / (y != -1).sum().clamp(min=1)


def seg_loss(mask, m):
    "Cross entropy over the known pixels; 0 where none is."
    return F.cross_entropy(mask, m, ignore_index=255, reduction='sum') / (m != 255).sum().clamp(min=1)


class Loop:
    "Two optimisers, one after the other, on two streams (Eq. 2)."
    def __init__(self, net, lr=0.01, ratio=30., momentum=0.9, weight_decay=5e-4, both=True):
        self.net, self.both = net, both
        def sgd(private, rate):
            groups = [dict(params=[p for p in net.shared() + private if p.ndim > 1], weight_decay=weight_decay),
                      dict(params=[p for p in net.shared() + private if p.ndim == 1])]
            return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True)
        self.clf_opt, self.seg_opt = sgd(net.of_classifier(), ratio * lr), sgd(net.of_segmenter(), lr)

    def losses(self, x, y=None, m=None):
        "Both losses of one batch; grades y or masks m may be unknown."
        label, mask = self.net(x)
        y = torch.full((len(x),), -1, device=x.device) if y is None else y
        m = torch.full((len(x), *x.shape[2:]), 255, device=x.device) if m is None else m
        if self.both: return clf_loss(label, y), seg_loss(mask, m)
        return (clf_loss(label, y), 0.) if (m == 255).all() else (0., seg_loss(mask, m))

    def step(self, x_clf, y_clf, x_seg, m_seg):
        "One step of each agent: their losses."
        done = []
        for opt, x, y, m in ((self.clf_opt, x_clf, y_clf, None), (self.seg_opt, x_seg, None, m_seg)):
            self.net.zero_grad()
            clf, seg = self.losses(x, y, m)
            (clf + seg).backward()
            opt.step()
            done.append((clf if m is None else seg).item())
        return done


def module_pairs(naive, ours):
    "(the naive modules, our module that does their work): several naive ones where ours computes them in one convolution."
    def conv(n, o): yield [n[0]], o[0]; yield [n[1]], o[1]
    def square(n, o):
        if isinstance(n[0], nn.Conv2d): yield from conv(n, o)
        else:
            for a, b in zip(n, o): yield from conv(a, b)
    def block(n, o):
        firsts = [n.one, n.three[0], n.five[0], n.pooled[0]]
        yield [f[0] for f in firsts], o.reduce[0]
        yield [f[1] for f in firsts], o.reduce[1]
        yield from square(n.three[1], o.conv3)
        yield from square(n.five[1], o.conv5)
        yield from conv(n.pooled[2], o.after_pool)
        yield from square(n.aggregate, o.aggregate)
        yield from conv(n.shortcut, o.shortcut)
    M, C, S = ours.encoder, ours.classifier, ours.decoder
    for n, o in [*zip(naive.down, M.downs), (naive.c_down, C.down), *zip(naive.gate, (g.conv for g in S.gates))]: yield from conv(n, o)
    for n, o in [*zip(naive.level, M.levels), (naive.c_level, C.blocks)]:
        for a, b in zip(n, o): yield from block(a, b)
    for n, o in [(naive.c_head, C.head), *zip(naive.up, S.ups), (naive.s_head, S.head)]: yield [n], o


def copy_weights(ours, naive):
    "The weights, and running statistics, of a JointSeg (size 'base' and the like, norm 'batch', attention 'concat') into the naive network."
    for several, one in module_pairs(naive, ours):
        for name, value in one.state_dict().items():
            if name == 'num_batches_tracked': continue
            parts = value.split([len(getattr(n, name)) for n in several])
            for n, part in zip(several, parts): getattr(n, name).data.copy_(part)
    return naive


def named_as_ours(naive, ours, what=lambda p: p.grad):
    "`what` of the naive parameters (their gradients), as {our name: tensor of our shape}; None where the naive one has none."
    names, got = {id(p): k for k, p in ours.named_parameters()}, {}
    for several, one in module_pairs(naive, ours):
        for name, p in one.named_parameters():
            parts = [what(getattr(n, name)) for n in several]
            got[names[id(p)]] = None if any(v is None for v in parts) else torch.cat(parts)
    return got
