//! Programs that people run on a file system.

use gfs_e2e::work::{run, shell};
use gfs_e2e::{Cluster, Options};
use std::fs;
use std::path::PathBuf;

#[test]
fn git_works() {
    let cluster = Cluster::start(Options::default());
    let source = cluster.scratch().join("source");
    let script = format!(
        "git init -q {0} && cd {0} && git config user.email t@t && git config user.name t && \
         for d in $(seq 20); do mkdir d$d; for n in $(seq 20); do echo \"$d $n\" > d$d/f$n; done; done && \
         git add -A && git commit -qm one",
        source.display()
    );
    shell(&cluster.scratch(), &script);
    let script = format!(
        "git clone -q {} clone && cd clone && git config user.email t@t && git config user.name t && \
         git checkout -qb side && for n in $(seq 20); do echo more >> d$n/f1; done && git commit -qam two && \
         git checkout -q - && git merge -q side && git rm -rq d3 && git commit -qm three && git gc -q && \
         git fsck --strict && git status --porcelain | wc -l",
        source.display()
    );
    assert_eq!(shell(&cluster.mount(), &script).trim(), "0");
}

#[test]
fn sqlite_works_in_both_journal_modes_with_two_processes() {
    let cluster = Cluster::start(Options::default());
    for mode in ["delete", "wal"] {
        let script = format!(
            "sqlite3 {mode}.db 'pragma journal_mode={mode}; create table t(a integer primary key, b text);' >/dev/null
             work() {{ for n in $(seq 25); do sqlite3 -cmd '.timeout 60000' {mode}.db \"begin immediate; insert into t(b) values('$1 $n'); commit;\"; done; }}
             work one & first=$!; work two & second=$!
             wait $first; wait $second
             sqlite3 {mode}.db 'pragma integrity_check; select count(*) from t;'"
        );
        assert_eq!(shell(&cluster.mount(), &script), "ok\n50\n", "journal mode {mode}");
    }
}

#[test]
fn tar_keeps_acls_xattrs_and_holes() {
    let cluster = Cluster::start(Options::default());
    let script = "mkdir -p tree/sub && echo data > tree/file && setfattr -n user.color -v blue tree/file && \
        setfacl -m u:daemon:rw,g:nogroup:r tree/file && setfacl -d -m u:daemon:rwx tree/sub && touch tree/sub/inherits && \
        truncate -s 10M tree/sparse && printf x | dd of=tree/sparse bs=1 seek=5000000 conv=notrunc status=none && \
        ln -s file tree/symlink && ln tree/file tree/hard && mkfifo tree/fifo && \
        tar --acls --xattrs --xattrs-include='*' --sparse -cf t.tar tree && mkdir out && \
        tar --acls --xattrs --xattrs-include='*' -xpf t.tar -C out && cd out && \
        getfattr --only-values -n user.color tree/file && diff <(cd ../tree && getfacl -R . ) <(cd tree && getfacl -R .) && \
        cmp tree/sparse ../tree/sparse && test $(stat -c %h tree/file) = 2 && test -p tree/fifo && \
        getfacl tree/sub/inherits | grep -q user:daemon:rwx";
    assert_eq!(shell(&cluster.mount(), script), "blue");
}

#[test]
fn sparse_files_stay_sparse_under_du_cp_and_tar() {
    let cluster = Cluster::start(Options::default());
    let script = "kib() { du -k \"$1\" | cut -f1; }
        truncate -s 10M sparse && printf x | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none
        cp --sparse=auto sparse auto && cp --sparse=always sparse always
        mkdir out && tar --sparse -cf t.tar sparse && tar -xf t.tar -C out && test $(stat -c %s t.tar) -lt 1000000
        for file in sparse auto always out/sparse; do
            cmp sparse $file && test $(stat -c %s $file) = 10485760 && test $(kib $file) -ge 4 && test $(kib $file) -lt 5000
        done
        for source in /dev/zero /dev/urandom; do
            head -c 1M $source > dense && test $(($(stat -c %b dense) * 512)) -ge 1048576 && test $(kib dense) -lt 1100
        done";
    shell(&cluster.mount(), script);
}

#[test]
fn rsync_and_atomic_saves_work() {
    let cluster = Cluster::start(Options::default());
    let script = "mkdir -p src/a/b && for n in $(seq 50); do head -c $((n * 997)) /dev/urandom > src/a/b/f$n; done
        rsync -a --checksum src/ dst/ && diff -r src dst && echo changed > src/a/b/f1 && rsync -a --checksum src/ dst/ && diff -r src dst
        for n in $(seq 20); do echo version $n > .doc.swp && sync .doc.swp && cp -p doc doc~ 2>/dev/null || true; mv .doc.swp doc; done
        cat doc";
    assert_eq!(shell(&cluster.mount(), script).trim(), "version 20");
}

#[test]
fn compilers_build_and_run_on_the_mount() {
    let cluster = Cluster::start(Options::default());
    let script = "printf '#include <stdio.h>\\nint main(void){puts(\"built\");return 0;}\\n' > m.c && gcc -O2 -o m m.c && ./m && \
        mkdir -p p/src && printf '[package]\\nname = \"p\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[workspace]\\n' > p/Cargo.toml && \
        printf 'fn main(){println!(\"cargo\");}\\n' > p/src/main.rs && cd p && env -u CARGO_TARGET_DIR cargo build -q --offline && ./target/debug/p";
    assert_eq!(shell(&cluster.mount(), script), "built\ncargo\n");
}

#[test]
fn supplementary_groups_and_ownership_are_respected() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    shell(
        &mount,
        "mkdir shared && chgrp 4 shared && chmod 2770 shared && mkdir tmp && chmod 1777 tmp && echo root > tmp/roots",
    );
    let python = format!(
        "import os\nos.chdir({mount:?})\nos.setgroups([4, 1234])\nos.setgid(65534)\nos.setuid(65534)\n\
         open('shared/mine', 'w').write('x')\nassert os.stat('shared/mine').st_gid == 4\n\
         try:\n    os.unlink('tmp/roots')\nexcept PermissionError:\n    pass\nelse:\n    raise SystemExit('sticky bit ignored')\n"
    );
    run("python3", &["-c", &python], &cluster.scratch());
    let python = format!(
        "import os\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n\
         try:\n    os.listdir({:?})\nexcept PermissionError:\n    pass\nelse:\n    raise SystemExit('group ignored')\n",
        mount.join("shared")
    );
    run("python3", &["-c", &python], &cluster.scratch());
}

/// Where the programs of PostgreSQL's server are: `/usr/lib/postgresql/VERSION/bin`.
fn postgres_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL's server (package postgresql)");
    let programs = versions.map(|version| version.unwrap().path().join("bin")).find(|bin| bin.join("initdb").exists());
    programs.expect("initdb below /usr/lib/postgresql")
}

