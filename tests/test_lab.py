"""The panel and its painter: what a panel that fails does to the others, and what a named session is."""
import threading, time
import pytest, torch
from jointseg_nb.data import Source, embedded
from jointseg_nb.lab import Painter, live
from jointseg_nb.session import Session
from jointseg_nb.recipes import recipe

SMALL = recipe('pocket', steps=6, clf_batch=4, seg_batch=4, precision='float32')

@pytest.fixture(scope='module')
def source(): return embedded(30, size=64)

def until(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, 'it did not come to that'
        time.sleep(0.01)

def test_a_named_session_that_failed_is_not_found_again(source, tmp_path):
    first = live('failing', recipe=SMALL, source=tmp_path/'eyes')
    assert first.wait().state == 'failed'
    second = live('failing', recipe=SMALL, source=tmp_path/'eyes')
    assert second is not first and second.wait().state == 'failed'
    assert live('works', recipe=SMALL, source=source) is live('works', recipe=SMALL, source=source)
    live('works', recipe=SMALL, source=source).stop().wait()

def test_the_painter_survives_a_failing_panel(source):
    session = Session(SMALL, source)
    bad, good = session.panel(), session.panel()
    painted = bad.paint
    def broken(snap): raise OSError('no ink')
    bad.paint = broken
    session.step()
    until(lambda: 'step <b>1</b>' in good.texts['status'].value and 'no ink' in bad.texts['error'].value)
    bad.paint = painted
    session.step()
    until(lambda: 'step <b>2</b>' in good.texts['status'].value and 'step <b>2</b>' in bad.texts['status'].value and not bad.texts['error'].value)
    good.close(); bad.close()

def test_a_painter_whose_panel_is_beyond_words(source):
    session = Session(SMALL, source)
    painter, seen = Painter(session), []
    class Dead:
        def paint(self, snap): raise OSError
    class Alive:
        def paint(self, snap): seen.append(snap.step)
    painter.panels += [Dead(), Alive()]
    session._listeners.append(painter.wake)
    session.step(2)
    until(lambda: 2 in seen)
    assert [type(p) for p in painter.panels] == [Alive]
    painter.panels.clear()
    until(lambda: painter.thread is None)

def test_a_painter_that_ends_badly_makes_room_for_another(source):
    painter = Painter(Session(SMALL, source))
    class Worst:
        def paint(self, snap): raise SystemExit
    painter.panels.append(Worst())
    painter.thread = threading.current_thread()
    with pytest.raises(SystemExit): painter.work()
    assert painter.thread is None


def test_a_choice_that_cannot_be_is_refused_in_the_panel(source):
    session = Session(SMALL, Source(source.images, source.masks))
    session.step()
    panel = session.panel()
    panel.knobs['agents'].value = 'both'
    assert 'nothing to learn from' in panel.texts['error'].value and panel.knobs['agents'].value == 'segmenter'
    panel.close()
