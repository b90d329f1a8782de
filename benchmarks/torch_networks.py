"""The networks in PyTorch, written from the papers and the layout of public weights alone.

Tests compare results with theirs, benchmarks speed. Where public weights exist the modules bear the
names that their state dicts have. `width` scales the maps and hidden units, which must come out
whole. Needs torch: import it where torch is known to be there.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F


def thin(maps: int, width: float) -> int:
    """`maps` times `width`, which must be whole."""
    result = maps * width
    assert result == int(result), f"{maps} maps times {width}"
    return int(result)


def paper_lrn() -> nn.LocalResponseNorm:
    """k = 2, n = 5, alpha = 1e-4, beta = 0.75; torch divides alpha by n, the paper does not."""
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)


# -- LeNet-5 ---------------------------------------------------------------------------------------


def lenet(classes=10):
    """The modern form, of images of 32x32."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


# -- AlexNet, ZFNet --------------------------------------------------------------------------------


class AlexNetOneTower(nn.Module):
    """The form of public weights; its dropouts stand before fc6 and fc7."""

    def __init__(self, classes=1000, width=1.0, dropout=0.5, grid=6):
        super().__init__()
        a, b, c, d, e, h = (thin(maps, width) for maps in (64, 192, 384, 256, 256, 4096))
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
            nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d((grid, grid))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(e * grid * grid, h), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(h, h), nn.ReLU(),
            nn.Linear(h, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class TowerLRN(nn.Module):
    """`paper_lrn` on each half of the maps."""

    def __init__(self):
        super().__init__()
        self.lrn = paper_lrn()

    def forward(self, x):
        return self.lrn(x.unflatten(1, (2, -1)).flatten(0, 1)).view_as(x)


def alexnet_two_towers(classes=1000, width=1.0, dropout=0.5, grid=6):
    """The paper's network: conv2, conv4 and conv5 see half of the maps each."""
    a, b, c, d, e, h = (thin(maps, width) for maps in (96, 256, 384, 384, 256, 4096))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, a, 11, stride=4), r1=nn.ReLU(), n1=TowerLRN(),
            p1=nn.MaxPool2d(3, 2),
            conv2=nn.Conv2d(a, b, 5, padding=2, groups=2), r2=nn.ReLU(), n2=TowerLRN(),
            p2=nn.MaxPool2d(3, 2),
            conv3=nn.Conv2d(b, c, 3, padding=1), r3=nn.ReLU(),
            conv4=nn.Conv2d(c, d, 3, padding=1, groups=2), r4=nn.ReLU(),
            conv5=nn.Conv2d(d, e, 3, padding=1, groups=2), r5=nn.ReLU(), p5=nn.MaxPool2d(3, 2),
            **fully_connected(e * grid * grid, h, classes, dropout),
        )
    )  # fmt: skip


def zfnet(classes=1000, width=1.0, dropout=0.5, grid=6, wide=False):
    """The paper's figure 3, or with 512, 1024 and 512 maps; the norms follow the pools."""
    maps = (96, 256, 512, 1024, 512, 4096) if wide else (96, 256, 384, 384, 256, 4096)
    a, b, c, d, e, h = (thin(count, width) for count in maps)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, a, 7, stride=2, padding=1), r1=nn.ReLU(),
            p1=nn.MaxPool2d(3, 2, ceil_mode=True), n1=paper_lrn(),
            conv2=nn.Conv2d(a, b, 5, stride=2), r2=nn.ReLU(),
            p2=nn.MaxPool2d(3, 2, ceil_mode=True), n2=paper_lrn(),
            conv3=nn.Conv2d(b, c, 3, padding=1), r3=nn.ReLU(),
            conv4=nn.Conv2d(c, d, 3, padding=1), r4=nn.ReLU(),
            conv5=nn.Conv2d(d, e, 3, padding=1), r5=nn.ReLU(), p5=nn.MaxPool2d(3, 2),
            **fully_connected(e * grid * grid, h, classes, dropout),
        )
    )  # fmt: skip


def fully_connected(features, hidden, classes, dropout):
    """fc6 to fc8, dropout behind the first two."""
    return OrderedDict(
        flat=nn.Flatten(),
        fc6=nn.Linear(features, hidden), r6=nn.ReLU(), drop6=nn.Dropout(dropout),
        fc7=nn.Linear(hidden, hidden), r7=nn.ReLU(), drop7=nn.Dropout(dropout),
        fc8=nn.Linear(hidden, classes),
    )  # fmt: skip


