"""What every notebook owes its reader, and what is made from the notebooks."""
import ast, importlib, json, re, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(f for f in (root/'nbs').glob('**/*.ipynb') if not any(p.startswith(('.', '_')) for p in f.relative_to(root).parts))
machine_path = re.compile(r'(?<![\w./:~-])/(?:home|root|tmp|work)/\w|\\+Users\\+\w')

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
def test_no_error_was_saved(path):
    for c in cells(path, 'code'): assert not any(o['output_type'] == 'error' for o in c['outputs']), source(c)

def texts(cell):
    "What a cell says: its source, and what its outputs say in words."
    yield source(cell)
    for o in cell.get('outputs', ()):
        yield ''.join(o.get('text', ''))
        for kind, data in o.get('data', {}).items():
            if not kind.startswith('image/'): yield ''.join(data) if isinstance(data, (str, list)) else json.dumps(data)

@each
def test_no_path_of_a_machine(path):
    for c in cells(path):
        for text in texts(c):
            found = machine_path.search(text)
            assert not found, f'{source(c)}\n{found[0]}'

@pytest.mark.parametrize('folder', ['home', 'root', 'tmp', 'work'])
def test_a_path_of_a_machine_is_seen(folder):
    "The samples are put together here, since no file of ours holds such a path."
    for path in (f'/{folder}/ann', f'/{folder}/a.png'):
        for text in (path, f'see {path}/eyes', f"open('{path}')", f'({path})', f'"{path}"', f'a={path}', f'a:\n{path}'): assert machine_path.search(text), text
    for text in (f'runs/{folder}/x', f'~/{folder}/x', f'https://a.org/{folder}/b', f'my/{folder}/x', f'./{folder}/x', f'/{folder}', f'-/{folder}/x'): assert not machine_path.search(text), text

@pytest.mark.parametrize('slash', ['\\', '\\\\'])
def test_a_path_of_windows_is_seen(slash): assert machine_path.search(slash.join(('C:', 'Users', 'ann')))

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

def tool(name):
    "A module of tools/."
    sys.path.insert(0, str(root/'tools'))
    try: return importlib.import_module(name)
    finally: sys.path.pop(0)

def test_readme_is_made_from_the_index():
    text, pictures = tool('readme').render()
    assert (root/'README.md').read_text(encoding='utf-8') == text, 'run make readme'
    for name in pictures: assert (root/'nbs'/name).exists(), f'{name} is not there: run make readme'

def test_rooms_are_on_the_map():
    "The README's table has a row for each room, and no other."
    listed = re.findall(r'^\| \[\w+\]\(nbs/(\w+\.ipynb)\)', (root/'README.md').read_text(encoding='utf-8'), re.M)
    assert listed == [title(p) for p in notebooks if re.match(r'\d\d_', title(p))]

def digest_in(page):
    "The digest of the notebook that a page was made from, or None."
    found = re.search(r'<meta name="jointseg-notebook" content="(\w+)">', page.read_text(encoding='utf-8'))
    return found and found[1]

def test_a_digest_changes_with_what_a_page_shows(tmp_path):
    digest, path = tool('build_site').digest, tmp_path/'a.ipynb'
    cell = dict(cell_type='code', id='a', metadata={}, source=['1 + 1\n', '# two'], execution_count=None,
                outputs=[dict(output_type='execute_result', data={'text/plain': ['2']}, metadata={}, execution_count=None)])
    def of(indent=1, **change):
        path.write_text(json.dumps(dict(cells=[{**cell, **change}], metadata={}, nbformat=4, nbformat_minor=5), indent=indent))
        return digest(path)
    plain = of()
    assert of(indent=None, execution_count=7, source='1 + 1\n# two', id='b') == plain
    assert len({plain, of(source='1 + 2'), of(outputs=[]), of(cell_type='markdown'), of(outputs=[dict(cell['outputs'][0], data={'text/plain': '3'})])}) == 5

def test_pages_of_the_site():
    "docs/ has a page for each notebook as it is now, no page of a notebook that is gone, and loads nothing from outside."
    docs, digest, made = root/'docs', tool('build_site').digest, set()
    for p in notebooks:
        page = docs/p.relative_to(root/'nbs').parent/(re.sub(r'^\d+[a-z]*_', '', p.stem) + '.html')
        assert page.exists(), f'{page.relative_to(root)} is not there: run make docs'
        assert digest_in(page) == digest(p), f'{page.relative_to(root)} shows an older {title(p)}: run make docs'
        made.add(page)
    old = {page for page in docs.glob('**/*.html') if digest_in(page)} - made
    assert not old, f'pages without a notebook: {old}: run make docs'
    for page in docs.glob('**/*.html'):
        assert 'site-packages' not in page.read_text(encoding='utf-8'), f'{page.relative_to(root)} shows a warning of the machine that built it: mend its cause, then make docs'
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(https?:[^"]*)|<link[^>]*stylesheet[^>]*href="(https?:[^"]*)', page.read_text(encoding='utf-8'))
        assert not loaded, f'{page.name} loads {loaded}'
