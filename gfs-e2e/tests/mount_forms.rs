//! Every way to mount works through mount(8), and bad input gets one clear line.

use gfs_e2e::cluster::{binary, text, wait_until};
use gfs_e2e::work::{run, shell};
use gfs_e2e::{Cluster, Options};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Installs the binaries and helpers in the system for the time of a test.
struct Installed;

fn install(arguments: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/install.sh");
    let binaries = binary("gfs").parent().unwrap().to_path_buf();
    let output = Command::new("bash").arg(script).args(arguments).env("GFS_BINARIES", binaries).output().unwrap();
    assert!(output.status.success(), "install.sh {arguments:?}: {}", text(&output));
}

impl Installed {
    fn new() -> Self {
        install(&["--prefix", "/usr/local"]);
        Self
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        install(&["--prefix", "/usr/local", "--uninstall"]);
    }
}

fn mount(cluster: &Cluster, arguments: &[&str]) -> Output {
    Command::new("mount").args(arguments).env("GFS_CLUSTER", cluster.master()).output().unwrap()
}

#[test]
fn every_form_of_mount_works() {
    let cluster = Cluster::start(Options::default());
    let _installed = Installed::new();
    fs::write(cluster.mount().join("f"), "through mount(8)").unwrap();
    fs::create_dir(cluster.mount().join("sub")).unwrap();
    fs::write(cluster.mount().join("sub/g"), "below").unwrap();
    let point = cluster.scratch().join("mp");
    fs::create_dir(&point).unwrap();
    let (master, mp) = (cluster.master(), point.to_str().unwrap());
    let with_host = format!("gfs#{master}");
    let forms: [&[&str]; 6] = [
        &["-t", "fuse", "gfs", mp],
        &["-t", "fuse", &with_host, mp],
        &["-t", "fuse.gfs", &master, mp],
        &["-t", "gfs", &master, mp],
        &["-t", "gfs", &master, mp, "-o", "ro,allow_other,_netdev,nofail,mount_timeout=10"],
        &["-t", "gfs", &master, mp, "-o", "subdir=/sub"],
    ];
    for form in forms {
        let output = mount(&cluster, form);
        assert!(output.status.success(), "mount {form:?}: {}", text(&output));
        // The command returned, so the mount answers now.
        let found = if form.contains(&"subdir=/sub") { point.join("g") } else { point.join("f") };
        assert!(found.exists(), "mount {form:?} shows {:?}", fs::read_dir(&point).unwrap().collect::<Vec<_>>());
        let writable = fs::write(point.join("w"), "x").is_ok();
        assert_eq!(writable, !form.iter().any(|o| o.starts_with("ro,")), "mount {form:?}");
        run("umount", &[mp], &cluster.scratch());
        assert!(!point.join("f").exists());
    }
}

#[test]
fn a_line_of_fstab_mounts() {
    let cluster = Cluster::start(Options::default());
    let _installed = Installed::new();
    fs::write(cluster.mount().join("f"), "x").unwrap();
    let point = cluster.scratch().join("mp");
    fs::create_dir(&point).unwrap();
    let table = cluster.scratch().join("fstab");
    let line = format!(
        "{} {} gfs _netdev,nofail,x-systemd.automount,mount_timeout=10 0 0\n",
        cluster.master(),
        point.display()
    );
    fs::write(&table, line).unwrap();
    run("mount", &["-T", table.to_str().unwrap(), point.to_str().unwrap()], &cluster.scratch());
    assert!(point.join("f").exists());
    run("umount", &[point.to_str().unwrap()], &cluster.scratch());
}

/// A command that must fail with one clear line that names `parts`.
fn refused(output: &Output, parts: &[&str]) {
    assert!(!output.status.success(), "it was accepted: {}", text(output));
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().filter(|l| !l.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "not one line: {said}");
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in: {said}");
    }
}

fn daemon(name: &str, arguments: &[&str]) -> Output {
    let mut child =
        Command::new(binary(name)).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(&format!("{name} {arguments:?} gives up"), Duration::from_secs(30), || {
        child.try_wait().unwrap().is_some()
    });
    child.wait_with_output().unwrap()
}

#[test]
fn bad_configuration_is_refused_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let write = |content: &str| -> PathBuf {
        let path = folder.path().join("c.toml");
        fs::write(&path, content).unwrap();
        path
    };
    for name in ["gfs-master", "gfs-chunkd"] {
        let path = write("lisen = \"127.0.0.1:0\"\n");
        refused(&daemon(name, &["--config", path.to_str().unwrap()]), &["lisen", "listen", "c.toml"]);
        let path = write("listen = 7\n");
        refused(&daemon(name, &["--config", path.to_str().unwrap()]), &["listen", "c.toml"]);
        refused(&daemon(name, &["--config", "/nonexistent.toml"]), &["/nonexistent.toml"]);
        let output = Command::new(binary(name)).arg("--print-config").output().unwrap();
        assert!(output.status.success() && text(&output).contains("listen"));
    }
}

