"""The tools that everybody uses: scripts that must say here what they say elsewhere."""

from __future__ import annotations

import shutil

import pytest

from tests.programs.conftest import Place

pytestmark = pytest.mark.fuse

SCRIPTS = {
    "sed -i replaces a file and keeps its mode": """
        printf 'one\\ntwo\\n' > file; chmod 640 file
        sed -i.bak 's/two/2/' file
        sed -i '1d' file file.bak
        stat -c '%n %a %s %h' *; cat file file.bak
    """,
    "mv moves, replaces, and moves between file systems": """
        echo new > new; echo old > old; mkdir -p a/b c
        mv new old; mv a c/; mv -n old c
        echo more > old; mv -n old c || true
        elsewhere=$(mktemp -d); mv c "$elsewhere"; mv "$elsewhere/c" back; rmdir "$elsewhere"
        find . -type f -exec cat {} +; find . -printf '%P %y %n\\n' | sort
    """,
    "find sees types, sizes, times and links": """
        mkdir -p d/e; echo x > d/file; touch -d '2001-02-03 04:05:06.789 UTC' d/file
        ln d/file d/e/other; ln -s file d/link; mkfifo d/fifo
        truncate -s 5M d/large
        find . -type f -links 2 | sort; find . -samefile d/file | sort; find . -type l -lname 'f*'
        find . -size +4M; find . ! -newermt 2002-01-01 -type f | sort; find . -empty | sort
        find d -printf '%P %y %s %m %n\\n' | grep -v ' d ' | sort; find . -depth -delete
        ls -A
    """,
    "ls, du and wc agree about what is there": """
        for n in $(seq 100); do head -c 5000 /dev/zero | tr '\\0' x > "file $n"; done
        ln 'file 1' 'file too'
        ls | wc -l; ls -U | sort | md5sum; du --apparent-size -b 'file 7'
        du -sk --exclude=. . | cut -f1 | awk '{ print ($1 >= 500) }'
        cat file* | wc -c; rm -f file*; ls -A | wc -l
    """,
    "install sets modes and makes folders": """
        printf '#!/bin/sh\\necho it runs\\n' > program
        install -D -m 755 program deep/er/bin/program
        install -d -m 2775 shared; install -m 600 -p program shared
        stat -c '%n %a %F' deep/er/bin/program shared shared/program
        deep/er/bin/program
        install -m 755 -C -v program deep/er/bin/program
    """,
    "dd writes in place": """
        head -c 3000000 /dev/zero | tr '\\0' a > file
        printf 'here' | dd of=file bs=1 seek=2000000 conv=notrunc,fsync status=none
        dd if=file of=part bs=1M skip=1 count=1 status=none
        dd if=/dev/zero of=file bs=1k count=3 seek=5000 oflag=append conv=notrunc status=none
        dd if=file of=copy bs=4k oflag=direct iflag=fullblock conv=sparse status=none || true
        stat -c '%n %s' file part; md5sum file part
        dd if=file bs=64k iflag=direct status=none | md5sum
    """,
    "flock keeps others out": """
        exec 9> lock; flock 9
        flock -n lock echo got it || echo is held
        flock -u 9; flock -n lock echo got it
        echo 0 > counter
        for n in 1 2 3 4; do
            ( for i in $(seq 10); do flock lock sh -c 'echo $(($(cat counter) + 1)) > counter'
              done ) &
        done; wait; cat counter
    """,
    "a fifo carries what is written": """
        mkfifo -m 600 pipe; stat -c '%F %a' pipe
        seq 20000 > pipe & md5sum < pipe; wait
    """,
    "redirection appends, truncates and refuses": """
        echo 1 > file; echo 2 >> file; (echo 3 & echo 4 & wait) >> file; sort file
        set -o noclobber; echo 5 > file 2> /dev/null || echo refused; echo 6 >| file; cat file
        exec 5<> file; echo 7 >&5; cat <&5; exec 5>&-; cat file
        : >| file; stat -c %s file
    """,
    "ln, readlink and realpath follow": """
        mkdir -p a/b; echo x > a/b/file; ln -s ../b a/b/loop; ln -sfn a/b short; ln -s nowhere dead
        cat short/loop/loop/file; readlink short dead; realpath --relative-to=. short/loop/file
        ln a/b/file hard; ln -f short/file hard; stat -c %h hard; cp -a short/. real; ls real
        cat dead 2> /dev/null || echo dangles; test -L dead && rm dead; ls
    """,
    "split, sort, tac and patch work on large files": """
        seq 200000 > file; split -n l/5 file part-; ls part-*; cat part-* | cmp - file
        sort -rn -S 1M -T . file | sed -n 1p; tac file | tail -1
        shuf --random-source=file file | sort -n | cmp - file
        truncate -s -7 part-ae; tail -c 14 part-ae; rm part-*
        comm -12 <(sort file) <(seq 5) | wc -l
        cp file new; sed -i '100000s/.*/changed/' new; diff -u file new > patch || true
        patch -s file patch; cmp file new; ls -A
    """,
    "permissions are as the shell sees them": """
        umask 027; touch file; mkdir dir; stat -c '%n %a' file dir; umask 022
        chmod u+x,g-r,o= file; chmod -R g+s dir; touch dir/file; stat -c '%n %a' file dir dir/file
        test -x file && echo can run; test -w file && echo can write
        cp --preserve=mode file copy; stat -c %a copy
    """,
    "an editor's ways to save keep names and contents": """
        echo old > text; ln text same; chmod 664 text
        cp -p text text~; echo new > text; sync -d text; cat same text~
        echo newer > .text.tmp; chmod --reference=text .text.tmp; sync .text.tmp
        mv -f .text.tmp text; sync .; cat text same; stat -c '%n %a %h' text same text~
        mv text 4913; echo newest > text; sync text; rm 4913; cat text; ls -A
    """,
    "many small files come and go": """
        for n in $(seq 100); do
            folder=tree/$((n % 7))/$((n % 3)); mkdir -p $folder; echo $n > $folder/$n
        done
        find tree -type f | wc -l; cat $(find tree -type f | sort) | md5sum
        cp -r tree copy; diff -r tree copy; rm -r tree; find . -type d | sort; rm -rf copy; ls -A
    """,
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_tools_do_here_what_they_do_elsewhere(each: Place, script: str) -> None:
    assert each.agree(SCRIPTS[script])


COMPILE = """
cat > hello.h <<'END'
const char *greeting(void);
END
cat > greeting.c <<'END'
#include "hello.h"
const char *greeting(void) { return "hello"; }
END
cat > main.c <<'END'
#include <stdio.h>
#include "hello.h"
int main(void) { puts(greeting()); return 0; }
END
printf 'hello: main.o greeting.o\\n\\t$(CC) -o $@ $^\\nmain.o greeting.o: hello.h\\n' > Makefile
make -s -j2 hello 2>&1; ./hello
make -q hello && echo up to date
sleep 0.02; sed -i 's/"hello"/"goodbye"/' greeting.c; make -s hello 2>&1; ./hello
sleep 0.02; touch hello.h; make -q hello || echo out of date
make -s hello 2>&1; make -q hello && echo up to date
cp hello running; ./running; strip running; ./running
"""


@pytest.mark.skipif(not all(map(shutil.which, ("gcc", "make"))), reason="there is no compiler")
def test_a_program_is_compiled_and_made_anew_where_it_must_be(each: Place) -> None:
    assert "up to date" in each.agree(COMPILE)


VIM = shutil.which("vim") or shutil.which("vim.tiny")


@pytest.mark.skipif(not VIM, reason="vim is not installed")
@pytest.mark.parametrize("backups", ["yes", "no"])
def test_vim_saves(each: Place, backups: str) -> None:
    """By a copy, or by renaming the old file out of the way; with a swap file meanwhile."""
    said = each.agree(f"""
        seq 1000 > text; chmod 640 text
        {VIM} -u NONE -es -N -c 'set backup writebackup backupcopy={backups} fsync' \\
            -c 'set directory=. backupdir=. backupskip=' -c '%s/^5$/five/' -c '$s/$/ end/' \\
            -c 'wq' text
        sed -n '5p;$p' text; stat -c '%n %a %h %s' text text~; ls -A
    """)
    assert said.startswith("five\n1000 end\n")
