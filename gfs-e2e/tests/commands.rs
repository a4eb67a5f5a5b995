//! The `gfs` command as a person uses it: bringing a cluster up and down, files through pipes, exit codes.

use gfs_e2e::cluster::{binary, text};
use gfs_e2e::work::shell;
use gfs_e2e::{Cluster, Options, Process};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn gfs(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("gfs"));
    command.args(arguments).current_dir(dir).env_remove("GFS_CLUSTER").output().expect("run gfs")
}

fn ok(dir: &Path, arguments: &[&str]) -> String {
    let output = gfs(dir, arguments);
    assert!(output.status.success(), "gfs {arguments:?}: {}", text(&output));
    text(&output)
}

fn processes(dir: &Path) -> Vec<Process> {
    #[derive(serde::Deserialize)]
    struct File {
        process: Vec<Process>,
    }
    toml::from_str::<File>(&fs::read_to_string(dir.join("gfs-data/cluster.toml")).unwrap()).unwrap().process
}

/// Takes the cluster of a directory down also when the test fails.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let _ = gfs(self.0, &["down"]);
    }
}

/// No condition is waited for between the kill and the next `gfs up`: that is what a person does.
#[test]
fn up_repairs_each_process_right_after_it_was_killed_and_down_wipes() {
    let root = tempfile::tempdir().unwrap();
    let (dir, mount) = (root.path(), root.path().join("mnt"));
    let _down = Down(dir);
    ok(dir, &["up", "--base-port", "0", "--mount", mount.to_str().unwrap()]);
    fs::write(mount.join("f"), "kept").unwrap();
    let first = processes(dir);
    let names: Vec<_> = first.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["master-1", "chunkd-1", "chunkd-2", "chunkd-3", "mount-1"]);
    assert!(ok(dir, &["up"]).contains("nothing to repair"));
    for process in &first {
        shell(dir, &format!("kill -9 {}", process.pid));
        let said = ok(dir, &["up"]);
        assert!(said.contains(&format!("repaired: {}", process.name)), "after kill -9 of {}: {said}", process.name);
        assert_eq!(fs::read(mount.join("f")).unwrap(), b"kept", "after kill -9 of {}", process.name);
    }
    let master = |processes: &[Process]| processes[0].address.clone();
    assert_eq!(master(&processes(dir)), master(&first), "a port of the system's choice stays while others know it");
    let said = ok(dir, &["down"]);
    assert!(said.contains("unmounted") && said.contains("stopped master-1"), "{said}");
    assert!(ok(dir, &["down"]).contains("nothing was running"));
    ok(dir, &["up", "--mount", mount.to_str().unwrap()]);
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"kept", "data is kept over down and up");
    ok(dir, &["down", "--wipe"]);
    assert!(!dir.join("gfs-data").exists());
    assert!(ok(dir, &["down"]).contains("no cluster"));
}

#[test]
fn files_go_through_pipes_both_ways() {
    let cluster = Cluster::start(Options { chunk_size: Some(1 << 20), ..Options::default() });
    let script = format!(
        "export PATH={}:$PATH GFS_CLUSTER={}
         head -c 5000001 /dev/urandom > big
         gfs mkdir -p /a/b && cat big | gfs put - /a/b/big && gfs get /a/b/big - | cmp - big && gfs cat /a/b/big | cmp - big
         gfs put big /a/ && cmp {mount}/a/big big && gfs get /a/big copy && cmp copy big
         cat big | gfs append /a/big - && gfs append /a/big big && cat big big big | cmp - {mount}/a/big
         gfs cp /a/big /a/twice && gfs cat /a/twice | cmp - {mount}/a/big && gfs cp -r /a /c && diff -r {mount}/a {mount}/c
         test $(gfs cat /a/big | head -c 7 | wc -c) = 7",
        binary("gfs").parent().unwrap().display(),
        cluster.master(),
        mount = cluster.mount().display()
    );
    // `head` ends before `cat` does, which is no failure of the last line.
    shell(&cluster.scratch(), &script.replace("test $(gfs", "set +o pipefail; test $(gfs"));
    assert_eq!(cluster.gfs_ok(&["find", "/", "-name", "big", "-type", "f"]), "/a/b/big\n/a/big\n/c/b/big\n/c/big\n");
    assert_eq!(cluster.gfs_ok(&["ls", "/a"]), "b\nbig\ntwice\n");
    let json = |arguments: &[&str]| -> serde_json::Value { serde_json::from_str(&cluster.gfs_ok(arguments)).unwrap() };
    assert_eq!(json(&["stat", "--json", "/a/twice"])[0]["size"], 3 * 5_000_001);
    assert_eq!(json(&["du", "--json", "/a/b"])[0]["bytes"], 5_000_001);
    let chunks = json(&["chunks", "--json", "/a/b/big"]);
    assert_eq!(chunks.as_array().unwrap().len(), 5, "{chunks}");
    assert!(chunks.as_array().unwrap().iter().all(|chunk| chunk["members"].as_array().unwrap().len() == 3), "{chunks}");
    assert!(cluster.gfs_ok(&["tree", "/a"]).ends_with("1 directory, 3 files\n"));
}

