"""Make README.md from nbs/index.ipynb with nbconvert, so that the front door is written once."""
import re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
source, target = root/'nbs'/'index.ipynb', root/'README.md'
picture = 'images/readme_{cell_index}_{index}{extension}'

def shown(
    cell, # a notebook cell
)->bool:  # whether the README has it
    "Leave out hidden cells."
    return not re.match(r'#\|\s*hide\b', cell.source)

def render()->tuple: # the README's text, and its pictures as file name (in nbs/) to bytes
    "Convert the index notebook; pictures and links are addressed from the project's root."
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    nb = nbformat.read(source, as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}
    nb.cells = [c for c in nb.cells if shown(c)]
    for c in nb.cells: c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
    exporter = MarkdownExporter(config=Config(ExtractOutputPreprocessor=dict(output_filename_template=picture)))
    text, resources = exporter.from_notebook_node(nb)
    text = re.sub(r'\]\((?![a-z]+:|#|/|\.\./)', '](nbs/', text).replace('](../', '](')
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return text, resources.get('outputs') or {}

def main():
    "Write README.md and the pictures it shows."
    text, pictures = render()
    target.write_text(text, encoding='utf-8')
    for old in (source.parent/'images').glob('readme_*'): old.unlink()
    for name, data in pictures.items():
        path = source.parent/name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    print(f'README.md: {len(text)} characters, {len(pictures)} pictures')

if __name__ == '__main__': sys.exit(main())
