#!/usr/bin/env python3
"""The key server's man page and completion against its --help."""
import os
import re
import shutil
import sys

from ksclient import KEYSERVER
from kvfstest import ROOT, Checks, Skip, run, workdir

checks = Checks()
check = checks.check
HERE = os.path.join(ROOT, "keyserver")
BASH = os.path.join(HERE, "completion/kvfs-keyserver.bash")
ZSH = os.path.join(HERE, "completion/_kvfs-keyserver")


def help_of(*command):
    return run(KEYSERVER, *command, "--help", check=True).stdout


def commands():
    """[("user", "add"), ("serve",), …] as --help lists them."""
    return [tuple(text.split()) for text in re.findall(
        r"^  ([a-z-]+(?: [a-z]+)?)(?= )", help_of(), re.M)]


def options_of(command):
    return {name + ("=" if value else "") for name, value in
            re.findall(r"^  --([a-z-]+)(=?)", help_of(*command), re.M)}


def test_man_page():
    path = os.path.join(HERE, "man/kvfs-keyserver.8")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with check("man kvfs-keyserver: no warnings"):
        if not shutil.which("mandoc"):
            raise Skip("no mandoc")
        result = run("mandoc", "-T", "lint", "-W", "warning", path)
        assert result.returncode == 0 and not result.stdout, result.stdout
    with check("man kvfs-keyserver: every command and every option, and no others"):
        found = {tuple(text.split()) for text in re.findall(
            r"^\.It Cm ([a-z-]+(?: [a-z]+)?)(?= Ar|$)", text, re.M)}
        assert found == set(commands()), found ^ set(commands())
        options = {name.rstrip("=") for command in commands() for name in options_of(command)}
        documented = set(re.findall(r"Fl -([a-z-]+)", text)) - {"option"}
        assert documented == options, documented ^ options


def bash_completes(*words):
    script = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _kvfs_keyserver; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    return run("bash", "-c", script, "-", BASH, KEYSERVER, *words, check=True).stdout.split()


def zsh_completes(*words):
    """With zsh's helpers replaced by ones that print."""
    script = ('zmodload zsh/parameter; file=$1; shift; words=("$@") CURRENT=$#; '
              '_describe() { print -rl -- ${(P)4} }; compadd() { print -rl -- "$@" }; '
              '_call_program() { shift; "$@" }; _files() { print files }; source $file')
    result = run("zsh", "-fc", script, "-", ZSH, KEYSERVER, *words)
    assert not result.stderr, result.stderr
    return [line.split(":")[0] for line in result.stdout.split("\n")[:-1]]


def test_completion():
    nouns = sorted({command[0] for command in commands()})
    shells = {"bash": bash_completes}
    if shutil.which("zsh"):
        shells["zsh"] = zsh_completes
    for shell, completes in shells.items():
        with check(f"{shell}: all commands"):
            assert sorted(w for w in completes("") if not w.startswith("-")) == nouns
            for noun in nouns:
                verbs = sorted(c[1] for c in commands() if c[0] == noun and len(c) > 1)
                assert sorted(completes(noun, "")) == verbs, (noun, completes(noun, ""))
        with check(f"{shell}: all options of every command"):
            for command in commands():
                offered = completes(*command, "--")
                assert set(offered) == {"--" + name for name in options_of(command)}, \
                    (command, offered)
                assert len(offered) == len(set(offered)), "twice"
    if "zsh" not in shells:
        with check("zsh"):
            raise Skip("no zsh")
    with check("bash: what was begun, and values"):
        assert bash_completes("ba") == ["baseline"]
        assert bash_completes("rotate-key", "--step", "=", "") == ["add", "use", "drop"]
        assert bash_completes("apikey", "add", "x", "--sc") == ["--scope="]


def test_installation():
    with check("cmake --install: the server, its page, its completion"):
        build = os.path.dirname(os.path.dirname(KEYSERVER))
        prefix = os.path.join(workdir(), "prefix")
        run("cmake", "--install", os.path.join(build, "keyserver"), "--prefix", prefix, check=True)
        for name in ("bin/kvfs-keyserver", "share/man/man8/kvfs-keyserver.8",
                     "share/bash-completion/completions/kvfs-keyserver",
                     "share/zsh/site-functions/_kvfs-keyserver"):
            assert os.path.exists(os.path.join(prefix, name)), name


def main():
    test_man_page()
    test_completion()
    test_installation()
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
