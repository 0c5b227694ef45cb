"""The nearest thing in public: segmentation_models_pytorch, a U-Net over ResNet-34 with a classification head, on the same two streams.

Used by `jointseg-bench --peers`. It is an extra of its own (`pip install 'jointseg_nb[bench]'`): nothing of the package needs it.
"""
import sys

import torch
import torch.nn.functional as F


def unet(n_labels=5, n_classes=7):
    "`Unet('resnet34')` with `aux_params`, untrained: masks and grades from one network."
    mend_torchvision()
    import segmentation_models_pytorch as smp
    return smp.Unet('resnet34', encoder_weights=None, classes=n_classes, aux_params=dict(classes=n_labels))


def mend_torchvision():
    """torchvision's wheel cannot load its operators beside a CPU build of torch, and then its import fails where it describes them.

    Nothing here calls them, so it is enough to declare that they exist."""
    global library
    try: import torchvision
    except RuntimeError:
        for name in [m for m in sys.modules if m.split('.')[0] == 'torchvision']: del sys.modules[name]
        library = torch.library.Library('torchvision', 'DEF')
        for name in ('nms', 'qnms'): library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')


class Loop:
    "Two Nesterov SGD optimisers in turn, as users of the library write it; at its `best` channels last and in bfloat16."
    def __init__(self, net, best=False, device='cpu', lr=1e-4):
        self.layout = torch.channels_last if best else torch.contiguous_format
        self.net, self.best, self.device = net.to(device, memory_format=self.layout), best, torch.device(device)
        def sgd(head): return torch.optim.SGD([*net.encoder.parameters(), *head], lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.clf_opt = sgd(net.classification_head.parameters())
        self.seg_opt = sgd([*net.decoder.parameters(), *net.segmentation_head.parameters()])

    def place(self, x): return x.to(self.device, memory_format=self.layout)

    def forward(self, x):
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.best): mask, label = self.net(x)
        return label.float(), mask.float()

    def step(self, x_clf, y_clf, x_seg, m_seg):
        "One step of each agent: their losses."
        done = []
        for opt, x, y, head in ((self.clf_opt, x_clf, y_clf, 0), (self.seg_opt, x_seg, m_seg, 1)):
            self.net.zero_grad()
            loss = F.cross_entropy(self.forward(self.place(x))[head], y, ignore_index=255)
            loss.backward()
            opt.step()
            done.append(loss.item())
        return done
