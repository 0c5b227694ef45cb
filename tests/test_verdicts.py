"""The rule of verdict, the scores of pairs, and what is written of an experiment."""
import json, math, re, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import trees
from jointseg_nb import commands, experiments as X, tables as T
from jointseg_nb.evaluate import paired_interval
from jointseg_nb.experiments import SUITES, conditions, run_all
from jointseg_nb.recipes import Recipe, recipe_to_json
from jointseg_nb.tables import as_markdown, difference, first_answer, judged_by, map_steps, plot_claims, plot_curves, plot_map, plot_map_steps, plot_masks, plot_noise, plot_suite, rates_of, reproduce, row_of, summary, tables_of
from jointseg_nb.verdicts import CLAIMS, Comparison, compare, judge, masks_needed, masks_saved, sooner, together, verdicts
from test_experiments import arena, base, made_up, without_time

@pytest.mark.parametrize('low, high, no_loss, verdict', [(.01, .05, False, 'reproduced'), (-.01, .05, False, 'undecided'), (-.05, -.01, False, 'not reproduced'), (0, .1, False, 'undecided'),
    (-.019, .05, True, 'reproduced'), (-.021, .05, True, 'undecided'), (-.05, -.03, True, 'not reproduced'), (-.015, -.005, True, 'reproduced'),
    (-math.inf, math.inf, False, 'undecided'), (-math.inf, math.inf, True, 'undecided')])
def test_the_rule(low, high, no_loss, verdict): assert judge(low, high, no_loss) == verdict

def test_all_comparisons_of_a_claim_must_hold():
    yes, no, open_ = 'reproduced', 'not reproduced', 'undecided'
    assert [together(v) for v in ([yes, yes], [yes, open_], [open_, no], [no, yes], [])] == [yes, open_, no, no, open_]

def test_every_claim_speaks_of_conditions_that_are_there():
    names = {c.name for c in conditions()}
    assert len({c.name for c in CLAIMS}) == len(CLAIMS) == 14
    for claim in CLAIMS:
        for c in claim.comparisons + claim.also: assert c.better in names and (c.worse in names or isinstance(c.worse, float)), claim.name
    assert {c.name for c in judged_by()} <= names and not any(c.name.startswith('map') for c in judged_by())
    of = {c.name for c in first_answer()}
    assert of < {c.name for c in judged_by()} and not any('px' in n for n in of)
    for claim in CLAIMS: assert any(c.better in of and (c.worse in of or isinstance(c.worse, float)) for c in claim.comparisons), f'a first answer says nothing of {claim.name}'

@pytest.mark.parametrize('only, asked', [(None, first_answer()), (['updates'], conditions(['updates']))])
def test_a_first_answer_is_short(tmp_path, monkeypatch, only, asked):
    "As many steps as it says, no search, and its own conditions unless others are asked for."
    called = []
    monkeypatch.setattr(T, 'run_all', lambda *a: called.append(a))
    reproduce(tmp_path, 'pocket', only, seeds=5, arena=arena, fast=True)
    (_, todo, recipe, _, seeds, search, *_), = called
    assert (todo, recipe.steps, seeds, search) == (asked, T.FAST['steps'], T.FAST['seeds'], False) and 0 <= recipe.warmup < recipe.steps

def test_sooner():
    slow, quick = [[1, .1], [2, .2], [3, .3], [4, .4]], [[1, .4], [2, .5], [3, .6], [4, .7]]
    assert (sooner(quick, slow), sooner(slow, quick), sooner(slow, slow)) == ((.75, True), (-1., False), (0, True))
    assert sooner([[4, None]], slow) == (-1, False)
    assert sooner([[1, .1], [2, .2]], [[1, .5], [2, .3]]) == (.5 - 2, False), 'theirs was better once than in the end, ours never'

def test_masks_needed():
    row = [(8, .1), (16, .2), (64, .4)]
    assert [masks_needed(row, g) for g in (0, .1, .15, .2, .3, .4)] == pytest.approx([3, 3, 3.5, 4, 5, 6]) and masks_needed(row, .5) is None
    assert masks_needed([(8, .3), (16, .2), (64, .4)], .25) == 3, 'the first time it is reached'

