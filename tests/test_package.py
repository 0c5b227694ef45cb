"""The package: its two metadata files, its pins, what importing it costs, what its wheel holds."""
import ast, importlib, re, subprocess, sys, zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try: import tomllib
except ImportError: import tomli as tomllib

root = Path(__file__).resolve().parent.parent
package = root/'jointseg_nb'
rooms = sorted((f for f in (root/'nbs').glob('[0-9][0-9]_*.ipynb')), key=lambda f: f.name)
names = [f.stem.split('_', 1)[1] for f in rooms]
versions = '3.10.13', '3.11.7', '3.12.1', '3.13.0'
not_in_all = {'experiments', 'verdicts', 'tables', 'real', 'bench', 'commands'} # tools with names of their own, and what is for the shell

def settings():
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(root/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

def requirements(extras=True):
    "What settings.ini asks for."
    cfg = settings()
    keys = [k for k in cfg if k == 'requirements' or extras and k.endswith('_requirements')]
    return [Requirement(r) for k in keys for r in cfg[k].split()]

def environment(version, platform='linux'):
    "The markers' variables on another Python."
    return dict(python_version='.'.join(version.split('.')[:2]), python_full_version=version, sys_platform=platform,
                platform_system=platform.capitalize(), os_name='posix', platform_machine='x86_64', implementation_name='cpython',
                platform_python_implementation='CPython', extra='')

def pins(version):
    "Name to version, of the lines of constraints.txt that hold on a Python."
    lines = [Requirement(l) for l in (root/'constraints.txt').read_text().splitlines() if l and l[0] != '#']
    held = [r for r in lines if r.marker is None or r.marker.evaluate(environment(version))]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix('==') for r in held}, held

def run(code):
    "Run code in a Python of its own."
    return subprocess.run([sys.executable, '-c', code], cwd=root, check=True, capture_output=True, text=True).stdout

def test_versions_in_step():
    import jointseg_nb
    cfg, project = settings(), tomllib.loads((root/'pyproject.toml').read_text())
    assert jointseg_nb.__version__ == cfg['version']
    assert 'version' in project['project']['dynamic']
    assert project['project']['name'] == cfg['lib_name']
    assert project['project']['description'] == cfg['description']
    assert project['project']['requires-python'] == '>=' + cfg['min_python']
    assert project['project']['license'] == cfg['license']

def test_nbdev_keys_in_step():
    cfg, nbdev = settings(), tomllib.loads((root/'pyproject.toml').read_text())['tool']['nbdev']
    for k in 'lib_name', 'lib_path', 'nbs_path', 'doc_path', 'tst_flags', 'branch': assert nbdev[k] == cfg[k], k

@pytest.mark.parametrize('version', versions)
def test_requirements_are_pinned(version):
    pinned, held = pins(version)
    assert len(held) == len(pinned), 'a package is pinned twice'
    for r in requirements():
        if r.marker and not r.marker.evaluate(environment(version)): continue
        assert canonicalize_name(r.name) in pinned, f'{r.name} has no pin: add it to constraints.txt'
        assert r.specifier.contains(pinned[canonicalize_name(r.name)]), r
    assert pinned['torch'] == '2.13.0'

def test_constraints_name_no_host():
    text = (root/'constraints.txt').read_text()
    assert not re.search(r'https?:|file:|^-|@', text, re.M)

def imported(path):
    "Top-level names that a module imports, anywhere in it."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name.split('.')[0] for a in node.names)
        if isinstance(node, ast.ImportFrom): yield (node.module or '.').split('.')[0] if not node.level else 'jointseg_nb'

def test_every_import_is_required():
    "What the package imports, settings.ini names."
    declared = {canonicalize_name(r.name) for r in requirements()}
    known = packages_distributions()
    for f in package.glob('*.py'):
        for name in set(imported(f)) - set(sys.stdlib_module_names) - {'jointseg_nb'}:
            dists = {canonicalize_name(d) for d in known.get(name, [name])}
            assert dists & declared, f'{f.name} imports {name}: name it in settings.ini'

def test_import_takes_only_the_standard_library():
    loaded = run("import sys; before = set(sys.modules); import jointseg_nb; print(*set(sys.modules) - before)").split()
    foreign = {m.split('.')[0] for m in loaded} - set(sys.stdlib_module_names)
    assert foreign == {'jointseg_nb'}

