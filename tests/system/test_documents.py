#!/usr/bin/env python3
"""Documents against the program: man pages, README.md and completion know every command and exactly
the options that --help lists; what `cmake --install` puts where; that what packaging/ says of containers
and units has options, programs and files that there are."""
import os
import re
import shutil
import subprocess
import sys

from clitest import check, commands, finish, fresh, names, options_of, path, read
from kvfstest import KVFS, ROOT, Skip

MAN = os.path.join(ROOT, "kvfs/man")
BASH = os.path.join(ROOT, "kvfs/completion/kvfs.bash")
ZSH = os.path.join(ROOT, "kvfs/completion/_kvfs")

# Pages that say `are as with kvfs-encrypt`.
SHARED = {"manifest", "no-manifest", "exclude", "resume", "copy-plain", "key", "output", "threads",
          "quiet", "master-kid", "sign-kid", "generation"}
SHARED_BY = dict.fromkeys(["rewrap", "rekey", "publish"], SHARED)


def page(name):
    return read(os.path.join(MAN, f"{name}.1")).decode()


def test_man_pages():
    with check("man pages: no warnings"):
        if not shutil.which("mandoc"):
            raise Skip("no mandoc")
        pages = [os.path.join(MAN, n) for n in sorted(os.listdir(MAN))]
        done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert done.returncode == 0 and not done.stdout, done.stdout.decode()

    for command in commands():
        with check(f"man kvfs-{command}: exactly its options"):
            have = set(options_of(command))
            text = page(f"kvfs-{command}")
            documented = set(re.findall(r"(?:Fl|,) -([a-z][a-z-]+)", text))
            shared = SHARED_BY.get(command, set())
            assert have - shared <= documented, f"not documented: {have - shared - documented}"
            assert documented <= have, f"no options: {documented - have}"

    with check("man kvfs: every command"):
        assert set(re.findall(r"^\.It Cm ([a-z]+)$", page("kvfs"), re.M)) == set(commands())


def test_readme():
    text = read(os.path.join(ROOT, "README.md")).decode()
    section = text.partition("\n## Options of `kvfs mount`\n")[2].partition("\n## ")[0]
    with check("README.md: its table has exactly the options of kvfs mount"):
        rows = re.findall(r"^\| `([a-z-]+)(?:=([^`]+))?` \|", section, re.M)
        table = {name: value.replace("\\|", "|") or None for name, value in rows}
        assert len(table) == len(rows), "an option has two rows"
        options = options_of("mount")
        assert table == options, set(table.items()) ^ set(options.items())

    with check("README.md: every command"):
        assert set(re.findall(r"^\| `kvfs ([a-z]+)", text, re.M)) == set(commands())


def bash_completes(*words):
    """What bash offers for the last word."""
    script = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _kvfs; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", script, "-", BASH, KVFS, *words], check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode().split("\n")[:-1]