def test_masks_saved():
    "The goal is what the other reaches with 80. A number that nobody tried is left out; where a run of one seed is missing, that seed says nothing."
    def rows(numbers, seeds=(0,)):
        of = lambda n, by: dict(masks=n or 640, metrics=dict(miou=math.log2(n or 640)/20 + by))
        return {((f'{name}, {n} masks' if n else name), s): of(n, by) for s in seeds for name, by in (('a', .05), ('b', 0.)) for n in numbers}
    saved = lambda by, seed=0: masks_saved(by, 'a', 'b', seed)
    for numbers in ((8, 24, 80, 240, 0), (8, 80, 0), (8, 80, 240, 0)): assert saved(rows(numbers)) == (pytest.approx(1.), True)
    lost = rows((8, 80, 0), (0, 1))
    del lost['a, 8 masks', 1]
    assert saved(lost)[1] and saved(lost, 1) is None and saved(rows((80, 0))) is None
    bent = rows((8, 80, 240, 0))
    for row in bent.values(): row['metrics']['miou'] = min(row['metrics']['miou'], .37)   # the goal is reached with 80, whatever comes after
    assert saved(bent) == (pytest.approx(1.), True)

def test_masks_are_not_counted_where_one_of_the_runs_failed():
    of = lambda name, m, seed: dict(condition=f'{name}, {m} masks' if m else name, seed=seed, masks=m or 640, metrics=dict(miou=math.log2(m or 640)/20 + .05*(name == 'a') + .001*seed))
    rows = [of(name, m, seed) for name in 'ab' for m in (8, 24, 80, 240, 0) for seed in range(3)]
    asked = Comparison('a', 'b', 'masks')
    assert (whole := compare(asked, rows))['verdict'] == 'reproduced' and whole['failed'] == 0
    broken = [dict(condition=r['condition'], seed=0, failed='the loss is nan') if (r['condition'], r['seed']) == ('a, 80 masks', 0) else r for r in rows]
    found = compare(asked, broken)
    assert (found['seeds'], found['failed'], found['verdict']) == (2, 1, 'undecided')
    few = [dict(condition=r['condition'], seed=r['seed'], failed='there are only 200 masks') if '240' in r['condition'] else r for r in rows]
    assert compare(asked, few)['failed'] == 0 and compare(asked, few)['seeds'] == 3, 'more than there are: left out'

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "All conditions, three seeds, made up."
    patch, out = pytest.MonkeyPatch(), tmp_path_factory.mktemp('all')
    patch.setattr(X, 'run_once', made_up)
    rows = run_all(out, conditions(), base, arena, search=False, say=lambda t: None)
    patch.undo()
    return rows

def test_every_claim_gets_a_verdict_and_everything_a_picture(done, tmp_path):
    t = tables_of(done, base, arena, 'made up')
    assert json.loads(json.dumps(t, allow_nan=False)) == t and Recipe(**t['recipe']) == base
    by = {c['claim']: c for c in t['claims']}
    assert set(by) == {c.name for c in CLAIMS}
    for c in t['claims']: assert {'claim', 'paper', 'ours', 'ci', 'seeds', 'verdict'} <= c.keys() and c['seeds'] == 3
    assert by['cooperation-segmentation']['verdict'] == by['cooperation-classification']['verdict'] == by['any-size']['verdict'] == 'reproduced'
    assert by['random-init-collapse']['verdict'] == 'not reproduced', 'half of joint is less than UNet'
    T.write_tables(tmp_path, t, arena)
    assert {p.stem for p in tmp_path.glob('*.png')} == set(SUITES) | {'claims', 'convergence', 'where_it_helps', 'few_masks', 'random_labels', 'map_steps'}
    assert plot_map(t).axes[0].lines and plot_noise(t).axes[0].lines and plot_masks(t).axes[0].lines and plot_curves(t).axes[0].lines
    page = (tmp_path/'verdicts.md').read_text()
    assert all(f'## {c.name}: ' in page for c in CLAIMS) and 'joint against UNet, pre-trained, equal work, mIoU' in page and not re.search(r'\b(inf|nan|None)\b', page)
    text = as_markdown(t)
    assert '| joint | 3 |' in text and not re.search(r'\b(inf|nan|None)\b', text)
    for suite in SUITES: assert f'\n## {suite}\n' in text