# -- VGG -------------------------------------------------------------------------------------------

# Convolutions a stage; "n" stands for response normalisation, 1 for a kernel of 1x1.
VGG_STAGES = {
    "A": ("3", "3", "33", "33", "33"),
    "A-LRN": ("3n", "3", "33", "33", "33"),
    "B": ("33", "33", "33", "33", "33"),
    "C": ("33", "33", "331", "331", "331"),
    "D": ("33", "33", "333", "333", "333"),
    "E": ("33", "33", "3333", "3333", "3333"),
}


class VGG(nn.Module):
    """Table 1 of the paper under the names of public weights."""

    def __init__(self, config, classes=1000, width=1.0, dropout=0.5, grid=7, batch_norm=False):
        super().__init__()
        layers, before = [], 3
        for stage, maps in zip(VGG_STAGES[config], (64, 128, 256, 512, 512), strict=True):
            after = thin(maps, width)
            for kind in stage:
                if kind == "n":
                    layers.append(paper_lrn())
                    continue
                layers.append(nn.Conv2d(before, after, int(kind), padding="same"))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(after))
                layers.append(nn.ReLU())
                before = after
            layers.append(nn.MaxPool2d(2, 2))
        hidden = thin(4096, width)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((grid, grid))
        self.classifier = nn.Sequential(
            nn.Linear(before * grid * grid, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


# -- GoogLeNet -------------------------------------------------------------------------------------


class BasicConv(nn.Module):
    """Convolution with bias, or without and batch-normalised; ReLU."""

    def __init__(self, before, after, kernel, batch_norm, **settings):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, bias=not batch_norm, **settings)
        if batch_norm:
            self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x):
        x = self.conv(x)
        return F.relu(self.bn(x) if hasattr(self, "bn") else x)


