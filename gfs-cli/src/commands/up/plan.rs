//! What `gfs up` wants to run: settings from flags and from last time, ports, arguments. Nothing is started here.

use super::Args;
use crate::UsageError;
use crate::cluster_file::Settings;
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::net::TcpListener;
use std::path::Path;

const DEFAULT_BASE_PORT: u16 = 7400;
const DEFAULT_CHUNK_SIZE: u64 = 64 << 20;
/// Chunk sizes are multiples of the checksum block, and small enough for 32-bit offsets.
const CHUNK_SIZES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 30;

/// The cluster that is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    base_port: u16,
    chunkservers: u16,
    replicas: u8,
    chunk_size: u64,
    links: Vec<Link>,
}

/// How a chunk server and the rest of the cluster reach each other, when not directly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// The port by which others reach it.
    pub advertise: u16,
    /// The port by which it reaches the master.
    pub master: u16,
}

impl Link {
    /// `ADVERTISE/MASTER`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let ports = text.split_once('/').map(|(advertise, master)| (advertise.parse(), master.parse()));
        match ports {
            Some((Ok(advertise), Ok(master))) => Ok(Self { advertise, master }),
            _ => Err("two ports, as PORT/PORT".into()),
        }
    }
}

/// One process that is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// `master-1`, `chunkd-1`, ...
    pub name: String,
    /// Its port; HTTP is one above; 0 lets the system choose both.
    pub port: u16,
    kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    Master { chunk_size: u64, replicas: u8 },
    ChunkServer(Option<Link>),
}

impl Plan {
    /// From flags, and what the cluster was made with. What cannot change any more is refused.
    pub fn new(args: &Args, before: &Settings) -> Result<Self> {
        let dir = args.dir.display();
        let same = |flag: &str, given: Option<u64>, before: Option<u64>| match (given, before) {
            (Some(given), Some(before)) if given != before => {
                bail!(
                    "the cluster in {dir} was made with --{flag} {before}: leave the flag out, or choose another --dir"
                )
            }
            _ => Ok(()),
        };
        same("base-port", args.base_port.map(u64::from), before.base_port.map(u64::from))?;
        same("chunk-size", args.chunk_size, before.chunk_size)?;
        same("replicas", args.replicas.map(u64::from), before.replicas.map(u64::from))?;
        // Fewer than before would leave some running unrecorded; removing one is `gfs servers drain`'s work.
        let chunkservers = args.chunkservers.unwrap_or(3).max(before.chunkservers.unwrap_or(0));
        let chunkservers = if args.chunkservers.is_none() { before.chunkservers.unwrap_or(3) } else { chunkservers };
        let replicas = args.replicas.or(before.replicas).unwrap_or(3.min(chunkservers.min(16) as u8));
        let plan = Self {
            base_port: args.base_port.or(before.base_port).unwrap_or(DEFAULT_BASE_PORT),
            chunkservers,
            replicas,
            chunk_size: args.chunk_size.or(before.chunk_size).unwrap_or(DEFAULT_CHUNK_SIZE),
            links: args.links.clone(),
        };
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        let usage = |text: String| Err(UsageError(text).into());
        if u16::from(self.replicas) > self.chunkservers {
            return usage(format!(
                "--replicas {} needs as many chunk servers, and there are {}: raise --chunkservers",
                self.replicas, self.chunkservers
            ));
        }
        if !CHUNK_SIZES.contains(&self.chunk_size) || !self.chunk_size.is_power_of_two() {
            return usage(format!("--chunk-size {}: a power of two from 64K to 1G", self.chunk_size));
        }
        let last = u32::from(self.base_port) + 100 + 10 * (u32::from(self.chunkservers) - 1) + 1;
        if self.base_port != 0 && last > u32::from(u16::MAX) {
            return usage(format!("--base-port {}: the last chunk server would get port {last}", self.base_port));
        }
        Ok(())
    }

    /// What to keep for next time.
    pub fn settings(&self) -> Settings {
        Settings {
            base_port: Some(self.base_port),
            chunkservers: Some(self.chunkservers),
            replicas: Some(self.replicas),
            chunk_size: Some(self.chunk_size),
        }
    }

    /// The master.
    pub fn master(&self) -> Wanted {
        let kind = Kind::Master { chunk_size: self.chunk_size, replicas: self.replicas };
        Wanted { name: "master-1".into(), port: self.base_port, kind }
    }

    /// The chunk servers.
    pub fn chunk_servers(&self) -> Vec<Wanted> {
        let port = |n: u16| if self.base_port == 0 { 0 } else { self.base_port + 100 + 10 * (n - 1) };
        let link = |n: u16| self.links.get(usize::from(n) - 1).copied();
        (1..=self.chunkservers)
            .map(|n| Wanted { name: format!("chunkd-{n}"), port: port(n), kind: Kind::ChunkServer(link(n)) })
            .collect()
    }
}

