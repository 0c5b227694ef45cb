"""The live panel: what it costs the training, how soon it does what it is told, what it sends, and whether it stays small.

    python benchmarks/lab.py                                  # all parts but the soak, some fifteen minutes; the machine should do nothing else
    python benchmarks/lab.py --only panel_vs_headless,mb_per_s
    python benchmarks/lab.py --soak 60                        # an hour of training: does the kernel's memory stay flat?
    python benchmarks/lab.py --quick                          # a try of a minute or two; its figures are printed, not kept

Writes lab.json beside this file (on a GPU lab_cuda.json); parts that are run alone take their place in it. It trains the pocket recipe, 64 px, in a Jupyter kernel.
`panel_vs_headless`, the slider and the soak have a front end without a screen: it reads all that a browser would read, and answers, but draws nothing. The others are Chromium
on JupyterLab, with everything on one machine: there the training, the server and the browser share the processor.
"""
import argparse
import json
import os
import platform
import queue
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()

# what the kernel runs: a session that never ends, and the time of everything that it says
BEGIN = '''
import time
from pathlib import Path
from jointseg_nb.data import embedded
from jointseg_nb.lab import live
from jointseg_nb.recipes import recipe
from jointseg_nb.session import Session
said = []
def note(session):
    def listen():
        now = session._now
        said.append((time.time(), now['seq'], now.get('step', 0), now['look'].step if now.get('look') is not None else -1))
        del said[:-20000]
    session._listeners.append(listen)
    return session
endless = recipe('pocket', steps=10**6, power=0.)
source = embedded(400, size=64)
'''


def p95(values): return float(np.percentile(values, 95))


def spread(values): return dict(n=len(values), median=statistics.median(values), p95=p95(values), max=max(values))


def update(**state): return dict(method='update', state=state, buffer_paths=[])


class Front:
    "A kernel, and a front end that reads all it says: widgets are kept, canvases answered; nothing is drawn."
    def __init__(self, code=BEGIN, manager=None, connection=None):
        from jupyter_client import BlockingKernelClient
        if connection:
            self.manager, self.client = None, BlockingKernelClient(connection_file=str(connection))
            self.client.load_connection_file(); self.client.start_channels(); self.client.wait_for_ready(60)
        else:
            from jupyter_client.manager import start_new_kernel
            self.manager, self.client = start_new_kernel(kernel_name='python3', startup_timeout=120)
        self.ears = BlockingKernelClient(connection_file=self.client.connection_file)  # a line of its own, for sockets are not shared by threads
        self.ears.load_connection_file(); self.ears.start_channels()
        self.widgets, self.messages, self.bytes, self.kinds, self.done = {}, 0, 0, {}, threading.Event()
        self.thread = threading.Thread(target=self.read, daemon=True); self.thread.start()
        if code: self(code)

    def read(self):
        "Read what the kernel publishes, as long as it lives."
        while not self.done.is_set():
            try: self.take(self.ears.get_iopub_msg(timeout=0.5))
            except queue.Empty: pass

    def take(self, message):
        "Count a message; keep what it says of a widget; tell a canvas that its picture is there."
        size = len(json.dumps(message['content'], default=str)) + sum(len(b) for b in message.get('buffers', ()))
        self.messages += 1; self.bytes += size
        kind, content = message['msg_type'], message['content']
        if not kind.startswith('comm_'): return
        known = self.widgets.setdefault(content['comm_id'], {})
        data = content.get('data', {})
        known.update(data.get('state', {}))
        name = known.get('_model_name', '') + ' ' + ' '.join(known.get('_dom_classes', ()))
        count = self.kinds.setdefault(name + (' opened' if kind == 'comm_open' else ''), [0, 0]); count[0] += 1; count[1] += size
        if 'painted' not in known: return
        if kind == 'comm_open': self.tell(content['comm_id'], dict(method='custom', content=dict(kind='hello')), self.ears)
        news = data.get('content') or {}
        if 'number' in news: self.tell(content['comm_id'], update(painted=dict(number=news['number'], seq=news.get('seq', 0), ms=5.0)), self.ears)

    def tell(self, comm, data, line=None):
        line = line or self.client
        line.shell_channel.send(line.session.msg('comm_msg', dict(comm_id=comm, data=data)))

    def move(self, comm, **state): self.tell(comm, update(**state))

    def __call__(self, code, value='None', timeout=120):
        "Run a cell without a word; the value of an expression after it."
        import ast
        given = self.client.execute(code, silent=True, store_history=False, user_expressions=dict(value=value))
        end = time.monotonic() + timeout
        while True:
            reply = self.client.get_shell_msg(timeout=max(0.1, end - time.monotonic()))
            if reply['parent_header'].get('msg_id') == given: break
        reply = reply['content']
        if reply['status'] != 'ok': raise RuntimeError('\n'.join(reply.get('traceback', ())))
        found = reply['user_expressions']['value']
        if found['status'] != 'ok': raise RuntimeError(str(found))
        return ast.literal_eval(found['data']['text/plain'])

    def until(self, expression, seconds=120):
        "Wait until an expression is true in the kernel."
        end = time.monotonic() + seconds
        while not self('', expression):
            if time.monotonic() > end: raise TimeoutError(f'{expression}: {self("", "repr(session.snapshot.error), session.snapshot.state")}')
            time.sleep(0.05)

    def close(self):
        self.done.set(); self.thread.join()
        self.ears.stop_channels(); self.client.stop_channels()
        if self.manager: self.manager.shutdown_kernel(now=True)


