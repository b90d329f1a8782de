"""Graphs as pictures, by Graphviz: the package graphviz and its program dot."""

from pathlib import Path

from minidl.files import atomic_path
from minidl.table import format_bytes
from minidl.visualize.graph import Graph, Node, array_text

FORMATS = (".svg", ".png", ".pdf")
SOURCES = (".dot", ".gv")
_FONT = {"fontname": "Helvetica", "fontsize": "10"}
_COLOURS = {
    "parameter": "#fde2c8", "input": "#d3f0d3", "buffer": "#f1e7fb", "leaf": "#fde2c8",
    "constant": "#eeeeee",
}  # fmt: skip
_FORWARD, _BACKWARD, _OUTPUT = "#d6e6fa", "#fadbe0", "#2f7d32"


def new_source(name: str):
    """An empty graphviz.Digraph in the house's style. ImportError without the package."""
    try:
        import graphviz
    except ImportError as error:
        raise ImportError(
            "pictures of graphs need the graphviz package: pip install -e '.[graph]'"
        ) from error
    return graphviz.Digraph(
        name,
        graph_attr={"rankdir": "TB", "ranksep": "0.3", "nodesep": "0.25", **_FONT},
        node_attr={"shape": "box", "style": "filled", "color": "#667788", "height": "0.3", **_FONT},
        edge_attr={"color": "#445566", "arrowsize": "0.6", **_FONT},
    )


def save(source, path) -> None:
    """Write a graphviz.Digraph to `path` in the format of its ending, atomically.

    Raises ValueError for another ending than FORMATS or SOURCES, RuntimeError without the program
    dot or where it fails.
    """
    path = Path(path)
    if path.suffix not in FORMATS + SOURCES:
        raise ValueError(f"path must end in {', '.join(FORMATS + SOURCES)}, got {str(path)!r}")
    content = source.source.encode() if path.suffix in SOURCES else _drawn(source, path.suffix[1:])
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _drawn(source, format) -> bytes:
    import graphviz

    try:
        return source.pipe(format=format)
    except graphviz.ExecutableNotFound as error:
        raise RuntimeError(
            "pictures of graphs need Graphviz's program dot (apt install graphviz, "
            "brew install graphviz); without it write a .dot file"
        ) from error
    except graphviz.CalledProcessError as error:
        raise RuntimeError(f"dot could not draw the graph: {error}") from error


def graph_source(graph: Graph):
    """The graphviz.Digraph of a Graph, modules as frames. ImportError without the package."""
    source = new_source("graph")
    places = {node.number: _place(node) for node in graph.nodes}
    titles = {("gradients",): "gradients"}

    def add(frame, number, depth):
        _add(frame, graph.nodes[number], ".".join(places[number][depth:]))

    add_framed(source, places, titles, add)
    for node in graph.nodes:
        for number, index in node.sources:
            several = len(graph.nodes[number].outputs) > 1
            # Heavy edges are straight: what flows through the network, not what joins it.
            weight = "8" if graph.nodes[number].kind == "operation" else "1"
            label = str(index) if several else ""
            source.edge(str(number), str(node.number), label=label, weight=weight)
    for i, (name, (number, _)) in enumerate(graph.outputs.items()):
        source.node(f"output {i}", name, shape="ellipse", color=_OUTPUT, fillcolor="white")
        source.edge(str(number), f"output {i}")
    return source


def _place(node: Node) -> tuple[str, ...]:
    """The frames around a node, outermost first."""
    path = tuple(node.module.split(".")) if node.module else ()
    return ("gradients", *path) if node.backward else path


def _add(frame, node, unframed):
    """Draw a node; `unframed` is what no frame says of its module."""
    is_operation = node.kind == "operation"
    name = f"{unframed}: {node.name}" if is_operation and unframed else node.name
    lines = [name, *(array_text(*output) for output in node.outputs)]
    if node.saved_bytes:
        lines.append(f"keeps {format_bytes(node.saved_bytes)}")
    if is_operation:
        colour, shape = _BACKWARD if node.backward else _FORWARD, "box"
    else:
        colour, shape = _COLOURS[node.kind], "ellipse"
    frame.node(str(node.number), "\n".join(lines), shape=shape, fillcolor=colour)


def add_framed(source, places: dict, titles: dict, add) -> None:
    """Call ``add(frame, key, depth)`` for every key of `places`, in `depth` frames around it.

    `places`: key -> path, a tuple of names. A path, or the beginning of one, becomes a frame where
    it is that of two keys or more; `titles`: path -> what stands above it, otherwise its last name.
    """
    counts = {}
    for path in places.values():
        for depth in range(1, len(path) + 1):
            counts[path[:depth]] = counts.get(path[:depth], 0) + 1
    members, below = {}, {}
    for key, path in places.items():
        while path and counts[path] < 2:
            path = path[:-1]
        members.setdefault(path, []).append(key)
        while path:
            below.setdefault(path[:-1], {})[path] = None
            path = path[:-1]

    def fill(frame, path):
        for key in members.get(path, ()):
            add(frame, key, len(path))
        for inner in below.get(path, ()):
            with frame.subgraph(name="cluster_" + ".".join(inner)) as child:
                child.attr(
                    label=titles.get(inner, inner[-1]), labeljust="l", style="rounded",
                    color="#99aabb",
                )  # fmt: skip
                fill(child, inner)

    fill(source, ())