#[test]
fn set_replicas_drops_and_makes_copies() {
    let cluster = Cluster::start(Options { chunk_size: Some(1 << 20), ..Options::default() });
    fs::write(cluster.mount().join("f"), vec![7; 3 << 20]).unwrap();
    let copies = || -> Vec<usize> {
        let chunks: serde_json::Value = serde_json::from_str(&cluster.gfs_ok(&["chunks", "--json", "/f"])).unwrap();
        chunks.as_array().unwrap().iter().map(|chunk| chunk["members"].as_array().unwrap().len()).collect()
    };
    for goal in [1, 3, 2] {
        cluster.gfs_ok(&["set-replicas", &goal.to_string(), "/f"]);
        let limit = std::time::Duration::from_secs(60);
        gfs_e2e::cluster::wait_until(&format!("{goal} copies"), limit, || copies() == [goal; 3]);
        assert_eq!(fs::read(cluster.mount().join("f")).unwrap(), vec![7; 3 << 20], "with {goal} copies");
    }
}

#[test]
fn exit_codes_and_messages_are_what_scripts_need() {
    let cluster = Cluster::start(Options { chunkservers: 1, replicas: 1, ..Options::default() });
    cluster.gfs_ok(&["mkdir", "/d"]);
    cluster.gfs_ok(&["put", "/etc/hostname", "/f"]);
    let refused: [&[&str]; 9] = [
        &["cat", "/none"],
        &["cat", "/d"],
        &["rm", "/d"],
        &["mkdir", "/d"],
        &["put", "/nonexistent", "/x"],
        &["get", "/f", "/nonexistent/x"],
        &["mv", "/none", "/x"],
        &["chunks", "/none"],
        &["--cluster", "127.0.0.1:1", "ls", "/"],
    ];
    for arguments in refused {
        let output = cluster.gfs(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "gfs {arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "gfs {arguments:?}");
    }
    let usage: [&[&str]; 6] = [
        &[],
        &["frob"],
        &["ls", "--frob"],
        &["ls", "relative"],
        &["set-replicas", "99", "/f"],
        &["completions", "foo"],
    ];
    for arguments in usage {
        let output = cluster.gfs(arguments);
        assert_eq!(output.status.code(), Some(2), "gfs {arguments:?}: {}", text(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "gfs {arguments:?}");
    }
    for arguments in [&["ls", "-lh", "/"][..], &["du", "-sh", "/"], &["df", "-h"], &["rm", "-f", "/none"]] {
        assert!(!cluster.gfs_ok(arguments).contains("Usage:"), "gfs {arguments:?} shows its help");
    }
    for kind in ["bash", "zsh", "fish"] {
        assert!(cluster.gfs_ok(&["completions", kind]).contains("set-replicas"), "{kind}");
    }
    let script = cluster.gfs_ok(&["completions", "bash"]);
    fs::write(cluster.scratch().join("completions"), script).unwrap();
    shell(&cluster.scratch(), "bash -n completions");
}