#[test]
fn taken_ports_directories_and_identities_are_refused_with_one_line() {
    let cluster = Cluster::start(Options::default());
    let other = cluster.scratch().join("other");
    let other = other.to_str().unwrap();
    let master = cluster.master();
    let taken = ["--listen", &master, "--http", "127.0.0.1:0"];
    refused(
        &daemon("gfs-master", &[&["--data", other], &taken[..]].concat()),
        &[&master.replace("127.0.0.1:", ""), "in use"],
    );

    let free = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let data = cluster.process("master-1").data;
    refused(
        &daemon("gfs-master", &[&["--data", data.to_str().unwrap()], &free[..]].concat()),
        &["in use", data.to_str().unwrap()],
    );

    let data = cluster.process("chunkd-1").data;
    let chunkd =
        |data: &str, master: &str| daemon("gfs-chunkd", &[&["--data", data, "--master", master], &free[..]].concat());
    refused(&chunkd(data.to_str().unwrap(), &master), &["in use", data.to_str().unwrap()]);

    // A copy of a live server's disk, and the disk of another cluster.
    let copy = cluster.scratch().join("copy");
    shell(&cluster.scratch(), &format!("cp -a {} copy", data.display()));
    refused(&chunkd(copy.to_str().unwrap(), &master), &["online"]);
    let second = Cluster::start(Options { chunkservers: 1, replicas: 1, ..Options::default() });
    refused(&chunkd(copy.to_str().unwrap(), &second.master()), &["cluster"]);
}

#[test]
fn bad_mount_points_and_wrong_masters_are_refused_with_one_line() {
    let cluster = Cluster::start(Options::default());
    let gfs = |arguments: &[&str]| {
        let output = cluster.gfs(&[&["mount"], arguments].concat());
        assert_eq!(output.status.code(), Some(32), "{}", text(&output));
        output
    };
    let master = cluster.master();
    refused(&gfs(&[&master, "/nonexistent/mp"]), &["/nonexistent/mp"]);
    let file = cluster.scratch().join("file");
    fs::write(&file, "").unwrap();
    refused(&gfs(&[&master, file.to_str().unwrap()]), &["not a directory"]);
    let busy = cluster.mount();
    refused(&gfs(&[&master, busy.to_str().unwrap()]), &[busy.to_str().unwrap(), "mounted"]);
    let point = cluster.scratch().join("mp");
    fs::create_dir(&point).unwrap();
    let point = point.to_str().unwrap();
    refused(&gfs(&[&master, point, "-o", "colour=red"]), &["colour"]);
    refused(&gfs(&["127.0.0.1:1", point, "-o", "mount_timeout=2"]), &["127.0.0.1:1"]);
    let chunkd = cluster.process("chunkd-1").address;
    refused(&gfs(&[&chunkd, point, "-o", "mount_timeout=3"]), &[&chunkd]);
    let (http, _stop) = web_server();
    refused(&gfs(&[&http, point, "-o", "mount_timeout=3"]), &[&http]);
}

/// Something that answers, but not as a master does.
fn web_server() -> (String, std::sync::mpsc::Sender<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = std::sync::mpsc::channel();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        while matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
            match listener.accept() {
                Ok((mut socket, _)) => {
                    let _ = std::io::Write::write_all(
                        &mut socket,
                        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
                    );
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    });
    (address, stop)
}

#[test]
fn garbage_on_every_port_harms_nobody() {
    let cluster = Cluster::start(Options::default());
    let memory = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap().to_string();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let daemons: Vec<_> = cluster.processes().into_iter().filter(|p| !p.name.starts_with("mount")).collect();
    let before: Vec<_> = daemons.iter().map(|p| memory(p.pid)).collect();
    let garbage: Vec<u8> = (0..1 << 16).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for process in &daemons {
        for round in 0..100 {
            let mut socket = std::net::TcpStream::connect(&process.address).unwrap();
            let _ = std::io::Write::write_all(&mut socket, &garbage[round..]);
        }
    }
    shell(&cluster.mount(), "echo fine > f && test $(cat f) = fine && rm f");
    for (process, before) in daemons.iter().zip(before) {
        let now = memory(process.pid);
        assert!(now < before + 64 * 1024, "{} grew from {before} to {now} KiB", process.name);
    }
}