def zsh_completes(*words):
    """The same of zsh, with its helpers replaced by ones that print."""
    script = ('zmodload zsh/parameter; file=$1; shift; words=("$@") CURRENT=$#; '
              '_describe() { print -rl -- ${(P)@[-3]} }; compadd() { print -rl -- "$@" }; '
              '_call_program() { shift; "$@" }; _files() { print files }; source $file')
    if words[0] == "":
        script = script.replace("${(P)@[-3]}", "${(P)@[-1]}")
    done = subprocess.run(["zsh", "-fc", script, "-", ZSH, KVFS, *words], check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return [line.split(":")[0] for line in done.stdout.decode().split("\n")[:-1]]


def test_completion():
    every = sorted(commands())
    shells = {"bash": bash_completes}
    if shutil.which("zsh"):
        shells["zsh"] = zsh_completes
    for shell, completes in shells.items():
        with check(f"{shell}: all commands"):
            offered = completes("")
            assert sorted(w for w in offered if not w.startswith("-")) == every, offered
        for command in every:
            with check(f"{shell}: all options of kvfs {command}"):
                options = options_of(command)
                want = {f"--{n}{'=' if value else ''}" for n, value in options.items()}
                offered = completes(command, "--")
                assert set(offered) - {"--help", "--usage"} == want, set(offered) ^ want
                assert len(offered) == len(set(offered)), "twice"
        with check(f"{shell}: values"):
            assert sorted(completes("mount", "--plain", "")) == ["all", "none", "safe"]
            assert sorted(completes("mount", "--update", "")) == ["follow", "pin"]
            assert "chacha20poly1305" in completes("keygen", "--alg", "")
    if "zsh" not in shells:
        with check("zsh"):
            raise Skip("no zsh")
    with check("bash: what was begun"):
        assert bash_completes("encrypt", "--chu") == ["--chunk-size="]
        assert bash_completes("re") == ["rekey", "reload", "rewrap"]
        assert bash_completes("mount", "--manifest", "=", "r") == ["require"]


def test_installation():
    with check("cmake --install: binary, man pages, completion, the mount helper"):
        build = os.path.dirname(os.path.dirname(KVFS))
        if not os.path.exists(os.path.join(build, "cmake_install.cmake")):
            raise Skip("not run from a build directory")
        subprocess.run(["cmake", "--install", build, "--prefix", fresh("prefix")], check=True,
                       stdout=subprocess.DEVNULL)
        installed = names(path("prefix"))
        pages = [f"share/man/man1/kvfs-{command}.1" for command in commands()]
        for one in ["bin/kvfs", "share/man/man1/kvfs.1", "sbin/mount.fuse.kvfs",
                    "share/bash-completion/completions/kvfs",
                    "share/zsh/site-functions/_kvfs"] + pages:
            assert one in installed, (one, installed)
        assert os.path.samefile(path("prefix/sbin/mount.fuse.kvfs"), path("prefix/bin/kvfs"))


# ---- packaging ----

def packaged(name):
    return read(os.path.join(ROOT, "packaging", name)).decode()


def words_of_kvfs(text):
    """Options of kvfs mount in a file for containers, as (name, value)."""
    plain = re.sub(r"^ *#.*$|(?<= )#.*$", "", text, flags=re.M)
    listed = [part for group in re.findall(r"^ *- -o(\S+)", plain, re.M)
              for part in group.split(",")]
    return [word.partition("=")[::2] for word in
            listed + re.findall(r"^ *- --([a-z]\S*)", plain, re.M)]


def test_containers():
    options = options_of("mount")
    for name in ("compose.yaml", "kubernetes.yaml"):
        with check(f"{name}: options that kvfs mount has, files that are mounted"):
            text = packaged("container/" + name)
            used = words_of_kvfs(text)
            assert {"key", "mounter", "foreground"} <= {option for option, _ in used}, used
            for option, value in used:
                assert option in options and bool(value) == bool(options[option]), (option, value)
                if value and value.startswith("/"):
                    assert os.path.dirname(value) in re.findall(r"(?::|mountPath: )(/[a-z/]+)", text), value
    with check("mounter.conf is the one of the pod; compose.yaml has what lies beside it"):
        config = [line.split() for line in packaged("container/mounter.conf").splitlines()
                  if line and not line.startswith("#")]
        pod = packaged("container/kubernetes.yaml").split("mounter.conf: |\n")[1].split("---")[0]
        assert [line.split() for line in pod.splitlines() if line.strip()] == config
        for name in re.findall(r"[=:] ?(?:seccomp=)?\./([a-z.]+)", packaged("container/compose.yaml")):
            assert os.path.exists(os.path.join(ROOT, "packaging/container", name)), name
    with check("sidecar.profile: the guard takes it"):
        done = subprocess.run([KVFS, "guard", "check", "--json", "--profile",
                               os.path.join(ROOT, "packaging/container/sidecar.profile")],
                              stdout=subprocess.PIPE, check=False)
        assert b'"profile":"sidecar"' in done.stdout.replace(b" ", b""), done


def test_units():
    """As if they were installed, in /usr."""
    units = [n for n in os.listdir(os.path.join(ROOT, "packaging")) if n.endswith(".service")]
    with check(f"{', '.join(units)}: programs and pages that are installed; systemd takes them"):
        os.makedirs(fresh("units"))
        for unit in units:
            text = packaged(unit)
            program, = re.findall(r"^ExecStart=(\S+)", text, re.M)
            installed = program.replace("/usr", path("prefix"), 1)
            assert os.access(installed, os.X_OK), program
            for manual, section in re.findall(r"man:(\S+)\((\d)\)", text):
                assert os.path.exists(path(f"prefix/share/man/man{section}/{manual}.{section}"))
            with open(path("units", unit.replace("@", "@x")), "w", encoding="utf-8") as file:
                file.write(text.replace(program, installed))
        if not shutil.which("systemd-analyze"):
            raise Skip("no systemd-analyze")
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", *(
            path("units", n) for n in names(path("units")))], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        assert done.returncode == 0 and not done.stdout, done.stdout.decode()


def main():
    os.umask(0o022)
    test_man_pages()
    test_readme()
    test_completion()
    test_installation()
    test_containers()
    test_units()
    return finish()


sys.exit(main())
