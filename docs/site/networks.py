"""A hook of MkDocs: the networks' pictures are drawn from the live modules as the site is built.

Without Graphviz the pages say how to draw them instead.
"""

import logging
import re
import tempfile

from mkdocs.structure.files import File

from architectures.diagrams import DIAGRAMS, save_diagram

_FOLDER = "networks"
_missing = []  # why there are no pictures, if so


def on_files(files, config, **_):
    _missing.clear()
    with tempfile.TemporaryDirectory() as folder:
        for name in DIAGRAMS:
            try:
                picture = save_diagram(name, folder).read_bytes()
            except (ImportError, RuntimeError) as error:
                _missing.append(str(error))
                logging.getLogger("mkdocs.hooks").info(error)
                break
            files.append(File.generated(config, f"{_FOLDER}/{name}.svg", content=picture))
    return files


def on_page_markdown(markdown, page, **_):
    if not _missing or not page.file.src_uri.startswith(f"{_FOLDER}/"):
        return markdown
    why = f"`python -m architectures draw` draws it. Not done here: {_missing[0]}"
    return re.sub(r"!\[([^\]]+)\]\([^)]+\.svg\)", lambda link: f"*{link[1]}: {why}.*", markdown)
