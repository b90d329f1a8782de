"""A hook of MkDocs: the networks' pictures are drawn from the live modules as the site is built."""

import tempfile

from mkdocs.structure.files import File

from architectures.diagrams import DIAGRAMS, save_diagram


def on_files(files, config, **_):
    with tempfile.TemporaryDirectory() as folder:
        for name in DIAGRAMS:
            picture = save_diagram(name, folder).read_bytes()
            files.append(File.generated(config, f"networks/{name}.svg", content=picture))
    return files
