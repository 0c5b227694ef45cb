"""Build the site from the notebooks into docs/, without a network: nbdev prepares the pages, smalldocs lays them out.

The same notebooks give the same bytes, so docs/ is committed. Outputs are those saved in the notebooks; nothing is run but
the imports that the reference tables need.
"""
import hashlib, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
docs, proc, katex = root/'docs', root/'_proc', root/'docs'/'katex'
katex_version = '0.16.11'
katex_cdn = f'https://cdn.jsdelivr.net/npm/katex@{katex_version}/dist'

def joined(value): return ''.join(value) if isinstance(value, list) else value

def digest(
    notebook:Path, # a notebook
)->str:            # 16 hexadecimal digits, the same for the same sources and outputs
    "What a page was made from, in short: sources and outputs count, cell numbers and the file's layout do not."
    shown = []
    for c in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        outputs = [(joined(o.get('text')), {k: joined(v) for k, v in o.get('data', {}).items()}) for o in c.get('outputs', ())]
        shown.append((c['cell_type'], joined(c['source']), outputs))
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]

def prepare():
    "Let nbdev turn the notebooks into pages: directives applied, reference tables added."
    from nbdev.serve import proc_nbs
    shutil.rmtree(proc, ignore_errors=True)
    proc_nbs(n_workers=0)

def opening(
    page:Path, # a page in _proc
)->list:       # a markdown cell, or nothing
    "What the notebook's first cell says after its title and one-liner, which is all that nbdev keeps of it."
    first = json.loads((root/'nbs'/page.relative_to(proc)).read_text(encoding='utf-8'))['cells'][0]
    text = re.sub(r'\A# .*\n+(?:>.*\n?)*', '', ''.join(first['source'])).strip()
    return [dict(cell_type='markdown', id='opening', metadata={}, source=text)] if text else []

def brief(
    line, # of a reference table's signature
):        # str
    "Its default, if it is long, as an ellipsis: a whole table of presets says less than its name in the source, and addresses of functions differ from build to build."
    return re.sub(r'^(    \w+:[^=]+=)(?:(?! # |, \w+:).){60,}?(,(?: #.*)?\s*)$', r'\1…\2', line)

def settle(
    page:Path, # a page in _proc, e.g. _proc/00_fundus.ipynb
)->Path:       # where it is now, e.g. _proc/fundus.ipynb
    "Name a page after the file it becomes, complete its opening, and make it a valid notebook."
    nb = json.loads(page.read_text(encoding='utf-8'))
    nb['cells'][1:1] = opening(page)
    for c in nb['cells']:
        c['metadata'].pop('execution', None)
        for o in c['outputs'] if c.get('has_sd') else (): o['data']['text/markdown'] = [brief(line) for line in o['data']['text/markdown']]
    head = ''.join(nb['cells'][0]['source'])
    name = re.search(r'^output-file: *(\S+)\.html\n', head, re.M)
    if name: nb['cells'][0]['source'] = head.replace(name[0], '')
    new = page.with_name(name[1] + '.ipynb') if name else page
    page.unlink()
    new.write_text(json.dumps(nb), encoding='utf-8')
    return new

def link_pages(
    moved:dict, # old file name to new
):
    "Point links between notebooks at the pages' new names."
    for page in proc.glob('**/*.ipynb'):
        text = page.read_text(encoding='utf-8')
        for old, new in moved.items(): text = re.sub(rf'(?<=[(/]){re.escape(old)}(?=[)#])', new, text)
        page.write_text(text, encoding='utf-8')

def configure(
    rooms:list,   # pages of the package, in reading order
    lessons:list, # pages of the course
):
    "Give smalldocs the list of pages."
    import yaml
    path = proc/'_quarto.yml'
    cfg = yaml.safe_load(path.read_text(encoding='utf-8'))
    cfg['project']['output-dir'] = 'site'
    sections = [{'section': 'Rooms', 'contents': rooms}, {'section': 'Lessons', 'contents': lessons}]
    cfg['website']['sidebar']['contents'] = ['index.ipynb', *(s for s in sections if s['contents'])]
    path.write_text(yaml.safe_dump(cfg, sort_keys=False), encoding='utf-8')

def fetch_katex():
    "Take the math typesetter from npm. Done once: what is in docs/katex stays there, so later builds need no network."
    with tempfile.TemporaryDirectory() as tmp:
        pack = ['npm', 'pack', '--silent', f'katex@{katex_version}']
        subprocess.run(pack, cwd=tmp, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(['tar', 'xzf', f'katex-{katex_version}.tgz'], cwd=tmp, check=True)
        dist = Path(tmp)/'package'/'dist'
        for f in 'katex.min.js', 'katex.min.css', 'contrib/auto-render.min.js':
            (katex/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(dist/f, katex/f)
        (katex/'fonts').mkdir()
        for f in (dist/'fonts').glob('*.woff2'): shutil.copy(f, katex/'fonts'/f.name)
        shutil.copy(Path(tmp)/'package'/'LICENSE', katex/'LICENSE')
    css = (katex/'katex.min.css').read_text(encoding='utf-8')
    css = re.sub(r',url\(fonts/[^)]*\.(?:woff|ttf)\) format\("[a-z]*"\)', '', css)
    (katex/'katex.min.css').write_text(css, encoding='utf-8')

def publish(
    site:Path,      # what smalldocs built
    notebooks:dict, # page, as a path in the site, to the notebook it was made from
):
    "Replace docs/ by the new site: the math typesetter beside it instead of on a server, each notebook's digest in its page."
    if not (katex/'katex.min.js').exists(): fetch_katex()
    for page in site.glob('**/*.html'):
        up = '../' * len(page.relative_to(site).parent.parts)
        text = page.read_text(encoding='utf-8').replace(katex_cdn, f'{up}katex')
        outside = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(https?:[^"]*)|<link[^>]*stylesheet[^>]*href="(https?:[^"]*)', text)
        if outside: sys.exit(f'docs: {page.name} would load from outside: {outside}')
        made_from = notebooks.get(page.relative_to(site))
        if made_from: text = text.replace('</head>', f'<meta name="jointseg-notebook" content="{digest(made_from)}">\n</head>', 1)
        page.write_text(text, encoding='utf-8')
    (site/'search.json').unlink(missing_ok=True) # a page read from disk cannot fetch it
    for old in docs.iterdir():
        if old == katex: continue
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(site, docs, dirs_exist_ok=True)
    (docs/'.nojekyll').touch()

def main():
    "Build the site."
    if sys.version_info < (3, 11): sys.exit('docs: the site builder smalldocs needs Python 3.11 or later: make docs VENV=.venv-docs PYTHON=python3.12')
    from smalldocs.site import build
    os.chdir(root)
    docs.mkdir(exist_ok=True)
    prepare()
    pages = sorted(proc.glob('**/*.ipynb'))
    moved = {p: settle(p) for p in pages}
    link_pages({old.name: new.name for old, new in moved.items() if old.name != new.name})
    names = [(old.relative_to(proc), new.relative_to(proc).as_posix()) for old, new in moved.items()]
    configure([new for old, new in names if re.match(r'\d', old.name) and len(old.parts) == 1],
              [new for old, new in names if old.parts[0] == 'lessons'])
    site = build(proc, quiet=True)
    for w in site.warnings: print(f'docs: {w}')
    publish(proc/'site', {new.relative_to(proc).with_suffix('.html'): root/'nbs'/old.relative_to(proc) for old, new in moved.items()})
    shutil.rmtree(proc)
    print(f'docs: {len(pages)} pages; open docs/index.html')

if __name__ == '__main__': main()
