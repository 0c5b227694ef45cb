"""What every notebook owes its reader, and what is made from the notebooks."""
import ast, json, re, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(f for f in (root/'nbs').glob('**/*.ipynb') if not any(p.startswith(('.', '_')) for p in f.relative_to(root).parts))
machine_path = re.compile(r'(?<![\w./:~-])/(?:home|root|tmp|work)/\w|\\\\Users\\\\')

def cells(path, kind=None): return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if kind in (None, c['cell_type'])]
def source(cell): return ''.join(cell['source'])
def title(path): return path.relative_to(root/'nbs').as_posix()

each = pytest.mark.parametrize('path', notebooks, ids=title)

@each
def test_opens_with_title_and_one_liner(path):
    first = cells(path)[0]
    assert first['cell_type'] == 'markdown'
    assert re.match(r'# \S.*\n\n> \S', source(first)), 'the first cell is an H1 and a > line'

@each
def test_exports_to_its_own_module(path):
    "A room exports the module of its name; the index and the lessons export nothing."
    found = [m for c in cells(path, 'code') for m in re.findall(r'^#\| *default_exp +(\S+)', source(c), re.M)]
    room = re.fullmatch(r'\d\d_(\w+)\.ipynb', title(path))
    assert found == ([room[1]] if room else [])

@each
def test_outputs(path):
    "No error was saved, no path of a machine."
    for c in cells(path, 'code'):
        for o in c['outputs']:
            assert o['output_type'] != 'error', source(c)
            text = json.dumps({k: v for k, v in o.get('data', {}).items() if not k.startswith('image/')}) + json.dumps(o.get('text', ''))
            assert not machine_path.search(text), f'{source(c)}\n{machine_path.search(text)[0]}'

@each
def test_kernel_and_size(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert nb['metadata']['kernelspec']['name'] == 'python3'
    assert path.stat().st_size < 1_000_000

@each
def test_imports_stand_alone(path):
    "A cell that imports does nothing else: nbdev runs such cells when it builds the docs."
    for c in cells(path, 'code'):
        if re.search(r'^[%!]', source(c), re.M): continue
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source(c)).body}
        assert len(kinds) < 2, source(c)

@each
def test_links_lead_somewhere(path):
    for c in cells(path, 'markdown'):
        for target in re.findall(r'\]\(([^)#\s]+)', source(c)):
            if re.match(r'[a-z]+:', target): continue
            assert (path.parent/target).exists(), f'{target} is not there'

def test_readme_is_made_from_the_index():
    sys.path.insert(0, str(root/'tools'))
    try: from readme import render
    finally: sys.path.pop(0)
    text, pictures = render()
    assert (root/'README.md').read_text(encoding='utf-8') == text, 'run make readme'
    for name in pictures: assert (root/'nbs'/name).exists(), f'{name} is not there: run make readme'

def test_rooms_are_on_the_map():
    "The README's table has a row for each room, and no other."
    listed = re.findall(r'^\| \[\w+\]\(nbs/(\w+\.ipynb)\)', (root/'README.md').read_text(encoding='utf-8'), re.M)
    assert listed == [title(p) for p in notebooks if re.match(r'\d\d_', title(p))]

def test_pages_of_the_site():
    "docs/ has a page for each notebook, and loads nothing from outside."
    docs = root/'docs'
    for p in notebooks:
        page = docs/p.relative_to(root/'nbs').parent/(re.sub(r'^\d+[a-z]*_', '', p.stem) + '.html')
        assert page.exists(), f'{page.relative_to(root)} is not there: run make docs'
    for page in docs.glob('**/*.html'):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(https?:[^"]*)|<link[^>]*stylesheet[^>]*href="(https?:[^"]*)', page.read_text(encoding='utf-8'))
        assert not loaded, f'{page.name} loads {loaded}'
