//! The program as mount(8) sees it: what cannot be mounted ends with one clear line, exit code 32, and nothing mounted.

use std::fs;
use std::process::{Command, Output};

fn gfs_fuse(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gfs-fuse")).args(arguments).output().expect("run gfs-fuse")
}

/// What a refused mount says, which is one line.
fn refusal(arguments: &[&str]) -> String {
    let output = gfs_fuse(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(32), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    said.trim_end().to_owned()
}

#[test]
fn a_mount_point_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let said = refusal(&["127.0.0.1:1", missing.to_str().unwrap()]);
    assert_eq!(said, format!("gfs-fuse: mount point {} does not exist", missing.display()));
}

#[test]
fn an_unknown_option_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let said = refusal(&["-o", "nonsense", "127.0.0.1:1", folder.path().to_str().unwrap()]);
    assert_eq!(said, "gfs-fuse: unknown mount option `nonsense`");
}

#[test]
fn an_unknown_key_of_the_configuration_is_named_with_its_file_and_the_nearest_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fuse.toml");
    fs::write(&file, "optoins = \"ro\"\n").unwrap();
    let said = refusal(&["--config", file.to_str().unwrap()]);
    assert_eq!(said, format!("gfs-fuse: {}: unknown key `optoins`, did you mean `options`?", file.display()));
}

#[test]
fn the_configuration_in_force_is_printed_with_where_each_value_is_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fuse.toml");
    fs::write(&file, "options = \"ro\"\n").unwrap();
    let output = gfs_fuse(&["--config", file.to_str().unwrap(), "--print-config"]);
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    let from = |key: &str| {
        let line =
            printed.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key} in {printed}"));
        line.rsplit("# ").next().unwrap_or_default().trim().to_owned()
    };
    assert_eq!(from("cluster"), "default");
    assert!(from("options").contains("fuse.toml"), "{printed}");
}
