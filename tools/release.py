"""A release, as far as it can be tried: both distributions are built and checked, and what hinders is said

    make release                  nothing leaves this machine
    make release ARGS=--publish   and then nbdev-release-gh: commit, push, tag and notes on GitHub, after a question;
                                  the tag starts .github/workflows/release.yml, which publishes

With --tag it is what that workflow runs: what hinders is then an error."""
import argparse, re, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*cmd, root=ROOT):
    "Run a command to its end, its output shown; stops if it fails"
    print('$', ' '.join(map(str, cmd)).replace(sys.executable, 'python'), flush=True)
    if subprocess.run([str(c) for c in cmd], cwd=root).returncode: sys.exit(f'release: {cmd[0]} failed; nothing was published')


def said_by_git(*words, root=ROOT):
    "What git prints, without the last newline; empty where it fails"
    return subprocess.run(['git', *words], cwd=root, capture_output=True, text=True).stdout.strip()


def version(root=ROOT):
    "The version in `ccreid/__init__.py`, read and not imported"
    return re.search(r'^__version__ *= *"([^"]+)"', (root/'ccreid'/'__init__.py').read_text(encoding='utf-8'), re.M)[1]


def in_files(root=ROOT):
    "What in CHANGELOG.md and CITATION.cff does not fit the version"
    import yaml
    bad,v = [],version(root)
    head = re.search(r'^## (.+)$', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1]
    dated = re.fullmatch(re.escape(v)+r' \((\d{4}-\d\d-\d\d)\)', head)
    if not dated: bad.append(f'CHANGELOG.md: the first heading is "{head}", not "{v} (YYYY-MM-DD)"')
    cff = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    if str(cff.get('version'))!=v: bad.append(f'CITATION.cff: version {cff.get("version")}, not {v}')
    if dated and str(cff.get('date-released'))!=dated[1]: bad.append(f'CITATION.cff: date-released is not {dated[1]}')
    return bad


def in_repository(root=ROOT):
    "What in the state of the repository hinders a release"
    v,branch = version(root),said_by_git('branch', '--show-current', root=root)
    bad = [] if branch=='main' else [f'this is branch {branch or "(none)"}, not main']
    if n := len(said_by_git('status', '--porcelain', root=root).splitlines()): bad.append(f'{n} files are not committed')
    if said_by_git('tag', '--list', v, root=root): bad.append(f'the tag {v} is there already: nbdev-bump-version')
    return bad


def build(root=ROOT):
    "Source distribution and wheel in dist/, the wheel made from the former, both checked by twine"
    for o in 'dist','build': shutil.rmtree(root/o, ignore_errors=True)
    run(sys.executable, '-m', 'build', '--no-isolation', root=root)
    shutil.rmtree(root/'build', ignore_errors=True)
    made = sorted((root/'dist').iterdir())
    run(sys.executable, '-m', 'twine', 'check', '--strict', *made, root=root)
    for o in made: print(f'{o.name}: {o.stat().st_size/1e6:.1f} MB')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = p.add_mutually_exclusive_group()
    how.add_argument('--publish', action='store_true', help='after the checks, make the release on GitHub')
    how.add_argument('--tag', help='the tag that is being released, which must be the version')
    args = p.parse_args()
    if args.publish: # nbdev's commands; what they change shows as not committed
        for o in 'nbdev-clean','nbdev-export': run(Path(sys.executable).with_name(o))
    if args.tag: bad = in_files()+([] if args.tag==version() else [f'the tag is {args.tag}, the version {version()}'])
    else: bad = in_files()+in_repository()
    for o in bad: print('release: hinders:', o)
    if bad and (args.publish or args.tag): sys.exit('release: nothing was published')
    build()
    if args.publish:
        run(Path(sys.executable).with_name('nbdev-release-gh'), '--no_changelog', '--no_editor')
        print('release: the tag is made, its workflow publishes. Next: nbdev-bump-version, and a heading "## Unreleased" in CHANGELOG.md')
    elif not args.tag: print(f'release: {version()} is in dist/, checked; {len(bad)} things hinder. Publishing: make release ARGS=--publish')


if __name__=='__main__': main()
