//! Which cluster a client talks to (design section 7, "Which cluster").
//!
//! This room reads the files that are named to it. It never reads the environment: binaries pass what they found there.

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where a master is when nothing says otherwise.
pub const DEFAULT_MASTER: &str = "127.0.0.1:7400";

/// The masters of one cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// `host:port` of each; at least one.
    pub masters: Vec<String>,
}

/// A cluster that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not `HOST:PORT[,HOST:PORT...]`.
    #[error("bad cluster address {0:?}: expected HOST:PORT[,HOST:PORT...]")]
    Address(String),
    /// A file that is there cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
}

#[derive(Deserialize)]
struct ClusterFile {
    #[serde(default)]
    process: Vec<Process>,
}

#[derive(Deserialize)]
struct Process {
    name: String,
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
struct ClientFile {
    cluster: Option<Addresses>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Addresses {
    One(String),
    Many(Vec<String>),
}

impl Target {
    /// Parses `HOST:PORT[,HOST:PORT...]`; a part without a port gets the default one.
    ///
    /// # Errors
    /// `TargetError::Address`.
    pub fn parse(list: &str) -> Result<Self, TargetError> {
        let bad = || TargetError::Address(list.to_owned());
        let mut masters = Vec::new();
        for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let address = match part.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
                    part.to_owned()
                }
                None if part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) => {
                    format!("{part}:7400")
                }
                _ => return Err(bad()),
            };
            masters.push(address);
        }
        if masters.is_empty() { Err(bad()) } else { Ok(Self { masters }) }
    }

    /// Finds the cluster: `flag`, else `environment`, else the file that `gfs up` writes, else the client's configuration,
    /// else the default. A file that is not there is passed over; one that is there and wrong is an error.
    ///
    /// # Errors
    /// Whatever the first source that is present has wrong with it.
    pub fn resolve(
        flag: Option<&str>,
        environment: Option<&str>,
        cluster: &Path,
        client: &Path,
    ) -> Result<Self, TargetError> {
        if let Some(list) = flag.or(environment.filter(|list| !list.is_empty())) {
            return Self::parse(list);
        }
        if let Some(found) = Self::from_cluster_file(cluster)? {
            return Ok(found);
        }
        if let Some(found) = Self::from_client_file(client)? {
            return Ok(found);
        }
        Self::parse(DEFAULT_MASTER)
    }

    /// The masters that a `cluster.toml` lists; `None` when it is not there or lists none.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn from_cluster_file(path: &Path) -> Result<Option<Self>, TargetError> {
        let Some(file) = read::<ClusterFile>(path)? else { return Ok(None) };
        let masters = file.process.into_iter().filter(|p| p.name.starts_with("master")).map(|p| p.address);
        let list = masters.filter(|address| !address.is_empty()).collect::<Vec<_>>().join(",");
        if list.is_empty() { Ok(None) } else { Self::parse(&list).map(Some) }
    }

    /// The `cluster` of a client configuration, one string or a list; `None` when it is not there.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn from_client_file(path: &Path) -> Result<Option<Self>, TargetError> {
        let Some(file) = read::<ClientFile>(path)? else { return Ok(None) };
        match file.cluster {
            None => Ok(None),
            Some(Addresses::One(list)) => Self::parse(&list).map(Some),
            Some(Addresses::Many(list)) => Self::parse(&list.join(",")).map(Some),
        }
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, TargetError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(TargetError::Read { path: path.into(), source }),
    };
    toml::from_str(&text)
        .map(Some)
        .map_err(|error| TargetError::Content { path: path.into(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masters(target: Target) -> Vec<String> {
        target.masters
    }

    #[test]
    fn a_list_of_addresses_is_parsed_and_nonsense_refused() {
        assert_eq!(masters(Target::parse("a:1, b:2").unwrap()), ["a:1", "b:2"]);
        assert_eq!(masters(Target::parse("host").unwrap()), ["host:7400"]);
        for bad in ["", ",", "a:", ":1", "a:0", "a:x", "a b"] {
            assert!(matches!(Target::parse(bad), Err(TargetError::Address(_))), "{bad:?}");
        }
    }

    #[test]
    fn the_nearer_source_wins_and_missing_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, client) = (dir.path().join("cluster.toml"), dir.path().join("client.toml"));
        let find = |flag, env| masters(Target::resolve(flag, env, &cluster, &client).unwrap());
        assert_eq!(find(None, None), [DEFAULT_MASTER]);
        std::fs::write(&client, "cluster = [\"c:1\", \"d:2\"]\n").unwrap();
        assert_eq!(find(None, None), ["c:1", "d:2"]);
        let text = "[[process]]\nname = \"master-1\"\naddress = \"m:1\"\npid = 4\n[[process]]\nname = \"chunkd-1\"\naddress = \"x:1\"\n";
        std::fs::write(&cluster, text).unwrap();
        assert_eq!(find(None, None), ["m:1"]);
        assert_eq!(find(None, Some("")), ["m:1"]);
        assert_eq!(find(None, Some("e:1")), ["e:1"]);
        assert_eq!(find(Some("f:1"), Some("e:1")), ["f:1"]);
    }

    #[test]
    fn a_file_that_is_there_and_wrong_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, "process = 7").unwrap();
        assert!(matches!(Target::from_cluster_file(&path), Err(TargetError::Content { .. })));
    }
}