impl Wanted {
    /// The program.
    pub fn program(&self) -> &'static str {
        match self.kind {
            Kind::Master { .. } => "gfs-master",
            Kind::ChunkServer(_) => "gfs-chunkd",
        }
    }

    /// Addresses of service and HTTP.
    pub fn addresses(&self) -> (String, String) {
        let http = if self.port == 0 { 0 } else { self.port + 1 };
        (format!("127.0.0.1:{}", self.port), format!("127.0.0.1:{http}"))
    }

    /// Arguments of the program.
    pub fn arguments(&self, data: &Path, addresses: &(String, String), masters: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--data".into(), data.into()];
        let mut flag = |name: &str, value: &str| arguments.extend([name.into(), value.into()]);
        flag("--listen", &addresses.0);
        flag("--http", &addresses.1);
        match self.kind {
            Kind::Master { chunk_size, replicas } => {
                flag("--chunk-size", &chunk_size.to_string());
                flag("--replicas", &replicas.to_string());
            }
            Kind::ChunkServer(None) => flag("--master", masters),
            Kind::ChunkServer(Some(Link { advertise, master })) => {
                flag("--master", &format!("127.0.0.1:{master}"));
                flag("--advertise", &format!("127.0.0.1:{advertise}"));
            }
        }
        arguments
    }
}

/// Finds an occupied port before the daemon does, so that the message names the flag of `gfs up`.
pub fn check_port(address: &str) -> Result<()> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
            bail!("port {port} on {host} is in use: stop the process that has it, or choose others with --base-port")
        }
        // Anything else is the daemon's to tell.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn plan(line: &str, before: &Settings) -> Result<Plan> {
        let words = format!("gfs up --dir d {line}");
        let Command::Up(args) = Cli::try_parse_from(words.split_whitespace())?.command else { unreachable!() };
        Plan::new(&args, before)
    }

    #[test]
    fn ports_follow_the_base_port() {
        let plan = plan("--base-port 9000 --chunkservers 2 --replicas 2", &Settings::default()).unwrap();
        assert_eq!(plan.master().addresses(), ("127.0.0.1:9000".into(), "127.0.0.1:9001".into()));
        let servers: Vec<_> = plan.chunk_servers().iter().map(|w| (w.name.clone(), w.port)).collect();
        assert_eq!(servers, [("chunkd-1".into(), 9100), ("chunkd-2".into(), 9110)]);
    }

    #[test]
    fn second_up_without_flags_takes_the_settings_of_the_first() {
        let first = plan("--base-port 0 --chunkservers 4 --replicas 2 --chunk-size 1M", &Settings::default()).unwrap();
        assert_eq!(plan("", &first.settings()).unwrap(), first);
        let more = plan("--chunkservers 5", &first.settings()).unwrap();
        assert_eq!(more.chunk_servers().len(), 5);
        assert_eq!(plan("--chunkservers 2", &first.settings()).unwrap().chunk_servers().len(), 4);
    }

    #[test]
    fn what_cannot_change_is_refused_with_the_mend() {
        let first = plan("--base-port 9000", &Settings::default()).unwrap().settings();
        let error = plan("--base-port 9500", &first).unwrap_err().to_string();
        assert_eq!(
            error,
            "the cluster in d was made with --base-port 9000: leave the flag out, or choose another --dir"
        );
        assert!(plan("--chunk-size 1M", &first).is_err());
        assert!(plan("--base-port 9000", &first).is_ok());
    }

    #[test]
    fn impossible_sizes_are_usage_errors() {
        for line in ["--chunkservers 1 --replicas 2", "--chunk-size 65K", "--chunk-size 2G", "--base-port 65500"] {
            assert!(plan(line, &Settings::default()).unwrap_err().is::<UsageError>(), "{line}");
        }
        assert_eq!(plan("--chunkservers 1", &Settings::default()).unwrap().settings().replicas, Some(1));
    }

    #[test]
    fn occupied_port_is_told_with_the_flag_of_up() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = check_port(&held.local_addr().unwrap().to_string()).unwrap_err().to_string();
        assert!(error.ends_with("choose others with --base-port"), "{error}");
        assert!(check_port("127.0.0.1:0").is_ok());
    }

    #[test]
    fn arguments_name_data_addresses_and_masters() {
        let plan = plan("--chunk-size 1M", &Settings::default()).unwrap();
        let addresses = ("a:1".to_string(), "a:2".to_string());
        let master = plan.master().arguments(Path::new("/d"), &addresses, "");
        let expected =
            ["--data", "/d", "--listen", "a:1", "--http", "a:2", "--chunk-size", "1048576", "--replicas", "3"];
        assert_eq!(master, expected);
        let server = plan.chunk_servers()[0].arguments(Path::new("/d"), &addresses, "m:1");
        assert_eq!(server[6..], ["--master", "m:1"]);
    }
}
