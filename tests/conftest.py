"""What the tests share: the browser, the pages it opens, and what happens where there is none."""
import os, re, shutil, subprocess, sys, tempfile, threading, time
from pathlib import Path
import pytest

flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
patience = int(os.environ.get('JOINTSEG_PATIENCE', 180)) # seconds, for what takes long on a busy machine

def no_browser(
    why:str, # what is missing
):
    "Skip the test that needs a browser; under CI=true fail it."
    if os.environ.get('CI', '').lower() in ('1', 'true'): pytest.fail(f'{why}; CI=true, so browser tests may not be skipped', pytrace=False)
    pytest.skip(why)

def pytest_configure(config):
    "Prepared photographs go to a folder of this run, never to the user's cache."
    config.stash[cache] = tempfile.TemporaryDirectory(prefix='jointseg-cache-')
    os.environ['JOINTSEG_CACHE'] = config.stash[cache].name

def pytest_unconfigure(config): config.stash[cache].cleanup()

cache = pytest.StashKey()

def pytest_runtest_setup(item):
    "A test marked `browser` runs only where there is one."
    if item.get_closest_marker('browser') and not shutil.which('chromium'): no_browser('no chromium on this machine')

@pytest.fixture(scope='session')
def browser():
    "Chromium, headless, driven by Playwright."
    if not shutil.which('chromium'): no_browser('no chromium on this machine')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=shutil.which('chromium'), args=flags)
        yield chromium
        chromium.close()