SEGMENTS = '''
import threading
from jointseg_nb.cooperate import set_up
from jointseg_nb.engine import release_threads
from jointseg_nb.evaluate import evaluate
from jointseg_nb.fit import held_out
session = note(Session(endless, source, evaluate_every=EVERY))
panel = session.panel()
session.run(); session.wait(step=WARM, timeout=300); session.pause(); session.wait(timeout=60)
bare = set_up(endless, source).trainer
eyes = held_out(session.setup, 64)
times, failed = dict(panel=[], headless=[]), []

def headless(n):
    start = time.perf_counter()
    for i in range(n):
        bare.step()
        if bare.step_done % EVERY == 0: evaluate(bare.eval_model, source, eyes, endless.crop, engine=bare.engine).metrics()
    seconds = time.perf_counter() - start
    release_threads()
    return seconds

def with_panel(n):
    "Seconds of `n` steps in the middle of a run: what its start and its rest cost is not theirs."
    first = session.snapshot.step + 1
    session.run(); session.wait(step=first, timeout=60)
    start = time.perf_counter()
    session.wait(step=first + n, timeout=120)
    seconds = time.perf_counter() - start
    session.pause(); session.wait(timeout=60)
    return seconds

def measure(rounds):
    try:
        headless(WARM)
        for k in range(rounds):
            for way, f in ((('panel', with_panel), ('headless', headless)) if k % 2 else (('headless', headless), ('panel', with_panel))): times[way].append(f(EVERY))
    except Exception as e: failed.append(repr(e))
thread = threading.Thread(target=measure, args=(ROUNDS,)); thread.start()
'''


def panel_vs_headless(work, quick):
    "Steps a second with a panel that is read, against the same trainer in a plain loop; both score the same 64 held-out eyes every 20 steps."
    every, rounds = (5, 3) if quick else (20, 26)
    front = Front()
    try:
        front(f'EVERY, WARM, ROUNDS = {every}, {5 if quick else 10}, {rounds}')
        before = time.monotonic(), front.messages, front.bytes
        front(SEGMENTS, timeout=300)
        while front('', 'thread.is_alive()'): time.sleep(2)
        if failed := front('', 'failed'): raise RuntimeError(failed[0])
        times, seconds = front('', 'times'), time.monotonic() - before[0]
        kinds = {k: v for k, v in sorted(front.kinds.items(), key=lambda kv: -kv[1][1]) if not k.endswith('opened')}
        sent = dict(messages_per_second=(front.messages - before[1])/seconds, megabytes_per_second=(front.bytes - before[2])/seconds/1e6, messages_and_bytes_of=dict(list(kinds.items())[:12]))
        threads = front('import torch', 'torch.get_num_threads()')
        busy = processor_ms(front, 2 if quick else 30)
    finally: front.close()
    pairs = [h/p for h, p in zip(times['headless'], times['panel'])]
    rng = np.random.default_rng(0)
    means = [np.median(rng.choice(pairs, len(pairs))) for _ in range(2000)]
    return statistics.median(pairs), dict(target='>= 0.98', interval_95=[float(np.percentile(means, q)) for q in (2.5, 97.5)], threads=threads, steps_of_a_segment=every,
                                          seconds_of_a_step={k: statistics.median(v)/every for k, v in times.items()}, processor_ms_a_second=busy, sent=sent, seconds=times)


