"""Every network in its small form learns sixteen real digits by heart, in float32."""

import numpy as np
import pytest

import minidl
from architectures import alexnet, googlenet, nin, resnet, vgg, zfnet
from minidl import Tensor, data, evaluation, optim

NETWORKS = {
    "alexnet": (alexnet, {}),
    "alexnet, one tower": (alexnet, {"towers": 1}),
    "zfnet": (zfnet, {}),
    "zfnet, wide": (zfnet, {"width": "wide"}),
    "vgg": (vgg, {"config": "D"}),
    "vgg, normalised": (vgg, {"config": "E", "batch_norm": True}),
    "googlenet": (googlenet, {}),
    "googlenet, normalised": (googlenet, {"batch_norm": True}),
    "resnet": (resnet, {}),
    "resnet, bottlenecks": (resnet, {"depth": 50, "version": "1.5"}),
    "resnet, pre-activated": (resnet, {"depth": 20, "version": "2"}),
    "nin": (nin, {}),
}
MOST_STEPS = 400


@pytest.mark.parametrize("name", NETWORKS)
def test_overfits_sixteen_digits(name):
    network, options = NETWORKS[name]
    minidl.manual_seed(0)
    model = network.build(10, full=False, **options)
    recipe = network.recipe(full=False, **options)
    digits, _ = data.bundled_digits()
    pixels, labels = digits.batch(np.arange(0, 4000, 250))
    assert len(set(labels)) == 10
    images = recipe.eval_transform(pixels, None)
    optimizer = optim.Adam(model.parameters(), 1e-3)
    for step in range(1, MOST_STEPS + 1):
        optimizer.zero_grad()
        recipe.loss(model, model(Tensor(images)), labels).backward()
        optimizer.step()
        if step % 10 == 0:
            chances = evaluation.probabilities(model, images, recipe.scores)
            if (chances.argmax(axis=1) == labels).all():
                break
    assert chances.dtype == np.float32
    assert (chances.argmax(axis=1) == labels).all()