def test_what_is_asked_for_by_a_wrong_name_is_refused(done):
    t = tables_of(done, base, arena)
    for wrong, says in [(lambda: T.suite_table(t, 'table9'), "suite='table9'; allowed: cooperation"), (lambda: plot_suite(t, 'table1', ('iou',)), 'scores=iou; allowed: miou'),
                        (lambda: difference(t, 'joint', 'UNet', 'iou'), "score='iou'"), (lambda: run_all('out', [], base, arena, workers=0), 'workers=0'), (lambda: run_all('out', [], base, arena, seeds=0), 'seeds=0'),
                        (lambda: X.Condition('x', effort=-1.), 'effort=-1.0')]:
        with pytest.raises(ValueError, match=re.escape(says)): wrong()
    assert not Path('out').exists()

def test_the_commonest_answer_stands_beside_every_accuracy(done):
    t = tables_of([r | dict(metrics=r['metrics'] | dict(binary_majority=.69)) for r in done], base, arena)
    assert '| always the commonest answer | |  |  |  | 30.0 |  | 69.0 |' in T.suite_table(t, 'table34')
    assert [[l.get_xdata()[0] for l in ax.lines if l.get_linestyle() == ':'] for ax in plot_suite(t, 'table34', ('miou', 'top1', 'binary')).axes] == [[], [.3], [.69]]

def test_one_seed_decides_nothing(done):
    t = tables_of([r for r in done if r['seed'] == 0], base, arena)
    assert {c['verdict'] for c in t['claims']} <= {'undecided'} and t['claims'][0]['ci'] == [None, None]
    as_markdown(t), plot_claims(t), plot_suite(t, 'table1'), plot_map(t)

def test_a_run_under_two_names_is_counted_once(done):
    ours = {r['key'] for r in done if r['condition'] == 'joint'}
    rows = [r | dict(seconds=3600.*(r['key'] in ours)) for r in done]
    assert sum(r['seconds'] > 0 for r in rows) > 3 and tables_of(rows, base, arena)['made']['hours'] == 3

def test_what_failed_is_told_and_compared_with_nothing(done):
    rows = [dict(key=r['key'], condition='joint', seed=r['seed'], failed='the loss is nan', seconds=1.) if r['condition'] == 'joint' else r for r in done]
    assert compare(Comparison('joint', 'segmenter alone'), rows) is None and compare(Comparison('joint', .1, 'gain'), rows) is None
    t = tables_of(rows, base, arena)
    assert row_of(t, 'joint') is None and summary(rows)[0]['failed'] == ['the loss is nan']*3 and 'failed: the loss is nan' in as_markdown(t)
    plot_suite(t, 'cooperation'), plot_masks(t), plot_curves(t)

def test_one_seed_that_failed_is_left_out(done):
    rows = [dict(key=r['key'], condition='joint', seed=0, failed='x', seconds=1.) if (r['condition'], r['seed']) == ('joint', 0) else r for r in done]
    found = compare(Comparison('joint', 'segmenter alone'), rows)
    assert (found['seeds'], found['failed'], found['verdict']) == (2, 1, 'undecided') and compare(Comparison('joint', 'segmenter alone'), rows[1:])['failed'] == 0
    said = next(c for c in tables_of(rows, base, arena)['claims'] if c['claim'] == 'cooperation-segmentation')
    assert '1 more failed' in said['ours'] and said['verdict'] == 'undecided'
    assert difference(tables_of(rows, base, arena), 'joint', 'segmenter alone')[0] == pytest.approx(.1)

def test_nothing_at_all(tmp_path):
    t = reproduce(tmp_path, base, arena=arena, run=False)
    assert t['rows'] == t['claims'] == [] and (tmp_path/'tables.md').exists() and not list(tmp_path.glob('*.png'))

def test_a_tiny_table_end_to_end_is_the_same_again(tmp_path):
    "Two conditions, really trained; the same figures from the same seed."
    few = dict(base=X.replace(base, steps=2), only=['updates'], seeds=1, arena=arena, search=False, device='cpu', say=lambda t: None)
    a, b = reproduce(tmp_path/'a', **few), reproduce(tmp_path/'b', **few)
    assert without_time(a['rows']) == without_time(b['rows'])
    assert {'tables.json', 'tables.md', 'updates.png', 'figure6.png'} <= {p.name for p in (tmp_path/'a').iterdir()}
    assert reproduce(tmp_path/'a', **dict(few, run=False))['rows'] == a['rows']