class InceptionModule(nn.Module):
    """Figure 2b of the paper, or figure 2a (`naive`); public weights have 3x3 for the 5x5."""

    def __init__(self, before, width, n1, r3, n3, r5, n5, pooled, batch_norm, naive):
        super().__init__()
        n1, r3, n3, r5, n5, pooled = (thin(m, width) for m in (n1, r3, n3, r5, n5, pooled))
        large = {"kernel": 3, "padding": 1} if batch_norm else {"kernel": 5, "padding": 2}
        small = {"kernel": 3, "padding": 1}
        bn = {"batch_norm": batch_norm}
        pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.branch1 = BasicConv(before, n1, 1, **bn)
        if naive:
            self.branch2 = BasicConv(before, n3, **small, **bn)
            self.branch3 = BasicConv(before, n5, **large, **bn)
            self.branch4 = pool
            self.after = n1 + n3 + n5 + before
            return
        self.branch2 = nn.Sequential(
            BasicConv(before, r3, 1, **bn), BasicConv(r3, n3, **small, **bn)
        )
        self.branch3 = nn.Sequential(
            BasicConv(before, r5, 1, **bn), BasicConv(r5, n5, **large, **bn)
        )
        self.branch4 = nn.Sequential(pool, BasicConv(before, pooled, 1, **bn))
        self.after = n1 + n3 + n5 + pooled

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryHead(nn.Module):
    """Average-pool, 1x1 convolution, two fully connected layers (section 5)."""

    def __init__(self, before, classes, width, batch_norm, adaptive, dropout):
        super().__init__()
        maps, hidden = thin(128, width), thin(1024, width)
        self.pool = nn.AdaptiveAvgPool2d((4, 4)) if adaptive else nn.AvgPool2d(5, 3)
        self.conv = BasicConv(before, maps, 1, batch_norm)
        self.fc1 = nn.Linear(16 * maps, hidden)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x):
        x = torch.flatten(self.conv(self.pool(x)), 1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    """Table 1 of the paper; in training the auxiliary logits come out behind the main ones."""

    def __init__(
        self, classes=1000, width=1.0, dropout=0.4, aux_dropout=0.7, batch_norm=False, naive=False,
        auxiliary=True, adaptive=False,
    ):  # fmt: skip
        super().__init__()
        a, b = thin(64, width), thin(192, width)
        form = {"batch_norm": batch_norm, "naive": naive}
        self.batch_norm, self.auxiliary = batch_norm, auxiliary
        self.conv1 = BasicConv(3, a, 7, batch_norm, stride=2, padding=3)
        self.conv2 = BasicConv(a, a, 1, batch_norm)
        self.conv3 = BasicConv(a, b, 3, batch_norm, padding=1)
        self.lrn = paper_lrn()

        head = (classes, width, batch_norm, adaptive or batch_norm, aux_dropout)
        self.inception3a = InceptionModule(b, width, 64, 96, 128, 16, 32, 32, **form)
        before = self.inception3a.after
        self.inception3b = InceptionModule(before, width, 128, 128, 192, 32, 96, 64, **form)
        before = self.inception3b.after
        self.inception4a = InceptionModule(before, width, 192, 96, 208, 16, 48, 64, **form)
        before = self.inception4a.after
        if auxiliary:
            self.aux1 = AuxiliaryHead(before, *head)
        self.inception4b = InceptionModule(before, width, 160, 112, 224, 24, 64, 64, **form)
        before = self.inception4b.after
        self.inception4c = InceptionModule(before, width, 128, 128, 256, 24, 64, 64, **form)
        before = self.inception4c.after
        self.inception4d = InceptionModule(before, width, 112, 144, 288, 32, 64, 64, **form)
        before = self.inception4d.after
        if auxiliary:
            self.aux2 = AuxiliaryHead(before, *head)
        self.inception4e = InceptionModule(before, width, 256, 160, 320, 32, 128, 128, **form)
        before = self.inception4e.after
        self.inception5a = InceptionModule(before, width, 256, 160, 320, 32, 128, 128, **form)
        before = self.inception5a.after
        self.inception5b = InceptionModule(before, width, 384, 192, 384, 48, 128, 128, **form)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.inception5b.after, classes)

    def norm(self, x):
        return x if self.batch_norm else self.lrn(x)

    def forward(self, x):
        x = self.norm(F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True))
        x = F.max_pool2d(self.norm(self.conv3(self.conv2(x))), 3, 2, ceil_mode=True)
        x = self.inception3b(self.inception3a(x))
        four_a = self.inception4a(F.max_pool2d(x, 3, 2, ceil_mode=True))
        four_d = self.inception4d(self.inception4c(self.inception4b(four_a)))
        # Public weights were trained with a window of 2x2 here.
        x = F.max_pool2d(self.inception4e(four_d), 2 if self.batch_norm else 3, 2, ceil_mode=True)
        x = self.inception5b(self.inception5a(x)).mean((2, 3))
        logits = self.fc(self.dropout(x))
        if self.training and self.auxiliary:
            return logits, self.aux1(four_a), self.aux2(four_d)
        return logits


# -- ResNet ----------------------------------------------------------------------------------------


class PadShortcut(nn.Module):
    """Option A: subsampling, and zeros for new channels."""

    def __init__(self, more, stride):
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x):
        x = F.avg_pool2d(x, 1, self.stride)
        n, _, h, w = x.shape
        return torch.cat([x, x.new_zeros(n, self.more, h, w)], 1)


def conv(before, after, kernel, stride=1):
    """A convolution without bias that keeps the size, or divides it by `stride`."""
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(option, before, after, stride, norm):
    """None where the block's input is just added."""
    same = stride == 1 and before == after
    if option == "C" or (option == "B" and not same):
        projection = conv(before, after, 1, stride)
        return nn.Sequential(projection, nn.BatchNorm2d(after)) if norm else (
            nn.Sequential(projection)
        )  # fmt: skip
    return None if same else PadShortcut(after - before, stride)