def test_no_room_loads_matplotlib():
    "The panel paints without it: what draws a figure loads it then."
    for f in package.glob('*.py'):
        if f.stem in not_in_all: continue
        for node in ast.parse(f.read_text(encoding='utf-8')).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split('.')[0] == 'matplotlib' for n in names), f'{f.name}: import it within the function that draws'

def rooms_used(path):
    "Rooms that a module imports from; nbdev writes `from jointseg_nb.blocks` as `from .blocks`."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level: yield from [node.module] if node.module else (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom) and node.module == 'jointseg_nb': yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('jointseg_nb.'): yield node.module.split('.')[1]
        if isinstance(node, ast.Import): yield from (a.name.split('.')[1] for a in node.names if a.name.startswith('jointseg_nb.'))

@pytest.mark.parametrize('name', names)
def test_rooms_look_upward_only(name):
    "A room imports from rooms with smaller numbers."
    below = set(rooms_used(package/f'{name}.py')) - set(names[:names.index(name)])
    assert not below, f'{name} imports from {below}'

def exported(name): return importlib.import_module(f'jointseg_nb.{name}').__all__

def test_all_has_every_name():
    everything = importlib.import_module('jointseg_nb.all')
    for n in names:
        if n in not_in_all: continue
        missing = [o for o in exported(n) if not hasattr(everything, o)]
        assert not missing, f'jointseg_nb.all lacks {missing} of {n}'

def test_no_name_in_two_rooms():
    owner = {}
    for n in names:
        if n in not_in_all: continue
        for o in exported(n): owner.setdefault(o, []).append(n)
    twice = {o: ns for o, ns in owner.items() if len(ns) > 1}
    assert not twice, f'jointseg_nb.all can hold only one of each: {twice}'

def test_commands_exist_and_help_is_quick():
    for line in settings()['console_scripts'].split():
        _, target = line.split('=')
        module, function = target.split(':')
        code = f"import sys; sys.argv = ['x', '--help']\ntry:\n  import {module} as m; m.{function}()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
        assert run(code).split()[-1] == 'False', f'{line}: --help imports torch'

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built as a user's pip builds it but with the setuptools at hand."
    out = tmp_path_factory.mktemp('wheel')
    build = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', str(out), str(copy_sources(out))]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob('*.whl'))

def copy_sources(out):
    "What is under version control, without the folders that a build leaves behind."
    import shutil
    skip = shutil.ignore_patterns('.*', 'build', 'dist', '*.egg-info', 'runs', 'docs', '__pycache__')
    return shutil.copytree(root, out/'src', ignore=skip)

def test_wheel_holds_the_package_alone(wheel):
    files = zipfile.ZipFile(wheel).namelist()
    info = f'jointseg_nb-{settings()["version"]}.dist-info/'
    assert all(f.startswith(('jointseg_nb/', info)) for f in files), files
    here = {f.relative_to(root).as_posix() for f in [*package.iterdir(), *(package/'static').iterdir()] if f.suffix in ('.py', '.safetensors', '.json', '.js', '.css')}
    assert {f for f in files if not f.startswith(info)} == here
    assert 'jointseg_nb/pocket.safetensors' in files, 'the trained model does not ship'
    assert info + 'licenses/LICENSE' in files

def test_wheel_metadata(wheel):
    from email.parser import Parser
    z = zipfile.ZipFile(wheel)
    read = lambda end: z.read(next(f for f in z.namelist() if f.endswith(end))).decode()
    meta = Parser().parsestr(read('/METADATA'))
    assert meta['Version'] == settings()['version']
    assert meta['License-Expression'] == 'Apache-2.0' and meta['Requires-Python'] == '>=3.10'
    wanted = {str(Requirement(r)) for r in settings()['requirements'].split()}
    assert wanted <= {str(Requirement(r)) for r in meta.get_all('Requires-Dist')}
    assert {'dev', 'lab'} <= set(meta.get_all('Provides-Extra'))
    for line in settings()['console_scripts'].split(): assert line.replace('=', ' = ') in read('entry_points.txt')

@pytest.mark.slow
def test_isolated_build(tmp_path):
    "An isolated build fetches its own setuptools, so it needs the package index."
    build = [sys.executable, '-m', 'build', '--wheel', '--outdir', str(tmp_path), str(copy_sources(tmp_path))]
    subprocess.run(build, check=True, capture_output=True)
    assert next(tmp_path.glob('*.whl'))