class Lab:
    "`jointseg-lab`, running: its address and what it says."
    def __init__(self, folder, *options):
        own = {k: str(folder/k) for k in ('HOME', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')}
        env = {k: v for k, v in os.environ.items() if not k.startswith('JUPYTER_')} | own
        command = [str(Path(sys.executable).absolute().with_name('jointseg-lab')), '--no-browser', *options]
        self.folder, self.runtime, self.lines = folder, folder/'JUPYTER_RUNTIME_DIR', []
        self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r'The live panel: (\S+)', line): break
        else: raise RuntimeError('no address came: ' + ''.join(self.lines))
        self.url = found[1]
        threading.Thread(target=self.listen, daemon=True).start() # or a full pipe would stop the server

    def listen(self):
        for line in self.process.stdout: self.lines.append(line)

    def kernels(self): return sorted(self.runtime.glob('kernel-*.json'), key=lambda p: p.stat().st_mtime)

    def stop(self):
        self.process.terminate()
        try: self.process.wait(30)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()

PIXELS = '''nodes => nodes.map(node => {
    const c = document.createElement('canvas'), g = c.getContext('2d', {willReadFrequently: true});
    c.width = node.width; c.height = node.height;
    if (c.width && c.height) g.drawImage(node, 0, 0); else return {blank: true, sum: 0, width: c.width, height: c.height};
    const d = new Uint32Array(g.getImageData(0, 0, c.width, c.height).data.buffer);
    let sum = 0, blank = true;
    for (const v of d) { sum = (Math.imul(sum, 31) + v) | 0; if (v !== d[0]) blank = false }
    return {blank, sum, width: c.width, height: c.height} })'''

class Page:
    "A page with a panel."
    def __init__(self, browser, lab, shots, **how):
        self.lab, self.shots, self.asked, self.errors = lab, shots, [], []
        self.context = browser.new_context(viewport=dict(width=1280, height=900), accept_downloads=True, **how)
        self.page = self.context.new_page()
        self.page.set_default_timeout(patience*1000)
        self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))

    def open(self, url=None):
        "Go to the address; the server may still be starting."
        end = time.monotonic() + patience
        while True:
            try: self.page.goto(url or self.lab.url); return self
            except Exception:
                assert self.lab.process.poll() is None and time.monotonic() < end, ''.join(self.lab.lines)
                time.sleep(0.3)

    def shot(self, name): self.page.screenshot(path=self.shots/f'{name}.png')

    def one(self, part): return self.page.locator(f'.jointseg-{part}').first

    def text(self, part): return self.one(part).inner_text()

    def click(self, part): self.one(part).click()

    def unfold(self, part):
        "Open a section of the panel."
        if not self.one(f'part-{part}').is_visible(): self.click(f'open-{part}')
        self.one(f'part-{part}').wait_for(state='visible')

    def view(self, name, on=True):
        "Open or close the tab of a view."
        if (self.page.locator(f'.jointseg-view-{name}').count() > 0) != on: self.click(f'tab-{name}')
        self.one(f'view-{name}').wait_for(state='visible' if on else 'detached')
        return self.one(f'view-{name}')

    @property
    def step(self): return int(re.search(r'step\s+(\d+)', self.text('status'))[1])

    @property
    def shown(self): return int(re.search(r'step (\d+)', self.text('frame'))[1])

    def until(self, what, seconds=patience):
        "Wait for something to be true; the seconds that took."
        start = time.monotonic()
        while not what():
            assert time.monotonic() - start < seconds, f'not so after {seconds} s: {self.state()}'
            self.page.wait_for_timeout(30)
        return time.monotonic() - start

    def state(self):
        "What the page shows, in words; a picture of it lies beside the others."
        self.shot('failed')
        where = self.page.evaluate("({seen: document.visibilityState, eyes: [...document.querySelectorAll('.jointseg-grid-of-eyes')].map(e => e.getBoundingClientRect().toJSON())})")
        parts = dict(status=self.text('status'), error=self.text('error'), note=self.page.locator('.jointseg-canvas-note').all_inner_texts(), pictures=self.page.eval_on_selector_all('.jointseg-grid-of-eyes canvas', PIXELS), errors=self.errors)
        return repr(parts | where)

    def pictures(self, within='.jointseg-grid-of-eyes'):
        "Of each canvas: is it blank, a sum over its pixels, its size. What is off the screen is not drawn, so it is brought there."
        self.page.locator(within).first.scroll_into_view_if_needed()
        return self.page.eval_on_selector_all(f'{within} canvas', PIXELS)

    def sums(self): return [p['sum'] for p in self.pictures()]

    def pause(self):
        if 'paused' not in self.text('status'): self.click('pause')
        self.until(lambda: 'paused' in self.text('status'))
        self.page.wait_for_timeout(600) # what was painted last is on its way

    def run(self):
        step = self.step
        self.go_on()
        self.until(lambda: self.step > step)

    def go_on(self):
        "Let it train, if it does not already."
        if not re.match('running|preparing', self.text('status')): self.click('run')

    def upload(self, name, data):
        "Choose a file, as the button of the panel asks for."
        with self.page.expect_file_chooser() as chooser: self.page.locator('button.jointseg-upload, .jointseg-upload button').first.click()
        chooser.value.set_files(files=[dict(name=name, mimeType='image/png', buffer=data)])

    def outside(self):
        "What the page has asked of other machines."
        return [u for u in self.asked if re.match(r'(https?|wss?)://', u) and '://127.0.0.1' not in u and '://localhost' not in u]

    def close(self): self.context.close()

class Kernel:
    "A line of its own to a kernel that runs: what a cell would say."
    def __init__(self, file):
        from jupyter_client import BlockingKernelClient
        self.client = BlockingKernelClient(connection_file=str(file))
        self.client.load_connection_file(); self.client.start_channels(); self.client.wait_for_ready(60)

    def __call__(self, code, value='None'):
        import ast
        reply = self.client.execute(code, silent=True, store_history=False, user_expressions=dict(value=value), reply=True, timeout=120)['content']
        assert reply['status'] == 'ok', '\n'.join(reply.get('traceback', ()))
        return ast.literal_eval(reply['user_expressions']['value']['data']['text/plain'])

    def close(self): self.client.stop_channels()

@pytest.fixture(scope='session')
def small():
    "A recipe so small that steps are short: what is tried is the panel, not the network."
    return dict(name='small', size=32, crop=32, pad=3, net='small', steps=100000, lr=0.2, lr_ratio=0.1, ratio_on='shared', clf_batch=2, seg_batch=2, weight_power=0.25, precision='float32', power=0.)

@pytest.fixture(scope='session')
def tools():
    "The classes above, for test files."
    from types import SimpleNamespace
    return SimpleNamespace(Lab=Lab, Page=Page, Kernel=Kernel, patience=patience)