def processor_ms(front, seconds):
    "Milliseconds of processor that each thread of the kernel takes in a second of training under the panel, and this process, which reads it. (Linux)"
    front('session.run()')
    front.until('session.snapshot.state == "running"')
    front.until(f'session.snapshot.step > {front("", "session.snapshot.step")}')
    pid, names = front('import os, threading', '(os.getpid(), {t.native_id: t.name for t in threading.enumerate()})')
    def spent():
        ticks = {int(t.name): sum(map(int, (t/'stat').read_text().rsplit(')', 1)[1].split()[11:13])) for t in Path(f'/proc/{pid}/task').iterdir()}
        return {k: v/os.sysconf('SC_CLK_TCK') for k, v in ticks.items()} | dict(reader=time.process_time())
    before, start = spent(), time.monotonic()
    time.sleep(seconds)
    after, took = spent(), time.monotonic() - start
    front('session.pause(); session.wait(timeout=60)')
    found = {names.get(k, k if k == 'reader' else f'unnamed {k}'): round((v - before.get(k, 0))*1000/took, 1) for k, v in after.items()}
    return {k: v for k, v in sorted(found.items(), key=lambda kv: -kv[1]) if v > .5}


NOTED = '''
asked, turn = [], session.set
def noted(**knobs):
    asked.append((time.time(), knobs))
    return turn(**knobs)
session.set = noted
'''


def step_times(front):
    "When the last steps were done: (step, seconds)."
    return front('', 'sorted({s: w for w, _, s, _ in said[::-1]}.items())[-14:]')


def lateness(front, moved, change):
    "Milliseconds from a move to the mailbox, to the begin and to the end of the first step under the new value, and the length of a step; `change` is (step, ...) of the log."
    front.until(f'said[-1][2] > {change[0] + 1}', 60)
    when = dict(step_times(front))
    step = when[change[0]] - when[change[0] - 1]  # the one that was under way, with its looks
    return dict(mailbox=(front('', 'asked[-1][0]') - moved)*1000, begin=(when[change[0]] - moved)*1000, end=(when[change[0] + 1] - moved)*1000, step=step*1000)


def lateness_figures(found):
    "The figure, and what it is made of."
    less = [f['begin'] - f['step'] for f in found]
    return dict(mailbox=spread([f['mailbox'] for f in found]), to_the_begin_less_one_step=spread(less), to_the_begin=spread([f['begin'] for f in found]), step=statistics.median(f['step'] for f in found),
                note='a step that is under way is ended under the old value; the next one takes what is in the mailbox', found=[{k: round(v, 1) for k, v in f.items()} for f in found])


def slider_p95_ms(work, quick):
    "From the front end's message of a moved knob to the begin of the first step under the new value, less one step (the one that was under way); or, if that is more, to the mailbox from which steps take it."
    front, found = Front(), []
    try:
        front('session = note(Session(endless, source)); panel = session.panel(); session.run()' + NOTED)
        front.until('session.snapshot.step >= 10')
        knob = front('', 'panel.knobs["lr_ratio"].model_id')
        rng = np.random.default_rng(0)
        for i in range(10 if quick else 60):
            value = round(float(rng.uniform(0.02, 0.09) if i % 2 else rng.uniform(0.2, 0.9)), 4)  # always farther than the slider's step
            time.sleep(float(rng.uniform(0.3, 0.9)))
            moved = time.time()
            front.move(knob, value=value)
            front.until(f'any(c[3] == {value} for c in session.snapshot.changes[-3:])', 30)
            found.append(lateness(front, moved, front('', f'next(c[:1] for c in session.snapshot.changes[::-1] if c[3] == {value})')))
    finally: front.close()
    made = lateness_figures(found)
    return max(made['mailbox']['p95'], made['to_the_begin_less_one_step']['p95']), dict(target='< 60', **made)