#[test]
fn postgres_keeps_its_sums_over_a_crash_of_its_own() {
    let cluster = Cluster::start(Options::default());
    let script = format!(
        "export PATH={}:$PATH PGHOST=$PWD/pg PGUSER=postgres PGDATABASE=postgres
         mkdir pg && chown postgres pg && chmod 700 pg
         as() {{ runuser -u postgres -- \"$@\"; }}
         start() {{ as pg_ctl -s -w -t 50 -D pg -l pg/server.log -o \"-c listen_addresses='' -k $PWD/pg\" start || {{ cat pg/server.log; exit 1; }}; }}
         trap 'as pg_ctl -s -D pg -m immediate stop 2>/dev/null || true' EXIT
         as initdb -D pg -A trust --no-instructions >/dev/null
         start
         as pgbench -q -i -s 1 2>/dev/null
         as pgbench -n -c 4 -j 2 -t 50 >/dev/null
         as pg_ctl -s -D pg -m immediate stop
         start
         as psql -qAtc 'select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts), \
            sum(delta) = (select sum(bbalance) from pgbench_branches) from pgbench_history'
         as pg_ctl -s -w -D pg -m fast stop
         as pg_controldata -D pg | grep -q 'state: *shut down'",
        postgres_programs().display()
    );
    assert_eq!(shell(&cluster.mount(), &script), "200|t|t\n");
}