def test_stopped_in_the_middle_there_are_tables_of_what_is_done(tmp_path, monkeypatch):
    n = []
    def stop(*a):
        n.append(1)
        if len(n) == 4: raise KeyboardInterrupt
        return made_up(*a)
    monkeypatch.setattr(X, 'run_once', stop)
    with pytest.raises(KeyboardInterrupt): reproduce(tmp_path, base, ['cooperation'], arena=arena, search=False, say=lambda t: None)
    rows = json.loads((tmp_path/'tables.json').read_text())['rows']
    assert rows[0]['condition'] == 'joint' and all(r['seeds'] == [0, 1, 2] and r['scores'] == rows[0]['scores'] for r in rows), 'joint, by all its names'

benchmarks = Path(__file__).parent.parent/'benchmarks'
kept = benchmarks/'tables.json'

def test_the_kept_tables_are_what_the_kept_runs_say():
    "Every figure of benchmarks/tables.json comes from a line of benchmarks/tables/runs.jsonl."
    said, pocket = json.loads(kept.read_text()), X.recipe('pocket')
    most = max(len(r['seeds']) for r in said['rows'])
    rows = X.Plan(conditions(), pocket, X.Arena(), most, rates=rates_of(said, pocket, X.Arena())).rows(X.read_runs(benchmarks/'tables'))
    again = tables_of(rows, pocket, X.Arena())
    assert len(again['rows']) > 30 and all(again[k] == said[k] for k in ('recipe', 'photographs', 'rows', 'claims')) and again['made']['machine'] == said['made']['machine']

def called(argv):
    "The exit code of `jointseg-tables`; None where all went well."
    try: commands.tables(argv)
    except SystemExit as e: return e.code

@pytest.mark.parametrize('wrong, says', [(['--seeds', '0'], 'seeds=0'), (['--workers', '-1'], 'workers=-1'), (['--only', 'table1,table9'], 'table9'), (['--only', ''], 'table1'), (['--condition', 'UNet, pretrained'], "did you mean 'UNet, pre-trained'?"), (['--recipe', 'nope'], 'nope'),
    (['--recipe', 'nowhere.json'], 'nowhere.json'), (['--data', 'nowhere'], 'nowhere'), (['--seeds', 'three'], 'three'), (['--rates', 'nowhere.json'], 'nowhere.json'), (['--rates', __file__], 'no tables.json'),
    (['--label', 'has_dr'], "label='has_dr'"), (['--data', 'embedded:30'], "data='embedded:30'"), (['--rates', str(kept), '--fast'], '--fast'), (['--rates', str(kept), '--recipe', 'paper'], 'asked for')])
def test_what_cannot_be_done_is_refused_before_anything_is(tmp_path, capsys, wrong, says):
    assert called(['--out', str(tmp_path/'out'), *wrong]) == 2
    assert says in capsys.readouterr().err and not (tmp_path/'out').exists()

def test_what_cannot_be_held_out_is_refused_before_anything_is(tmp_path, capsys):
    recipe_file, eyes = tmp_path/'all.json', trees.write_folder(tmp_path/'eyes', n=20).path
    recipe_file.write_text(recipe_to_json(X.recipe('pocket', steps=2, valid=20)))
    assert called(['--out', str(tmp_path/'out'), '--data', str(eyes), '--recipe', str(recipe_file), '--only', 'updates']) == 2
    assert 'valid=20' in capsys.readouterr().err and not (tmp_path/'out').exists()

def test_a_kappa_below_nothing_is_told(done):
    t = tables_of([r | dict(metrics=r['metrics'] | dict(kappa=-.05, top1=-.05)) for r in done], base, arena)
    line = next(l for l in T.suite_table(t, 'table34').splitlines() if l.startswith('| joint |'))
    assert '-5.0 (-5.0 to -5.0)' in line and '| 0.0 (0.0 to 0.0) |' in line, 'no accuracy is below 0'

def test_out_is_a_folder(tmp_path, capsys):
    (tmp_path/'out').write_text('')
    assert called(['--out', str(tmp_path/'out')]) == 2 and 'is a file' in capsys.readouterr().err