class BasicBlock(nn.Module):
    def __init__(self, before, maps, stride, version, option):
        super().__init__()
        self.conv1, self.bn1 = conv(before, maps, 3, stride), nn.BatchNorm2d(maps)
        self.conv2, self.bn2 = conv(maps, maps, 3), nn.BatchNorm2d(maps)
        self.downsample = shortcut(option, before, maps, stride, norm=True)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class Bottleneck(nn.Module):
    def __init__(self, before, maps, stride, version, option):
        super().__init__()
        strides = {"1": (stride, 1), "1.5": (1, stride)}[version]
        self.conv1, self.bn1 = conv(before, maps, 1, strides[0]), nn.BatchNorm2d(maps)
        self.conv2, self.bn2 = conv(maps, maps, 3, strides[1]), nn.BatchNorm2d(maps)
        self.conv3, self.bn3 = conv(maps, 4 * maps, 1), nn.BatchNorm2d(4 * maps)
        self.downsample = shortcut(option, before, 4 * maps, stride, norm=True)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class PreActivated(nn.Module):
    """A block of version 2, of two or three convolutions; `opened`: the input is activated."""

    def __init__(self, convolutions, stride, option, opened):
        super().__init__()
        before, after = convolutions[0].in_channels, convolutions[-1].out_channels
        self.count, self.opened = len(convolutions), opened
        for number, layer in enumerate(convolutions, 1):
            self.add_module(f"conv{number}", layer)
            if number > 1 or not opened:
                self.add_module(f"bn{number}", nn.BatchNorm2d(layer.in_channels))
        self.downsample = shortcut(option, before, after, stride, norm=False)

    def forward(self, x):
        if not self.opened:
            activated = F.relu(self.bn1(x))
        else:
            activated = x
        y = self.conv1(activated)
        y = self.conv2(F.relu(self.bn2(y)))
        if self.count == 3:
            y = self.conv3(F.relu(self.bn3(y)))
        return y + (self.downsample(activated) if self.downsample else x)


def preact_basic(before, maps, stride, option, opened):
    return PreActivated(
        [conv(before, maps, 3, stride), conv(maps, maps, 3)], stride, option, opened
    )


def preact_bottleneck(before, maps, stride, option, opened):
    layers = [conv(before, maps, 1), conv(maps, maps, 3, stride), conv(maps, 4 * maps, 1)]
    return PreActivated(layers, stride, option, opened)


RESNETS = {
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
    20: (3, 3, 3), 32: (5, 5, 5), 44: (7, 7, 7), 56: (9, 9, 9), 110: (18, 18, 18),
}  # fmt: skip


class ResNet(nn.Module):
    """ImageNet's networks (four stages) and CIFAR's (three), versions 1, 1.5 and 2."""

    def __init__(self, depth, classes=1000, version="1.5", option="B", width=1.0):
        super().__init__()
        counts = RESNETS[depth]
        cifar = len(counts) == 3
        large = depth in (50, 101, 152)
        maps = thin(16 if cifar else 64, width)
        self.conv1 = conv(3, maps, 3) if cifar else conv(3, maps, 7, 2)
        self.bn1 = nn.BatchNorm2d(maps)
        self.pool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, padding=1)
        before, opened = maps, True
        for stage, count in enumerate(counts, 1):
            layers = []
            for stride in [1 if stage == 1 else 2] + [1] * (count - 1):
                if version == "2":
                    make = preact_bottleneck if large else preact_basic
                    layers.append(make(before, maps, stride, option, opened))
                else:
                    make = Bottleneck if large else BasicBlock
                    layers.append(make(before, maps, stride, version, option))
                before, opened = maps * (4 if large else 1), False
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            maps *= 2
        self.stages = len(counts)
        if version == "2":
            self.bn_last = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before, classes)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        if hasattr(self, "bn_last"):
            x = F.relu(self.bn_last(x))
        return self.fc(x.mean((2, 3)))


# -- Network in Network ----------------------------------------------------------------------------


def nin(classes=10, width=1.0, dropout=0.5):
    """The network for CIFAR: the classes are the last maps, averaged."""

    def mlpconv(before, one, two, three, kernel):
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(before, one, kernel, padding="same"), r1=nn.ReLU(),
                mlp1=nn.Conv2d(one, two, 1), r2=nn.ReLU(),
                mlp2=nn.Conv2d(two, three, 1), r3=nn.ReLU(),
            )
        )  # fmt: skip

    a, b, c = (thin(maps, width) for maps in (192, 160, 96))
    return nn.Sequential(
        OrderedDict(
            mlpconv1=mlpconv(3, a, b, c, 5), p1=nn.MaxPool2d(3, 2, ceil_mode=True),
            drop1=nn.Dropout(dropout),
            mlpconv2=mlpconv(c, a, a, a, 5), p2=nn.MaxPool2d(3, 2, ceil_mode=True),
            drop2=nn.Dropout(dropout),
            mlpconv3=mlpconv(a, a, a, classes, 3), p3=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        )
    )  # fmt: skip
