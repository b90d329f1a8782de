"""A network's architecture, drawn from its live module tree: layers, their shapes, how they join.

The network runs once; every layer it calls becomes a block, and an activation, a normalisation or a
dropout behind a layer becomes a line of that block. What is neither, a sum or a concatenation, is a
block of its own. Frames are the modules that contain several blocks.
"""

from dataclasses import dataclass, replace

import numpy as np

from minidl import nn
from minidl.visualize import graph_picture
from minidl.visualize.graph import Graph, Node, capture
from minidl.visualize.observe import as_images

# What changes no shape and computes element by element, or map by map, from one input.
_FOLLOWERS = (
    "ReLU", "BiasReLU", "Tanh", "Sigmoid", "Dropout", "BatchNorm2d", "BatchNormTrain",
    "LocalResponseNorm", "Reshape", "Flatten",
)  # fmt: skip
_FLATTENING = ("Reshape", "Flatten")  # not worth a line: the shape before it tells more
_SHORT = {
    "BatchNormTrain": "batch norm", "BatchNorm2d": "batch norm", "BiasReLU": "ReLU",
    "LocalResponseNorm": "response norm", "Concatenate": "concatenate", "Add": "+",
    "Tanh": "tanh", "Sigmoid": "sigmoid", "Dropout": "dropout", "Linear": "fully connected",
    "GlobalAvgPool2d": "global average pool",
}  # fmt: skip
_COLOURS = (
    ("Conv", "#d6e6fa"), ("Pool", "#fadbe0"), ("Linear", "#d3f0d3"), ("Norm", "#fff3c4"),
)  # fmt: skip
_OTHER = "#eeeeee"


@dataclass(frozen=True)
class Block:
    """A layer with what follows it, or an operation between layers.

    `path`: the modules around it, outermost first; `kind`: class of the layer or operation;
    `lines`: what it is and does; `shape`: of its output, without the images; `sources`: keys of the
    blocks it reads, or "input".
    """

    key: str
    path: tuple[str, ...]
    kind: str
    lines: tuple[str, ...]
    shape: tuple[int, ...]
    sources: tuple[str, ...]


def blocks(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Block]:
    """The blocks of `model` for an image of `input_shape` (C, H, W), each behind its sources.

    The model runs as it stands: in training mode dropout and auxiliary classifiers are seen.
    """
    image = as_images(model, np.zeros((1, *input_shape), np.float32))
    graph = capture(model, image.requires_grad_())
    return _joined(_layers(graph, dict(model.named_modules())))


def _layers(graph: Graph, modules) -> list[Block]:
    """One block a call of a layer, or an operation of no layer."""
    leaves = {name for name, module in modules.items() if name and not module._modules}
    keys, found = {}, {}
    for node in graph.nodes:
        if node.kind != "operation":
            keys[node.number] = "input" if node.kind == "input" else None
            continue
        is_layer = node.module in leaves
        key = f"{node.module}/{node.call}" if is_layer else str(node.number)
        keys[node.number] = key
        sources = [keys[number] for number, _ in node.sources]
        sources = [s for s in dict.fromkeys(sources) if s is not None and s != key]
        layer = modules[node.module] if is_layer else None
        found[key] = _merged(found.get(key), _block(key, node, layer, sources))
    return list(found.values())


def _block(key, node: Node, layer, sources):
    path = tuple(node.module.split(".")) if node.module else ()
    shape = node.outputs[0][0][1:]
    if layer is None:
        return Block(key, path, node.name, (_short(node.name),), shape, tuple(sources))
    kind = type(layer).__name__
    return Block(key, path, kind, (described(layer),), shape, tuple(sources))


def _merged(before, block):
    """A layer's block after another of its operations."""
    if before is None:
        return block
    return replace(block, sources=tuple(dict.fromkeys((*before.sources, *block.sources))))


def described(layer: nn.Module) -> str:
    """What a layer is, in the words of the papers: "3x3 convolution, 64, stride 2"."""
    kind = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        text = f"{_size(layer.kernel_size)} convolution, {layer.out_channels}"
        return _with_stride(text, layer) + (f", groups {layer.groups}" * (layer.groups > 1))
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        what = "max pool" if isinstance(layer, nn.MaxPool2d) else "average pool"
        return _with_stride(f"{_size(layer.kernel_size)} {what}", layer)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return f"average pool to {_size(layer.output_size)}"
    if isinstance(layer, nn.Linear):
        return f"fully connected, {layer.out_features}"
    return _short(kind)


def _short(kind):
    return _SHORT.get(kind, kind)


def _size(pair):
    return "x".join(map(str, pair))


def _with_stride(text, layer):
    return text if layer.stride == (1, 1) else f"{text}, stride {layer.stride[0]}"


def _joined(found: list[Block]) -> list[Block]:
    """The blocks, those that only follow another taken into it."""
    readers = {}
    for block in found:
        for source in block.sources:
            readers[source] = readers.get(source, 0) + 1
    kept, stands_for = {}, {}
    for block in found:
        sources = tuple(stands_for.get(s, s) for s in block.sources)
        block = replace(block, sources=sources)
        before = kept.get(sources[0]) if len(sources) == 1 else None
        follows = before is not None and block.kind in _FOLLOWERS
        if follows and readers[_last(stands_for, before.key)] == 1:
            if block.kind not in _FLATTENING:
                lines = (*before.lines, *block.lines)
                kept[before.key] = replace(before, lines=lines)
            stands_for[block.key] = before.key
        else:
            kept[block.key] = block
    return list(kept.values())


def _last(stands_for, key):
    """The latest of the blocks that went into the block `key`."""
    inside = [inner for inner, outer in stands_for.items() if outer == key]
    return inside[-1] if inside else key


def draw(model: nn.Module, input_shape: tuple[int, int, int], path) -> None:
    """Draw `blocks` to `path`; endings and errors as `graph.render`."""
    found = blocks(model, input_shape)
    source = graph_picture.new_source("architecture")
    titles = {
        tuple(name.split(".")): _title(name, module)
        for name, module in model.named_modules() if name
    }  # fmt: skip
    by_key = {block.key: block for block in found}
    shape = "x".join(map(str, input_shape))
    source.node("input", f"image\n{shape}", shape="ellipse", fillcolor="white")
    graph_picture.add_framed(
        source, {block.key: block.path[:-1] if _is_layer(block) else block.path for block in found},
        titles, lambda frame, key, depth: _add(frame, by_key[key], depth),
    )  # fmt: skip
    for block in found:
        for key in block.sources:
            source.edge(key, block.key)
    graph_picture.save(source, path)


def _is_layer(block):
    return "/" in block.key


def _title(name, module):
    kind = type(module).__name__
    own = name.rpartition(".")[2]
    return own if kind in ("Sequential", "ModuleList") else f"{own}: {kind}"


def _add(frame, block, depth):
    # Of the modules that have no frame the outermost tells most: "conv1", not "conv".
    name = f"{block.path[depth]}: " if _is_layer(block) else ""
    shape = "x".join(map(str, block.shape))
    lines = [name + block.lines[0], *block.lines[1:], shape]
    colour = next((c for part, c in _COLOURS if part in block.kind), _OTHER)
    frame.node(block.key, "\n".join(lines), fillcolor=colour)
