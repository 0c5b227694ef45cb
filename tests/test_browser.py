"""The command of `make lab`, driven in a real browser."""
import json, os, re, subprocess, sys, threading, time
from pathlib import Path
import pytest

pytestmark = pytest.mark.browser
patience = 180_000 # ms, for what takes long on a busy machine
RUN = '[data-command="notebook:run-cell-and-select-next"]'

class Lab:
    "The running command: its address and what it says."
    def __init__(self, folder, *options):
        own = {k: str(folder/k) for k in ('HOME', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')}
        env = {k: v for k, v in os.environ.items() if not k.startswith('JUPYTER_')} | own
        command = [str(Path(sys.executable).absolute().with_name('jointseg-lab')), '--no-browser', *options]
        self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r'The live panel: (\S+)', line): break
        else: raise RuntimeError('no address came: ' + ''.join(self.lines))
        self.url = found[1]
        threading.Thread(target=self.listen, daemon=True).start() # or a full pipe would stop the server

    def listen(self):
        for line in self.process.stdout: self.lines.append(line)

    def stop(self):
        self.process.terminate()
        try: self.process.wait(30)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()

class Page:
    "The live notebook in the browser."
    def __init__(self, browser, lab, shots):
        self.page, self.lab, self.shots = browser.new_page(viewport=dict(width=1280, height=900)), lab, shots
        self.page.set_default_timeout(patience)
        self.open()

    def open(self):
        "Go to the address; the server may still be starting."
        end = time.monotonic() + patience/1000
        while True:
            try: self.page.goto(self.lab.url); break
            except Exception:
                assert self.lab.process.poll() is None and time.monotonic() < end, ''.join(self.lab.lines)
                time.sleep(0.5)
        self.page.wait_for_selector('.jp-CodeCell')

    def shot(self, name): self.page.screenshot(path=self.shots/f'{name}.png')

    def text(self, part): return self.page.inner_text(f'.jointseg-{part}')

    @property
    def step(self): return int(re.search(r'step (\d+)', self.text('status'))[1])

    def until(self, what, seconds=patience/1000):
        "Wait for something to be true; the seconds that took."
        start = time.monotonic()
        while not what():
            assert time.monotonic() - start < seconds, f"not so after {seconds} s: {self.text('status')} {self.text('error')}"
            self.page.wait_for_timeout(30)
        return time.monotonic() - start

    def masks(self):
        "The pixels of the lower third of the eyes: the predicted masks."
        return self.page.evaluate('''() => {
            const i = document.querySelector('img.jointseg-eyes'), c = document.createElement('canvas');
            c.width = i.naturalWidth; c.height = i.naturalHeight/3;
            c.getContext('2d').drawImage(i, 0, -2*i.naturalHeight/3);
            return c.toDataURL() }''')

@pytest.fixture(scope='module')
def page(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp('lab')
    # so small that steps are short: what is timed is the panel, not the network
    shots = Path(os.environ.get('JOINTSEG_SHOTS') or folder)
    (folder/'small.json').write_text(json.dumps(dict(name='small', size=32, crop=32, pad=3, net='small', steps=100000, lr=0.2, lr_ratio=0.1, ratio_on='shared',
                                                     clf_batch=2, seg_batch=2, weight_power=0.25, precision='float32', power=0.)))
    lab = Lab(folder, '--recipe', 'small.json')
    try: yield Page(browser, lab, shots)
    finally: lab.stop()

def test_one_click_and_it_trains(page):
    page.page.wait_for_selector(RUN)
    assert not page.page.query_selector_all('.jp-Dialog')
    page.until(lambda: 'Idle' in page.page.inner_text('#jp-main-statusbar'))
    page.page.click(RUN)
    page.page.wait_for_selector('.jointseg-status')
    page.shot('painted')
    page.until(lambda: page.step >= 1)

def test_masks_change(page):
    before, step = page.masks(), page.step
    page.until(lambda: page.step > step and page.masks() != before)
    assert 'no knob has moved' in page.text('log') # though 0.2 is off the slider's grid
    page.shot('running')

def logged(page, act, words):
    "Do something; it must be in the log, as a step that took it up, within a second."
    page.until(lambda: page.text('status').startswith('running'))
    act()
    took = page.until(lambda: words in page.text('log'), 30)
    assert took < 1, f'{took:.2f} s'

def test_ratio_by_keys(page):
    page.page.focus('.jointseg-lr-ratio .noUi-handle')
    logged(page, lambda: page.page.keyboard.press('ArrowRight'), 'lr_ratio 0.1 → 0.112')

def test_ratio_by_drag(page):
    handle, bar = (page.page.locator(f'.jointseg-lr-ratio {s}').first.bounding_box() for s in ('.noUi-handle', '.noUi-base'))
    def drag():
        y = handle['y'] + handle['height']/2
        page.page.mouse.move(handle['x'] + handle['width']/2, y)
        page.page.mouse.down()
        page.page.mouse.move(bar['x'] + bar['width'], y, steps=5)
        page.page.mouse.up()
    logged(page, drag, '→ 100')

def test_switch(page):
    logged(page, lambda: page.page.click('.jointseg-switch-16-E1'), 'attention 16 px −E1')
    page.shot('switched')

def test_kernel_is_free(page):
    page.page.click('.jp-CodeCell >> nth=1')
    page.page.keyboard.press('Shift+Enter')
    page.page.wait_for_selector('.jp-CodeCell >> nth=1 >> .jp-OutputArea-output >> text=running')

def test_pause(page):
    page.page.click('.jointseg-pause')
    page.until(lambda: 'paused' in page.text('status'))
    step = page.step
    page.page.wait_for_timeout(1500)
    assert page.step == step
    page.page.click('.jointseg-step')
    page.until(lambda: page.step == step + 1)

def test_reload_finds_the_run(page):
    step = page.step
    page.page.click('.jointseg-run')
    page.until(lambda: page.step > step)
    page.page.wait_for_timeout(4000) # the notebook saves itself
    step = page.step
    page.page.reload()
    page.page.wait_for_selector('.jointseg-status')
    page.until(lambda: page.step > step)
    assert 'attention 16 px −E1' in page.text('log')
    page.page.click('.jointseg-pause')
    page.until(lambda: 'paused' in page.text('status'))
    page.shot('reloaded')

def test_the_same_cell_finds_the_same_run(page):
    step = page.step
    page.page.click('.jp-CodeCell >> nth=0 >> .jp-InputArea-editor')
    page.page.keyboard.press('Shift+Enter')
    page.page.wait_for_timeout(1500)
    page.page.wait_for_selector('.jointseg-status')
    page.until(lambda: page.step >= step)
    assert 'attention 16 px −E1' in page.text('log')

def test_reset_keeps_the_knobs(page):
    page.page.click('.jointseg-reset')
    page.until(lambda: page.step == 0 and 'ready' in page.text('status'))
    page.page.click('.jointseg-run')
    page.until(lambda: page.step >= 1 and '100' in page.text('lr-ratio'))
    page.page.click('.jointseg-stop')
    page.until(lambda: 'stopped' in page.text('status'))
    page.shot('stopped')
