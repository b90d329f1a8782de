"""Every network's gradients against finite differences in float64.

At reduced width every single entry of every parameter is perturbed; at full width each parameter
and the image go along a random direction. All in training mode: dropout, batch normalisation and
auxiliary classifiers included.
"""

import numpy as np
import pytest

import minidl
from architectures import alexnet, googlenet, nin, resnet, vgg, zfnet
from architectures.common import initialize
from minidl import Tensor
from minidl.gradcheck import gradcheck_module, move_biases

# Millions of units rectify: so small a step crosses the kinks of few of them. In float64 it still
# leaves eight digits of the difference.
SMALL_STEP = 1e-7

# As narrow as they get: (build, image side).
NARROW = {
    "alexnet, two towers": (lambda: alexnet.AlexNet(3, width=1 / 256, grid=1), 67),
    "alexnet, one tower": (lambda: alexnet.AlexNet(3, towers=1, width=1 / 256, grid=1), 63),
    "zfnet": (lambda: zfnet.ZFNet(3, scale=1 / 256, grid=1), 64),
    "vgg": (lambda: vgg.VGG("A-LRN", 3, width=1 / 256, grid=1), 32),
    "vgg, normalised": (lambda: vgg.VGG("A", 3, True, width=1 / 256, grid=1), 64),
    "googlenet": (lambda: googlenet.GoogLeNet(3, width=1 / 512, adaptive=True), 48),
    "resnet": (lambda: resnet.ResNet(20, 3, width=1 / 16), 16),
    "nin": (lambda: nin.NIN(3, width=1 / 128), 16),
}
REDUCED = {
    "googlenet, public": (
        lambda: googlenet.GoogLeNet(10, batch_norm=True, width=1 / 16), 64, 4,
    ),
    "googlenet, naive": (lambda: googlenet.GoogLeNet(10, naive=True, width=1 / 32), 224, 1),
    "resnet, shortcut C": (lambda: resnet.ResNet(18, 10, shortcut="C", width=1 / 8), 64, 4),
    "resnet, bottlenecks": (lambda: resnet.ResNet(50, 10, width=1 / 8), 64, 4),
    "resnet, bottlenecks 1.5": (lambda: resnet.ResNet(50, 10, "1.5", width=1 / 8), 64, 4),
    "resnet, pre-activated": (lambda: resnet.ResNet(50, 10, "2", width=1 / 8), 64, 4),
    "resnet, pre-activated, zeros": (lambda: resnet.ResNet(20, 10, "2"), 32, 2),
    "vgg, normalised": (lambda: vgg.VGG("E", 10, True, width=1 / 8, grid=2), 64, 4),
}  # fmt: skip
FULL = {
    "alexnet, two towers": (alexnet.AlexNet, 227, 1),
    "alexnet, one tower": (lambda: alexnet.AlexNet(towers=1), 224, 1),
    "zfnet": (zfnet.ZFNet, 224, 1),
    # As wide as published, on smaller images.
    "vgg": (lambda: vgg.VGG("A", grid=2), 64, 1),
    "googlenet": (lambda: googlenet.GoogLeNet(adaptive=True), 64, 1),
    "resnet": (resnet.ResNet, 64, 2),
    "nin": (nin.NIN, 32, 2),
}
FULL_AND_SLOW = {
    "vgg-11": (lambda: vgg.VGG("A"), 224, 1),
    "googlenet, whole images": (googlenet.GoogLeNet, 224, 1),
    "resnet-18": (resnet.ResNet, 224, 2),
    "zfnet, wide": (lambda: zfnet.ZFNet(width="wide"), 224, 1),
    "vgg-16": (lambda: vgg.VGG("D"), 224, 1),
    "vgg-19": (lambda: vgg.VGG("E"), 224, 1),
    "googlenet, public": (lambda: googlenet.GoogLeNet(batch_norm=True), 224, 2),
    "resnet-50": (lambda: resnet.ResNet(50), 224, 2),
    "resnet-152": (lambda: resnet.ResNet(152, version="1.5"), 224, 2),
}


def prepared(build, side, batch):
    """A network in float64 whose signal neither fades nor sits on a kink, and an image."""
    minidl.manual_seed(0)
    model = build()
    initialize(model)
    move_biases(model)
    model.to(np.float64)
    draw = np.random.default_rng(0)
    return model, Tensor(draw.standard_normal((batch, 3, side, side)), requires_grad=True)


@pytest.mark.parametrize("name", NARROW)
def test_every_entry_at_reduced_width(name):
    build, side = NARROW[name]
    model, image = prepared(build, side, batch=2)
    gradcheck_module(model, image.detach(), fast=False)


@pytest.mark.parametrize("name", REDUCED)
def test_random_directions_at_reduced_width(name):
    model, image = prepared(*REDUCED[name])
    gradcheck_module(model, image, eps=SMALL_STEP)


@pytest.mark.parametrize(
    "name", [*FULL, *(pytest.param(n, marks=pytest.mark.slow) for n in FULL_AND_SLOW)]
)
def test_random_directions_at_full_width(name):
    model, image = prepared(*{**FULL, **FULL_AND_SLOW}[name])
    gradcheck_module(model, image, eps=SMALL_STEP)
