"""Every network as ONNX: ONNX Runtime gives the same logits, and so does reading it back."""

import numpy as np
import pytest

import minidl
import minidl.onnx
from architectures import alexnet, googlenet, lenet, nin, resnet, vgg, zfnet
from minidl import Tensor, no_grad

onnxruntime = pytest.importorskip("onnxruntime")

SMALL = 1 / 8
NETWORKS = {
    "lenet": (lenet.build, (1, 32, 32)),
    "lenet, 1998": (lambda: lenet.build(variant="1998"), (1, 32, 32)),
    "alexnet, two towers": (lambda: alexnet.AlexNet(10, width=SMALL), (3, 227, 227)),
    "alexnet, one tower": (lambda: alexnet.AlexNet(10, towers=1, width=SMALL), (3, 180, 240)),
    "zfnet": (lambda: zfnet.ZFNet(10, scale=SMALL), (3, 224, 224)),
    "vgg": (lambda: vgg.VGG("D", 10, width=SMALL, grid=2), (3, 64, 64)),
    "vgg, lrn": (lambda: vgg.VGG("A-LRN", 10, width=SMALL, grid=2), (3, 64, 64)),
    "vgg, normalised": (lambda: vgg.VGG("C", 10, True, width=SMALL, grid=2), (3, 64, 64)),
    "googlenet": (lambda: googlenet.GoogLeNet(10, width=SMALL), (3, 224, 224)),
    "googlenet, public": (
        lambda: googlenet.GoogLeNet(10, batch_norm=True, width=SMALL), (3, 96, 96),
    ),
    "googlenet, naive": (lambda: googlenet.GoogLeNet(10, naive=True, width=SMALL), (3, 224, 224)),
    "resnet": (lambda: resnet.ResNet(18, 10, width=SMALL), (3, 64, 64)),
    "resnet, bottlenecks": (lambda: resnet.ResNet(50, 10, "1.5", width=SMALL), (3, 64, 64)),
    "resnet, zero-padded": (lambda: resnet.ResNet(20, 10), (3, 32, 32)),
    "resnet, pre-activated": (lambda: resnet.ResNet(20, 10, "2"), (3, 32, 32)),
    "nin": (lambda: nin.NIN(10, width=SMALL), (3, 32, 32)),
}  # fmt: skip


def logits(model, x):
    with no_grad():
        return model(Tensor(x)).numpy()


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_runtime_agrees(name, tmp_path):
    build, shape = NETWORKS[name]
    minidl.manual_seed(0)
    model = build()
    for buffer_name, buffer in model.named_buffers():
        if "running" in buffer_name:  # statistics other than a fresh network's 0 and 1
            buffer.copy_(np.random.default_rng(1).uniform(0.5, 1.5, buffer.shape))
    path = tmp_path / "network.onnx"
    minidl.onnx.export(model, path, shape)
    assert model.training
    model.eval()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    again = minidl.onnx.load(path)
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)
        expected = logits(model, x)
        (theirs,) = session.run(None, {session.get_inputs()[0].name: x})
        close(theirs, expected)
        close(logits(again, x), expected)
