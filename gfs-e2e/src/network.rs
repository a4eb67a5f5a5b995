//! Several hosts on this machine: a network namespace each, joined by a bridge in one more, and cuts between them.
//!
//! Nothing of the machine's own network is touched. A cut swallows packets without a word, as a broken cable or a wrong rule of a
//! firewall does: nobody is told that nobody listens. It is made where the packets arrive, so that the sender's kernel notices nothing.

use crate::cluster::{alive, text};
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// What all names begin with; the process id of the test follows.
const PREFIX: &str = "gfs-e2e-";

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// Hosts with names, on one wire. The namespaces are removed when it is dropped.
pub struct Network {
    prefix: String,
    hosts: Vec<String>,
}

impl Network {
    /// Makes hosts with these names.
    pub fn new(hosts: &[&str]) -> Self {
        sweep();
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            prefix: format!("{PREFIX}{}-{number}", std::process::id()),
            hosts: hosts.iter().map(|host| (*host).to_string()).collect(),
        };
        // Made one after the other: what a panic leaves is removed by the drop.
        network.add_bridge();
        (0..hosts.len()).for_each(|index| network.add_host(index));
        network
    }

    /// The address of a host.
    pub fn address(&self, host: &str) -> String {
        format!("10.77.0.{}", self.index(host) + 1)
    }

    /// A command that runs on a host: with its network, and the files and mounts of this machine.
    pub fn command(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        // `ip netns exec` would give it mounts of its own, which nobody else sees.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NAMES}/{}", self.namespace(host))).arg("--").arg(program);
        command
    }

    /// What `from` sends does not reach `to` any more.
    pub fn swallow(&self, from: &str, to: &str) {
        self.rules(to, &format!("add element inet cut from {{ {} }}", self.address(from)));
    }

    /// Two hosts do not reach each other.
    pub fn cut(&self, one: &str, other: &str) {
        self.swallow(one, other);
        self.swallow(other, one);
    }

    /// A host hears nobody; the others hear it.
    pub fn deafen(&self, host: &str) {
        self.others(host).for_each(|other| self.swallow(other, host));
    }

    /// Nobody hears a host; it hears the others.
    pub fn mute(&self, host: &str) {
        self.others(host).for_each(|other| self.swallow(host, other));
    }

    /// A host is cut from all others, both ways.
    pub fn isolate(&self, host: &str) {
        self.deafen(host);
        self.mute(host);
    }

    /// A host sends so slowly, in Mbit/s, that what it sends piles up.
    pub fn slow(&self, host: &str, mbit: u32) {
        let rate = format!("{mbit}mbit");
        let shape = ["qdisc", "replace", "dev", "wire", "root", "tbf", "rate", &rate, "burst", "64kb", "latency", "1s"];
        feed(self.command(host, "tc").args(shape), "");
    }

    /// Everybody reaches everybody.
    pub fn heal(&self) {
        self.hosts.iter().for_each(|host| self.rules(host, "flush set inet cut from"));
    }

    fn others<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a str> {
        self.hosts.iter().map(String::as_str).filter(move |other| *other != host)
    }

    fn index(&self, host: &str) -> usize {
        self.hosts.iter().position(|name| name == host).unwrap_or_else(|| panic!("no host {host}"))
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn bridge(&self) -> String {
        format!("{}.bridge", self.prefix)
    }

    fn add_bridge(&self) {
        let name = self.bridge();
        feed(Command::new("ip").args(["netns", "add", &name]), "");
        let links = "link set lo up\nlink add wire type bridge\nlink set wire up\n";
        feed(Command::new("ip").args(["-n", &name, "-batch", "-"]), links);
    }

    fn add_host(&self, index: usize) {
        let (host, bridge) = (&self.hosts[index], self.bridge());
        let name = self.namespace(host);
        feed(Command::new("ip").args(["netns", "add", &name]), "");
        let links = format!(
            "link set lo up\nlink add wire type veth peer name port{index} netns {bridge}\n\
             addr add {}/24 dev wire\nlink set wire up\n",
            self.address(host)
        );
        feed(Command::new("ip").args(["-n", &name, "-batch", "-"]), &links);
        let port = format!("link set port{index} master wire\nlink set port{index} up\n");
        feed(Command::new("ip").args(["-n", &bridge, "-batch", "-"]), &port);
        let table = "table inet cut {\n set from { type ipv4_addr; }\n chain arrival {\n \
                     type filter hook input priority 0; policy accept;\n ip saddr @from drop\n }\n}\n";
        self.rules(host, table);
    }

    fn rules(&self, host: &str, rules: &str) {
        feed(self.command(host, "nft").args(["-f", "-"]), rules);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let names = self.hosts.iter().map(|host| self.namespace(host)).chain([self.bridge()]);
        names.for_each(|name| remove(&name));
    }
}

fn remove(name: &str) {
    if Path::new(NAMES).join(name).exists() {
        let _ = Command::new("ip").args(["netns", "del", name]).output();
    }
}

/// Removes what a test that was killed has left.
fn sweep() {
    for entry in std::fs::read_dir(NAMES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid| !alive(pid)) {
            remove(&name);
        }
    }
}

/// Runs a command with a text for its input; it must succeed.
fn feed(command: &mut Command, input: &str) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    child.stdin.take().expect("its input").write_all(input.as_bytes()).unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{command:?}: {}\n{input}", text(&output));
}
