"""The networks' pictures on the pages in docs/networks, drawn from the live modules."""

from pathlib import Path

from architectures import alexnet, googlenet, lenet, nin, resnet, vgg, zfnet
from minidl.visualize.diagram import draw

# File name -> network and options, in the paper's size.
DIAGRAMS = {
    "lenet-1998": (lenet.ARCHITECTURE, {"variant": "1998"}),
    "lenet": (lenet.ARCHITECTURE, {}),
    "alexnet": (alexnet.ARCHITECTURE, {}),
    "zfnet": (zfnet.ARCHITECTURE, {}),
    "nin": (nin.ARCHITECTURE, {}),
    "vgg-16": (vgg.ARCHITECTURE, {"config": "D"}),
    "googlenet": (googlenet.ARCHITECTURE, {}),
    "resnet-18": (resnet.ARCHITECTURE, {"depth": 18}),
    "resnet-50": (resnet.ARCHITECTURE, {"depth": 50}),
}


def save_diagram(name: str, directory) -> Path:
    """Draw the entry `name` of DIAGRAMS to ``directory/name.svg``; returns that path.

    Raises KeyError for another name, and what `draw` raises where Graphviz is missing.
    """
    architecture, options = DIAGRAMS[name]
    classes = architecture.num_classes(**options)
    model = architecture.build(num_classes=classes, **options)
    path = Path(directory) / f"{name}.svg"
    draw(model, architecture.input_shape(**options), path)
    return path
