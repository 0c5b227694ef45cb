"""The live lab in a real kernel: training goes on while cells run, and a slider's message reaches the next step."""
import ast, time
import pytest

SMALL = '''
import time
from jointseg_nb.data import embedded
from jointseg_nb.lab import live
from jointseg_nb.session import Session
from jointseg_nb.recipes import recipe
small = recipe('pocket', steps=100000, clf_batch=4, seg_batch=4, precision='float32')
source = embedded(40, size=64)
'''

# notes how many steps were done when a knob was asked for; no other snapshot can come in between
NOTE = '''
asked, turn = [], session.set
def noted(**knobs):
    with session._cv:
        asked.append(session.snapshot.step)
        return turn(**knobs)
session.set = noted
'''

class Kernel:
    "A Python kernel, asked the way a notebook asks it."
    def __init__(self, client): self.client = client

    def __call__(self, code, value='None', timeout=120):
        "Run a cell; the value of an expression after it."
        reply = self.client.execute(code, user_expressions=dict(value=value), reply=True, timeout=timeout)['content']
        assert reply['status'] == 'ok', '\n'.join(reply.get('traceback', ()))
        found = reply['user_expressions']['value']
        assert found['status'] == 'ok', found
        return ast.literal_eval(found['data']['text/plain'])

    def move(self, model_id, **state):
        "What the browser sends when a widget is moved."
        content = dict(comm_id=model_id, data=dict(method='update', state=state, buffer_paths=[]))
        self.client.shell_channel.send(self.client.session.msg('comm_msg', content))

    def until(self, expression, seconds=60):
        "Wait until an expression is true; how long that took."
        start = time.monotonic()
        while not self('', expression):
            assert time.monotonic() - start < seconds, f'{expression} is not true after {seconds} s: {self("", "repr(session.snapshot.state)")}'
            time.sleep(0.02)
        return time.monotonic() - start

@pytest.fixture(scope='module')
def kernel():
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(kernel_name='python3', startup_timeout=120)
    try:
        k = Kernel(client)
        k(SMALL)
        yield k
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

def test_cells_run_while_training_goes_on(kernel):
    took = kernel('t = time.monotonic(); session = Session(small, source).run(); panel = session.panel(); t = time.monotonic() - t', 't')
    assert took < 5
    kernel.until('session.snapshot.step >= 3')
    first = kernel('', 'session.snapshot.step')
    assert kernel('x = sum(range(10**6))', 'x') == 499999500000
    kernel.until(f'session.snapshot.step >= {first + 3}')
    assert kernel('', 'session.snapshot.state') == 'running'

def test_slider_reaches_the_next_step(kernel):
    ratio = kernel('', 'panel.knobs["lr_ratio"].model_id')
    kernel(NOTE)
    kernel.move(ratio, value=30.0)
    kernel.until('any(c[1:] == ("lr_ratio", 0.1, 30.0) for c in session.snapshot.changes)')
    asked, taken = kernel('', 'asked, session.snapshot.changes[-1][0]')
    assert len(asked) == 1 and 0 <= taken - asked[0] <= 1 # at most the step that was under way went by

def test_many_moves_keep_the_last(kernel):
    ratio = kernel('', 'panel.knobs["lr_ratio"].model_id')
    for i in range(300): kernel.move(ratio, value=1.0 + i/300)
    kernel.move(ratio, value=2.5)
    kernel.until('session.snapshot.values["lr_ratio"] == 2.5 and not session.snapshot.waiting')
    assert kernel('', 'session.setup.trainer.values["lr_ratio"]') == 2.5

def test_switch_and_buttons(kernel):
    kernel.move(kernel('', 'panel.switches.rows[0][0].model_id'), value=False)
    kernel.until('session.setup.trainer.model.switches.tolist()[0][0] is False')
    kernel('panel.buttons["pause"].click(); session.wait()')
    step = kernel('', 'session.snapshot.step')
    kernel('time.sleep(1)')
    assert kernel('', '(session.snapshot.state, session.snapshot.step)') == ('paused', step)
    kernel('panel.buttons["step"].click()')
    kernel.until(f'session.snapshot.step == {step + 1}')

def test_second_panel_agrees(kernel):
    kernel('other = session.panel(); other.knobs["label_noise"].value = 0.4')
    kernel.until('panel.knobs["label_noise"].value == 0.4')
    kernel('other.close()')

def test_an_exception_is_shown_and_leaves_the_run(kernel):
    kernel('def broken(): raise RuntimeError("out of luck")\nsession.setup.trainer.step = broken; session.run()')
    kernel.until('session.snapshot.state == "failed"')
    kernel.until('"out of luck" in panel.texts["error"].value')
    assert kernel('', 'len(session.snapshot.history) > 0 and session.setup is not None')
    kernel('panel.buttons["reset"].click(); session.run()')
    kernel.until('session.snapshot.state == "running" and session.snapshot.step > 0 and not panel.texts["error"].value')
    kernel('session.stop().wait()')

def test_named_sessions(kernel):
    kernel('a = live("a", recipe=small, source=source); b = live("b", recipe=small, source=source)')
    assert kernel('', 'live("a", recipe=small, source=source) is a and a is not b')
    kernel.until('a.snapshot.step > 1 and b.snapshot.step > 1')
    kernel('a.set(label_noise=0.8); a.step(); b.step()')
    assert kernel('', 'a.snapshot.values["label_noise"], b.snapshot.values["label_noise"]') == (0.8, 0.0)
    kernel('a.stop().wait(); b.stop().wait()')

FIELD_AND_BUTTON = """
from comm import create_comm, get_comm_manager
heard, field = [], create_comm(target_name='field')
def changed(message):
    time.sleep(0.01)
    heard.append(message['content']['data'])
def opened(button, message):
    button.send({}) # from the thread that the browser's messages go to; the field was last sent from the cell
    button.on_msg(lambda message: heard.append(message['content']['data']))
field.on_msg(changed)
get_comm_manager().register_target('button', opened)
"""

def test_what_the_browser_sends_is_heard_in_order(kernel):
    "A button is pressed after a field was changed, and must not be heard before it. JupyterLab sends both to a subshell."
    kernel(FIELD_AND_BUTTON)
    field, session = kernel('', 'field.comm_id'), kernel.client.session
    kernel.client.control_channel.send(session.msg('create_subshell_request'))
    reply = kernel.client.control_channel.get_msg(timeout=60)
    assert reply['header']['msg_type'] == 'create_subshell_reply'
    def send(kind, **content):
        message = session.msg(kind, content)
        message['header']['subshell_id'] = reply['content']['subshell_id']
        kernel.client.shell_channel.send(message)
    send('comm_open', comm_id='button', target_name='button', data={})
    kernel.until("'button' in get_comm_manager().comms")
    for i in range(20): send('comm_msg', comm_id=('button' if i % 2 else field), data=i)
    kernel.until('len(heard) == 20')
    assert kernel('', 'heard') == list(range(20))