def rss(pid): return int(re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())[1])/1000


def kernel_mb_per_hour(work, minutes, every=15.):
    "Growth of the kernel's memory in an hour of training under an open panel with all its views open, and with checkpoints; the first sixth, in which histories fill, is not counted."
    front = Front()
    try:
        pid = front('import os', 'os.getpid()')
        print('kernel', pid, flush=True)
        front(f'session = note(Session(endless, source, folder={str(work/"run")!r})); panel = session.panel(); session.run()')
        front('for tab in panel.shelf.tabs.values(): tab.value = True')
        rows, active, last, bytes_before = [], 0., time.monotonic(), front.bytes
        while active < minutes*60:
            time.sleep(every)
            step, state, film = front('', '(session.snapshot.step, session.snapshot.state, len(session.snapshot.film))', timeout=3600)
            now = time.monotonic()
            active, last = active + min(now - last, 4*every), now  # it may have been stopped for a while
            rows.append((round(active), step, round(rss(pid), 2), film))
            if state != 'running': raise RuntimeError(front('', 'session.snapshot.error'))
            if len(rows) % 20 == 0: print(rows[-1], 'MB an hour so far', round(slope(rows), 1), flush=True)
        objects, history = front('import gc', 'len(gc.get_objects()), len(session.snapshot.history)')
        sent = (front.bytes - bytes_before)/active/1e6
    finally: front.close()
    return slope(rows), dict(target='< 20', minutes=minutes, steps=rows[-1][1], first_mb=rows[0][2], last_mb=rows[-1][2], highest_mb=max(r[2] for r in rows), history=history, film=rows[-1][3], objects=objects,
                             megabytes_per_second_sent=sent, seconds_step_mb_film=rows[::max(1, len(rows)//120)])


def slope(rows):
    "MB an hour over the last five sixths."
    late = np.array([r for r in rows if r[0] > rows[-1][0]/6], float)
    return float(np.polyfit(late[:, 0]/3600, late[:, 2], 1)[0])


# --- in a browser

PAINTS = '''
window.jointsegPaints = [];
const now = () => performance.timeOrigin + performance.now();
document.addEventListener('jointseg-painted', e => jointsegPaints.push({at: now(), ...(e.detail || {})}), true);
document.addEventListener('keydown', () => { window.jointsegKey = now() }, true);
document.addEventListener('click', () => { window.jointsegClick = now() }, true);
'''
RUN = '[data-command="notebook:run-cell-and-select-next"]'


class Browser:
    "JupyterLab on a notebook of one cell, in Chromium."
    def __init__(self, work, cell, name='bench'):
        from playwright.sync_api import sync_playwright
        self.work = Path(work)
        own = {k: str(self.work/k) for k in ('HOME', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith('JUPYTER_')} | own
        self.server = subprocess.Popen([str(Path(sys.executable).absolute().with_name('jointseg-lab')), '--no-browser'], cwd=self.work, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.server.stdout:
            if found := re.search(r'The live panel: (http\S+?)/doc/tree/\S+\?(token=\S+)', line): break
        else: raise RuntimeError('the server did not start')
        threading.Thread(target=lambda: [None for _ in self.server.stdout], daemon=True).start()
        self.base, self.token = found[1], found[2]
        self.playwright = sync_playwright().start()
        self.chromium = self.playwright.chromium.launch(executable_path=shutil.which('chromium'), args=FLAGS)
        self.received, self.frames, self.front = 0, 0, None
        self.open(name, cell)

    def open(self, name, cell):
        "A page on a new notebook with this cell."
        source = dict(id='bench', cell_type='code', metadata={}, source=cell, outputs=[], execution_count=None)
        kernel = dict(display_name='Python 3 (ipykernel)', language='python', name='python3')
        (self.work/f'{name}.ipynb').write_text(json.dumps(dict(cells=[source], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
        self.before = set(self.connections())
        self.page = self.chromium.new_page(viewport=dict(width=1440, height=1000))
        self.page.set_default_timeout(180_000)
        self.page.add_init_script(PAINTS)
        self.page.on('websocket', lambda ws: ws.on('framereceived', self.count))
        for _ in range(200):
            start = time.time()
            try: self.page.goto(f'{self.base}/doc/tree/{name}.ipynb?{self.token}'); break
            except Exception: time.sleep(0.3)
        self.page.wait_for_selector('.jp-CodeCell'); self.page.wait_for_selector(RUN)
        self.page.wait_for_function("document.querySelector('#jp-main-statusbar') && document.querySelector('#jp-main-statusbar').innerText.includes('Idle')")
        self.ready = time.time() - start

    def count(self, payload): self.received += len(payload); self.frames += 1

    def connections(self): return list((self.work/'JUPYTER_RUNTIME_DIR').glob('kernel-*.json'))

    def join(self):
        "A second line to the page's kernel, past the server."
        new, = set(self.connections()) - self.before
        self.front = Front(code=None, connection=new)
        self.front.take = lambda message: None
        return self.front

    def run(self):
        "Press the button that runs the cell; the moment of the click, in milliseconds."
        self.page.click(RUN)
        return self.page.evaluate('window.jointsegClick')

    def paints(self): return self.page.evaluate('window.jointsegPaints')

    def end_page(self):
        "Leave a page; what it trained is stopped first, or it would go on beside the next one."
        if self.front:
            self.front('session.stop(); session.wait(timeout=60)')
            self.front.close(); self.front = None
        self.page.close()

    def close(self):
        try:
            if self.front: self.front.close()
            self.chromium.close(); self.playwright.stop()
        finally:
            self.server.terminate()
            try: self.server.wait(20)
            except subprocess.TimeoutExpired: self.server.kill()


LIVE = '''from jointseg_nb.lab import live
from jointseg_nb.recipes import recipe
session = live(recipe=recipe('pocket', steps=2000))
session.panel()'''
WATCHED = BEGIN + "session = note(Session(endless, source)); session.run()\nsession.panel()"


def first_paint_s(work, quick):
    "From the click on the cell of `jointseg-lab`, in a fresh kernel, to its panel on the page and to the first masks of a network that has made a step; before that (`ready`), from the address to a kernel that says it is idle, the imports included."
    rows, browser = [], None
    try:
        for i in range(2 if quick else 5):
            if browser is None: browser = Browser(work, LIVE)
            else: browser.end_page(); browser.open(f'bench{i}', LIVE)
            clicked = browser.run()
            at = browser.page.evaluate("""() => new Promise(done => { const look = () => { const e = document.querySelector('.jointseg-status');
                if (e && e.innerText.trim() && e.getBoundingClientRect().height) requestAnimationFrame(() => done(performance.timeOrigin + performance.now())); else requestAnimationFrame(look) }; look() })""")
            row = dict(ready=browser.ready, panel=(at - clicked)/1000)
            front = browser.join()
            begun = front('', 'session.snapshot.seq and 1')
            browser.page.wait_for_function('window.jointsegPaints.some(p => p.step >= 1)', timeout=60_000)
            row['masks'] = (next(p['at'] for p in browser.paints() if (p.get('step') or 0) >= 1) - clicked)/1000
            rows.append(row | dict(begun=begun))
    finally:
        if browser: browser.close()
    panel, masks = ([r[k] for r in rows] for k in ('panel', 'masks'))
    return statistics.median(panel), dict(target='< 2', first_masks_s=statistics.median(masks), target_of_first_masks='< 5', rounds=rows)


def mb_per_s(work, quick):
    "Bytes that the page's websockets receive while a panel is open and the network trains; beside it, the way from a snapshot to the screen and the slider with a real browser."
    browser = Browser(work, WATCHED)
    try:
        browser.run()
        browser.page.wait_for_selector('.jointseg-status')
        front = browser.join()
        front.until('session.snapshot.step >= 10')
        start, bytes_before, frames_before, first = time.time(), browser.received, browser.frames, front('', 'session.snapshot.step')
        browser.page.wait_for_timeout(5_000 if quick else 60_000)
        seconds, sent, frames = time.time() - start, browser.received - bytes_before, browser.frames - frames_before
        steps = front('', 'session.snapshot.step') - first
        said, paints = front('', 'said'), [p for p in browser.paints() if p['at'] > start*1000]
        sliders = browser_slider(browser, front, 5 if quick else 30)
        painted, missed = paint_times(said, paints)
    finally: browser.close()
    return sent/seconds/1e6, dict(target='< 1', seconds=seconds, messages_per_second=frames/seconds, steps_per_second=steps/seconds, paints=painted, looks_never_painted=missed, paints_per_second=len(paints)/seconds, slider_with_a_browser_ms=sliders)


def paint_times(said, paints):
    "Milliseconds from the publication of the snapshot that brought a look to the first paint of that look, and how many looks were never painted."
    first, painted = {}, {}
    for w, _, _, look in said: first.setdefault(look, w*1000)
    for p in paints: painted.setdefault(p.get('step'), p['at'])
    due = [look for look, w in first.items() if look > 0 and paints and paints[0]['at'] < w < paints[-1]['at'] - 1000]
    return [round(painted[k] - first[k], 1) for k in due if k in painted], sum(k not in painted for k in due)


def browser_slider(browser, front, n):
    "The ratio moved by keys, as in `slider_p95_ms`."
    found, rng = [], np.random.default_rng(1)
    front(NOTED)
    for i in range(n):
        browser.page.wait_for_timeout(float(rng.uniform(300, 900)))
        known = front('', 'len(session.snapshot.changes)')
        browser.page.focus('.jointseg-lr-ratio .noUi-handle')
        browser.page.keyboard.press('ArrowRight' if i % 2 else 'ArrowLeft')
        pressed = browser.page.evaluate('window.jointsegKey')/1000
        front.until(f'len(session.snapshot.changes) > {known}', 30)
        found.append(lateness(front, pressed, front('', f'session.snapshot.changes[{known}][:1]')))
    return lateness_figures(found)


FILM = '''
import numpy as np, torch
from jointseg_nb.canvas import EyesCanvas
from jointseg_nb.data import embedded
from jointseg_nb.fit import show_eyes
from jointseg_nb.looks import Look, make_frame
from jointseg_nb.snapshots import Snapshot
eyes = embedded(8, seed=3, size=224)
shown = show_eyes(eyes, torch.arange(8), crop=224)
def invented(step):
    "Predictions that come closer to the truth: parts of it are elsewhere, in patches."
    g = np.random.default_rng(step)
    wrong = np.kron(g.random((8, 28, 28)) > step/FRAMES, np.ones((8, 8), bool))
    masks = np.where(wrong, np.roll(shown.masks, (step % 17, step % 11), (1, 2)), shown.masks).astype(np.uint8)
    return Look(step, masks, tuple(g or '-' for g in shown.grades), None, None)
looks = [invented(i) for i in range(FRAMES)]
film = tuple(map(make_frame, looks))
canvas = EyesCanvas()
canvas.begin(shown)
canvas.update(Snapshot(seq=1, shown=shown, look=looks[-1], film=film))
canvas'''


def scrub_fps(work, quick):
    "Frames a second when the time line is dragged back and forth over the film of a paused run: 8 eyes of 224 px, photograph under prediction under outlines, 200 frames of film."
    browser = Browser(work, f'FRAMES = {30 if quick else 200}' + FILM)
    try:
        browser.run()
        browser.page.wait_for_selector('.jointseg-timeline')
        browser.page.wait_for_function(f"+document.querySelector('.jointseg-timeline').max == {29 if quick else 199}")
        browser.page.wait_for_timeout(2000)
        size = browser.page.evaluate("[...document.querySelectorAll('.jointseg-grid-of-eyes canvas')].map(c => [c.width, c.height])")
        rounds = [browser.page.evaluate('''async seconds => {
            const bar = document.querySelector('input.jointseg-timeline'), low = +bar.min, high = +bar.max, draws = window.jointsegPaints.length, start = performance.now();
            let asked = 0, at = low, by = 1;
            while (performance.now() - start < seconds*1000) {
                at += by; if (at >= high || at <= low) by = -by;
                bar.value = at; bar.dispatchEvent(new Event('input', {bubbles: true})); asked++;
                await new Promise(requestAnimationFrame); }
            const got = window.jointsegPaints.slice(draws), drawn = got.filter((p, i) => i == 0 || p.step != got[i - 1].step).length;
            return {seconds: (performance.now() - start)/1000, asked, drawn, ms_of_a_draw: got.map(p => p.ms).sort((a, b) => a - b)[got.length >> 1], frames: high - low + 1} }''', 2 if quick else 10) for _ in range(1 if quick else 3)]
    finally: browser.close()
    each = [r['drawn']/r['seconds'] for r in rounds]
    return statistics.median(each), dict(target='>= 30', canvases=size, rounds=rounds)


PARTS = (panel_vs_headless, slider_p95_ms, first_paint_s, mb_per_s, scrub_fps)


def figures(out):
    "The figures by their names, from the parts that have been run."
    found = {name: part['figure'] for name, part in out['parts'].items()}
    if 'first_paint_s' in out['parts']: found['first_masks_s'] = out['parts']['first_paint_s']['first_masks_s']
    if paints := out['parts'].get('mb_per_s', {}).get('paints'): found['paint_p95_ms'] = p95(paints)
    return {k: round(v, 4) for k, v in found.items()}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--quick', action='store_true', help='less of everything; printed only')
    ap.add_argument('--only', default='', help='parts, by comma')
    ap.add_argument('--soak', type=float, metavar='MINUTES', help='train so long under an open panel and measure memory; nothing else')
    a = ap.parse_args()
    import torch
    path = Path(__file__).with_name('lab_cuda.json' if torch.cuda.is_available() else 'lab.json')
    out = json.loads(path.read_text()) if path.exists() and not a.quick else dict(figures={}, parts={})
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{platform.machine()}, {platform.system()}, {os.cpu_count()} cores'
    facts = dict(machine=machine, date=time.strftime('%Y-%m-%d'), command='python benchmarks/lab.py ' + ' '.join(sys.argv[1:]), python=platform.python_version(),
                 **{n: version(n) for n in ('torch', 'ipykernel', 'ipywidgets', 'anywidget', 'jupyterlab')})
    jobs = [(kernel_mb_per_hour, a.soak)] if a.soak else [(f, None) for f in PARTS if not a.only or f.__name__ in a.only.split(',')]
    failed = []
    for part, minutes in jobs:
        with tempfile.TemporaryDirectory() as work:
            os.environ['JOINTSEG_CACHE'] = f'{work}/cache'
            try: figure, more = part(Path(work), minutes or a.quick)
            except Exception as e:
                print(f'{part.__name__} failed: {type(e).__name__}: {e}', flush=True); failed.append(part.__name__)
                continue
        print(part.__name__, round(figure, 3), json.dumps({k: v for k, v in more.items() if not isinstance(v, (list, dict)) or len(str(v)) < 600}), flush=True)
        if a.quick: continue
        out = json.loads(path.read_text()) if path.exists() else out  # the soak may have been written meanwhile
        out['parts'][part.__name__] = dict(figure=figure, **facts, doc=part.__doc__, **more)
        out['figures'] = figures(out)
        path.write_text(json.dumps(out, indent=1) + '\n')
    sys.exit(bool(failed))


if __name__ == '__main__': main()