def test_help_needs_no_torch():
    code = "import sys; from jointseg_nb import commands\ntry: commands.tables(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    assert '--only' in subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout

def test_the_command(tmp_path, monkeypatch, capsys):
    "Figures to standard output, progress to standard error, and a command in the file that names nobody's folder."
    monkeypatch.setattr(X, 'run_once', made_up)
    monkeypatch.setattr(T, 'figure6', lambda *a: None)
    assert called(['--out', str(tmp_path), '--only', 'cooperation', '--seeds', '2', '--workers', '1']) is None
    said = capsys.readouterr()
    assert 'cooperation-segmentation' in said.out and 'h left' in said.err and 'h left' not in said.out
    made = json.loads((tmp_path/'tables.json').read_text())['made']
    assert made['command'] == 'jointseg-tables --out DIR --recipe pocket --only cooperation --seeds 2 --workers 1' and {'date', 'machine', 'hours'} <= made.keys()
    assert called(['--out', str(tmp_path), '--only', 'cooperation', '--seeds', '2', '--report', '--workers', '1']) is None and capsys.readouterr().err == ''
    assert called(['--out', str(tmp_path/'modern'), '--recipe', 'modern', '--only', 'cooperation', '--label', 'grade', '--report']) is None
    assert json.loads((tmp_path/'modern/tables.json').read_text())['made']['command'].startswith('jointseg-tables --out DIR --recipe modern --only cooperation --seeds 3 --workers ')

def test_known_rates_are_not_searched_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(X, 'run_once', made_up)
    monkeypatch.setattr(T, 'figure6', lambda *a: None)
    few = ['--only', 'cooperation', '--seeds', '2', '--workers', '1']
    assert called(['--out', str(tmp_path/'a'), *few]) is None
    assert called(['--out', str(tmp_path/'b'), *few, '--rates', str(tmp_path/'a/tables.json')]) is None
    searches = [sum(r['search'] for r in X.read_runs(tmp_path/x).values()) for x in 'ab']
    rows = [json.loads((tmp_path/x/'tables.json').read_text())['rows'] for x in 'ab']
    assert searches[0] > 6 and searches[1] == 0 and without_time(rows[0]) == without_time(rows[1])

def test_one_row_is_made_again_by_its_name(tmp_path, monkeypatch, capsys):
    "A condition alone, at the rate that is known, gives the row that it has in its table."
    monkeypatch.setattr(X, 'run_once', made_up)
    monkeypatch.setattr(T, 'figure6', lambda *a: None)
    few = ['--seeds', '2', '--workers', '1']
    assert called(['--out', str(tmp_path/'a'), '--only', 'cooperation', *few]) is None
    assert called(['--out', str(tmp_path/'b'), '--condition', 'segmenter alone, equal work', '--rates', str(tmp_path/'a/tables.json'), *few]) is None
    (table, made), (one, again) = (((t := json.loads((tmp_path/x/'tables.json').read_text()))['rows'], t['made']) for x in 'ab')
    assert [r['condition'] for r in one] == ['segmenter alone, equal work'] and len(X.read_runs(tmp_path/'b')) == 2
    assert without_time(one) == without_time([r for r in table if r['condition'] == one[0]['condition']])
    assert again['command'] == "jointseg-tables --out DIR --recipe pocket --condition 'segmenter alone, equal work' --seeds 2 --workers 1 --rates RATES"

