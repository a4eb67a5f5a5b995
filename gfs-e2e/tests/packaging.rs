//! What is installed is whole, is accepted by systemd, and goes away again.

use gfs_e2e::cluster::{binary, text};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const UNITS: [&str; 3] = ["gfs-master.service", "gfs-chunkd.service", "gfs-mount@.service"];

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

fn install(destdir: &Path, more: &[&str]) -> Output {
    let binaries = binary("gfs").parent().unwrap().to_path_buf();
    let mut command = Command::new("sh");
    command.arg(packaging().join("install.sh")).arg("--destdir").arg(destdir).args(more);
    command.env("GFS_BINARIES", binaries).output().unwrap()
}

/// All files and links below a directory, relative to it.
fn files(below: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![below.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(below).unwrap().to_path_buf());
            }
        }
    }
    found
}

#[test]
fn installation_is_repeatable_and_its_removal_leaves_only_changed_configuration() {
    let root = tempfile::tempdir().unwrap();
    let first = install(root.path(), &[]);
    assert!(first.status.success(), "{}", text(&first));
    let installed = files(root.path());
    for program in ["gfs", "gfs-master", "gfs-chunkd", "gfs-fuse"] {
        let path = root.path().join("usr/local/bin").join(program);
        let output = Command::new(&path).arg("--version").output().unwrap();
        assert!(output.status.success() && text(&output).starts_with(program), "{program}: {}", text(&output));
    }
    assert_eq!(fs::read_link(root.path().join("sbin/mount.gfs")).unwrap(), Path::new("/usr/local/bin/gfs"));
    for daemon in ["master", "chunkd"] {
        // What is shipped must be accepted by the program that reads it.
        let config = root.path().join(format!("etc/gfs/{daemon}.toml"));
        let path = root.path().join(format!("usr/local/bin/gfs-{daemon}"));
        let output = Command::new(path).arg("--config").arg(&config).arg("--print-config").output().unwrap();
        assert!(output.status.success(), "{}: {}", config.display(), text(&output));
        assert!(text(&output).contains(&format!("/var/lib/gfs/{daemon}")), "{}", text(&output));
    }

    let changed = root.path().join("etc/gfs/master.toml");
    let mine = fs::read_to_string(&changed).unwrap() + "log_level = \"debug\"\n";
    fs::write(&changed, &mine).unwrap();
    let second = install(root.path(), &[]);
    assert!(second.status.success() && text(&second).contains("kept /etc/gfs/master.toml"), "{}", text(&second));
    assert_eq!(files(root.path()), installed, "a second installation adds and loses nothing");

    let removed = install(root.path(), &["--uninstall"]);
    assert!(removed.status.success(), "{}", text(&removed));
    let left: Vec<_> = files(root.path()).into_iter().collect();
    assert_eq!(left, [PathBuf::from("etc/gfs/master.toml")]);
    assert_eq!(fs::read_to_string(&changed).unwrap(), mine);
}

#[test]
fn installation_without_the_programs_is_refused_with_one_line() {
    let root = tempfile::tempdir().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let output = install(root.path(), &["--from", empty.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("gfs is missing") && said.contains("--from"), "{said}");
    assert!(files(root.path()).is_empty(), "{:?}", files(root.path()));
}

#[test]
fn units_are_accepted_by_systemd_analyze() {
    let root = tempfile::tempdir().unwrap();
    // systemd wants the programs to exist: they are the ones just built.
    let bin = binary("gfs").parent().unwrap().to_path_buf();
    let mut names: Vec<String> = Vec::new();
    for unit in UNITS {
        let unit_text = fs::read_to_string(packaging().join("systemd").join(unit)).unwrap();
        assert!(unit_text.contains("@BINDIR@/gfs"), "{unit} names no program");
        let name = unit.replace("@.", "@mnt-gfs.");
        fs::write(root.path().join(&name), unit_text.replace("@BINDIR@", bin.to_str().unwrap())).unwrap();
        names.push(name);
    }
    let example = fs::read_to_string(packaging().join("systemd/mnt-gfs.mount.example")).unwrap();
    fs::write(root.path().join("mnt-gfs.mount"), example).unwrap();
    names.push("mnt-gfs.mount".into());
    for name in names {
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--recursive-errors=no", "--man=no"]).arg(root.path().join(&name));
        let output = command.output().expect("systemd-analyze (package systemd)");
        let said = text(&output);
        // What it says about other units of this machine is no matter of ours.
        let ours: Vec<_> = said.lines().filter(|line| line.contains(&name)).collect();
        assert!(output.status.success() && ours.is_empty(), "{name}: {said}");
    }
}

#[test]
fn a_mistake_in_a_unit_would_be_found() {
    let root = tempfile::tempdir().unwrap();
    let unit = root.path().join("gfs-broken.service");
    fs::write(&unit, "[Service]\nExecStart=/bin/true\nRestrat=always\nType=notfy\n").unwrap();
    let output =
        Command::new("systemd-analyze").args(["verify", "--recursive-errors=no", "--man=no"]).arg(&unit).output();
    let output = output.unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.lines().any(|line| line.contains("gfs-broken.service")), "{said}");
}
