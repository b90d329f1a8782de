"""Every network against its paper's table: parameters, output shapes, multiply-adds."""

import pytest

from architectures import alexnet, googlenet, nin, resnet, vgg, zfnet
from minidl.summary import summary

# What stands in the tables, layer by layer: (output shape, parameters, multiply-adds).
FULLY_CONNECTED = {
    "fc6": ((4096,), 37_752_832, 37_748_736),
    "fc7": ((4096,), 16_781_312, 16_777_216),
    "fc8": ((1000,), 4_097_000, 4_096_000),
}
ALEXNET_TWO_TOWERS = {
    "conv1": ((96, 55, 55), 34_944, 105_415_200),
    "pool1": ((96, 27, 27), 0, 0),
    "conv2": ((256, 27, 27), 307_456, 223_948_800),
    "pool2": ((256, 13, 13), 0, 0),
    "conv3": ((384, 13, 13), 885_120, 149_520_384),
    "conv4": ((384, 13, 13), 663_936, 112_140_288),
    "conv5": ((256, 13, 13), 442_624, 74_760_192),
    "pool5": ((256, 6, 6), 0, 0),
    **FULLY_CONNECTED,
}
ALEXNET_ONE_TOWER = {
    "conv1": ((64, 55, 55), 23_296, 70_276_800),
    "pool1": ((64, 27, 27), 0, 0),
    "conv2": ((192, 27, 27), 307_392, 223_948_800),
    "pool2": ((192, 13, 13), 0, 0),
    "conv3": ((384, 13, 13), 663_936, 112_140_288),
    "conv4": ((256, 13, 13), 884_992, 149_520_384),
    "conv5": ((256, 13, 13), 590_080, 99_680_256),
    "pool5": ((256, 6, 6), 0, 0),
    **FULLY_CONNECTED,
}
ZFNET = {
    "conv1": ((96, 110, 110), 14_208, 170_755_200),
    "pool1": ((96, 55, 55), 0, 0),
    "conv2": ((256, 26, 26), 614_656, 415_334_400),
    "pool2": ((256, 13, 13), 0, 0),
    "conv3": ((384, 13, 13), 885_120, 149_520_384),
    "conv4": ((384, 13, 13), 1_327_488, 224_280_576),
    "conv5": ((256, 13, 13), 884_992, 149_520_384),
    "pool5": ((256, 6, 6), 0, 0),
    **FULLY_CONNECTED,
}
ZFNET_WIDE = {
    **ZFNET,
    "conv3": ((512, 13, 13), 1_180_160, 199_360_512),
    "conv4": ((1024, 13, 13), 4_719_616, 797_442_048),
    "conv5": ((512, 13, 13), 4_719_104, 797_442_048),
    "pool5": ((512, 6, 6), 0, 0),
    "fc6": ((4096,), 75_501_568, 75_497_472),
}
NIN = {
    "mlpconv1.conv": ((192, 32, 32), 14_592, 14_745_600),
    "mlpconv1.mlp1": ((160, 32, 32), 30_880, 31_457_280),
    "mlpconv1.mlp2": ((96, 32, 32), 15_456, 15_728_640),
    "pool1": ((96, 16, 16), 0, 0),
    "mlpconv2.conv": ((192, 16, 16), 460_992, 117_964_800),
    "mlpconv2.mlp1": ((192, 16, 16), 37_056, 9_437_184),
    "mlpconv2.mlp2": ((192, 16, 16), 37_056, 9_437_184),
    "pool2": ((192, 8, 8), 0, 0),
    "mlpconv3.conv": ((192, 8, 8), 331_968, 21_233_664),
    "mlpconv3.mlp1": ((192, 8, 8), 37_056, 2_359_296),
    "mlpconv3.mlp2": ((10, 8, 8), 1_930, 122_880),
    "avgpool": ((10, 1, 1), 0, 0),
}
TABLES = {
    "alexnet, two towers": (alexnet.AlexNet, (3, 227, 227), 60_965_224, ALEXNET_TWO_TOWERS),
    "alexnet, one tower": (
        lambda: alexnet.AlexNet(towers=1), (3, 224, 224), 61_100_840, ALEXNET_ONE_TOWER,
    ),
    "zfnet": (zfnet.ZFNet, (3, 224, 224), 62_357_608, ZFNET),
    "zfnet, wide": (
        lambda: zfnet.ZFNet(width="wide"), (3, 224, 224), 107_627_624, ZFNET_WIDE,
    ),
    "nin": (nin.NIN, (3, 32, 32), 966_986, NIN),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_layer_by_layer(name):
    build, shape, parameters, expected = TABLES[name]
    table = summary(build(), shape)
    rows = {row.name: row for row in table.rows}
    got = {layer: (rows[layer].output_shape, rows[layer].parameters, rows[layer].multiply_adds)
           for layer in expected}  # fmt: skip
    assert got == expected
    assert table.parameters == table.trainable_parameters == parameters
    assert table.multiply_adds == sum(multiply_adds for _, _, multiply_adds in expected.values())


@pytest.mark.parametrize(
    ("config", "parameters", "giga"),
    [
        ("A", 132_863_336, 7.609), ("A-LRN", 132_863_336, 7.609), ("B", 133_047_848, 11.308),
        ("C", 133_638_952, 11.771), ("D", 138_357_544, 15.470), ("E", 143_667_240, 19.632),
    ],
)  # fmt: skip
def test_vgg(config, parameters, giga):
    table = summary(vgg.VGG(config), (3, 224, 224))
    assert table.parameters == parameters
    assert round(table.multiply_adds / 1e9, 3) == giga
    pools = [row.output_shape for row in table.rows if row.kind == "MaxPool2d"]
    assert pools == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    layers = [row for row in table.rows if row.kind in ("Conv2d", "Linear")]
    assert len(layers) == {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}[config]
    for row in layers[:-3]:  # 3x3 convolutions keep the size
        assert row.output_shape[1:] in [(224 >> i,) * 2 for i in range(5)]


INCEPTIONS = {
    "3a": ((256, 28, 28), 163_696, 128_049_152),
    "3b": ((480, 28, 28), 388_736, 304_267_264),
    "4a": ((512, 14, 14), 376_176, 73_608_192),
    "4b": ((512, 14, 14), 449_160, 87_908_352),
    "4c": ((512, 14, 14), 510_104, 99_850_240),
    "4d": ((528, 14, 14), 605_376, 118_515_712),
    "4e": ((832, 14, 14), 868_352, 169_996_288),
    "5a": ((832, 7, 7), 1_043_456, 51_079_168),
    "5b": ((1024, 7, 7), 1_444_080, 70_697_984),
}


def test_googlenet_module_by_module():
    model = googlenet.GoogLeNet(auxiliary=False)
    shapes = {}
    for name in INCEPTIONS:
        def record(layer, inputs, outputs, name=name):
            shapes[name] = outputs.shape[1:]

        getattr(model, f"inception{name}").register_forward_hook(record)
    table = summary(model, (3, 224, 224))
    for name, (shape, parameters, multiply_adds) in INCEPTIONS.items():
        rows = [row for row in table.rows if row.name.startswith(f"inception{name}.")]
        assert shapes[name] == shape
        assert sum(row.parameters for row in rows) == parameters
        assert sum(row.multiply_adds for row in rows) == multiply_adds
    stem = {row.name: row.output_shape for row in table.rows}
    assert stem["conv1.conv"] == (64, 112, 112) and stem["pool1"] == (64, 56, 56)
    assert stem["conv3.conv"] == (192, 56, 56) and stem["pool2"] == (192, 28, 28)


@pytest.mark.parametrize(
    ("auxiliary", "batch_norm", "parameters", "giga"),
    [
        (False, False, 6_998_552, 1.583), (True, False, 13_378_280, 1.583),
        (False, True, 6_624_904, 1.498), (True, True, 13_004_888, 1.498),
    ],
)  # fmt: skip
def test_googlenet(auxiliary, batch_norm, parameters, giga):
    model = googlenet.GoogLeNet(auxiliary=auxiliary, batch_norm=batch_norm)
    table = summary(model, (3, 224, 224))
    assert table.parameters == parameters
    assert round(table.multiply_adds / 1e9, 3) == giga


@pytest.mark.parametrize(
    ("depth", "parameters", "version1", "version15"),
    [
        (18, 11_689_512, 1.814, 1.814), (34, 21_797_672, 3.664, 3.664),
        (50, 25_557_032, 3.858, 4.089), (101, 44_549_160, 7.570, 7.801),
        (152, 60_192_808, 11.282, 11.514),
    ],
)  # fmt: skip
def test_resnet(depth, parameters, version1, version15):
    for version, giga in (("1", version1), ("1.5", version15)):
        table = summary(resnet.ResNet(depth, version=version), (3, 224, 224))
        assert table.parameters == parameters
        assert round(table.multiply_adds / 1e9, 3) == giga
    kinds = [row.kind for row in table.rows if "downsample" not in row.name]
    assert kinds.count("Conv2d") + kinds.count("Linear") == depth
    channels = 4 if depth >= 50 else 1
    shapes = [row.output_shape for row in table.rows if row.kind == "BatchNorm2d"]
    for maps, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        assert (maps * channels, side, side) in shapes


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_resnet_for_cifar(depth, parameters):
    table = summary(resnet.ResNet(depth, 10), (3, 32, 32))
    assert table.parameters == parameters
    kinds = [row.kind for row in table.rows]
    assert kinds.count("Conv2d") + kinds.count("Linear") == depth
    shapes = {row.output_shape for row in table.rows if row.kind == "Conv2d"}
    assert shapes == {(16, 32, 32), (32, 16, 16), (64, 8, 8)}