def test_photographs_of_a_folder_by_the_recipe_of_the_paper(tmp_path, capsys):
    "With real trainings: judged on what is held out, no word of whose folder it is, and nothing done twice."
    small = X.recipe('paper', size=64, crop=64, pad=4, steps=2, clf_batch=4, precision='float32')
    recipe_file, eyes, out = tmp_path/'small.json', trees.write_folder(tmp_path/'eyes', n=20).path, tmp_path/'out'
    recipe_file.write_text(recipe_to_json(small))
    few = ['--out', str(out), '--data', str(eyes), '--recipe', str(recipe_file), '--condition', 'joint', '--condition', 'segmenter alone', '--seeds', '2', '--no-search', '--workers', '1']
    assert called(few) is None
    t = json.loads((out/'tables.json').read_text())
    assert t['recipe']['net'] == 'base' and t['photographs']['data'] == 'a data set on the disk' and len(X.read_runs(out)) == 4
    same = {'cross entropy', 'cross entropy, unweighted'}   # as joint, by the paper's recipe
    assert {r['condition'] for r in t['rows']} == {'joint', 'segmenter alone'} | same and all(r['seeds'] == [0, 1] and not r['failed'] for r in t['rows'])
    found = next(c for c in t['claims'] if c['claim'] == 'cooperation-segmentation')
    each = found['comparisons'][0]['each']
    assert len(each) == 2 and found['verdict'] == judge(*found['ci'])
    widened = paired_interval(each, [0., 0.], shared=.25)   # the seeds share photographs: 20% held out, 80% trained on
    assert t['shared'] == .25 and found['ci'] == pytest.approx(widened[1:], abs=2e-3) and found['ci'] != pytest.approx(paired_interval(each, [0., 0.])[1:], abs=2e-3)
    assert difference(t, 'joint', 'segmenter alone', 'miou')[1:] == pytest.approx(found['ci'])
    joint = row_of(t, 'joint')
    assert joint['scores']['miou']['high'] == pytest.approx(paired_interval(joint['each']['miou'], [0., 0.], shared=.25)[2])
    assert not any(str(tmp_path) in f.read_text() for f in (*out.glob('*.json'), *out.glob('*.md')))
    capsys.readouterr()
    assert called(few) is None and len(X.read_runs(out)) == 4 and capsys.readouterr().err == ''

def test_every_machine_that_took_part_is_named(done):
    of = lambda seed: dict(device='cpu', device_name=f'processor {seed}')
    machine = tables_of([r | dict(facts=of(r['seed'])) for r in done], base, arena)['made']['machine']
    assert machine == dict(device='cpu', device_name=[f'processor {k}' for k in range(3)])

def test_rows_of_two_machines_are_told_apart(done):
    there = lambda name: dict(device_name='processor 1' if name.startswith('UNet') else 'processor 0')
    t = tables_of([r | dict(facts=there(r['condition'])) for r in done], base, arena)
    apart = {(k['better'], k['worse']) for c in t['claims'] for k in c['comparisons'] + c['also'] if k['apart']}
    assert ('joint', 'UNet') in apart and all(b.startswith('UNet') != a.startswith('UNet') for a, b in apart), 'two UNets are of one machine'
    assert re.search('- joint against UNet, mIoU: .*, made on two machines: ', T.verdict_page(t)) and not re.search('joint against FCN-8s, mIoU: .* two machines', T.verdict_page(t))
    page = as_markdown(t)
    assert page.count('- on processor 1: UNet, UNet, equal work\n') == 1 and '- on processor 1: UNet, pre-trained, UNet, pre-trained, equal work\n' in page and 'processor 0, processor 1' in page

def test_the_map_is_joint_minus_alone(done):
    at = lambda r: .5 + .1*(r['condition'] == 'map: ratio 10, agent, 8 masks')
    t = tables_of([r | dict(curve=[[1, .5, 0., 0.], [2, at(r), 0., 0.]], metrics=r['metrics'] | dict(miou=at(r))) for r in done], base, arena)
    of = lambda masks, on: {r: round(d[0], 4) for r, d, _ in T.map_points(t, masks, on)}
    assert of(8, 'agent') == {1.: 0, 10.: .1, 100.: 0} and of(8, 'shared') == dict.fromkeys((.01, .1, 1., 10., 100.), 0) and of(80, 'agent') == dict.fromkeys((1., 10., 100.), 0)
    drawn = [np.round(c.lines[0].get_ydata(), 4).tolist() for c in plot_map(t).axes[0].containers]
    assert drawn[:2] == [[0]*5, [0, 10, 0]], 'in points'
    steps, names, d = map_steps(t, 8)
    assert steps == [1, 2] and names == ['0.01', '0.1', '1', '10', '100', '10 agent', '100 agent'] and d.shape == (7, 2)
    assert {(names[y], steps[x]): round(v, 4) for (y, x), v in np.ndenumerate(d) if v} == {('10 agent', 2): .1}
    assert len(plot_map_steps(t).axes) == 3 + 1
