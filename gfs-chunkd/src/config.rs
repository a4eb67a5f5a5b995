//! Settings of the chunk server.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// All settings with their defaults; `--print-config` shows them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChunkdConfig {
    /// Data directories, one a disk, separated by commas.
    pub data: String,
    /// Address of the data port.
    pub listen: String,
    /// Address of the HTTP port: health and metrics.
    pub http: String,
    /// Masters, `HOST:PORT` separated by commas.
    pub master: String,
    /// `HOST:PORT` by which clients and other chunk servers reach the data port; empty: the listen address, or the host
    /// name when that is a wildcard.
    pub advertise: String,
    /// Failure domain above the host: rack, room.
    pub zone: String,
    /// Failure domain of this machine; empty: its host name.
    pub host: String,
    /// Bytes left free on every disk; 0: the smaller of 1 GiB and 1 percent.
    pub reserve_bytes: u64,
    /// Identity of this boot of the machine; empty: what the kernel says. Another one than before means that the machine lost
    /// what was not on stable storage.
    pub boot_id: String,
    /// Replicas that this server fills at a time.
    pub parallel_fills: usize,
    /// Megabytes a second that scrubbing reads to find damage; 0 turns it off.
    pub scrub_mb_per_s: u64,
    /// Seconds from the start of one scrub of everything to that of the next.
    pub scrub_period_s: u64,
    /// What to log.
    pub log_level: String,
    /// Directory of daily log files.
    pub log_dir: Option<PathBuf>,
}

impl Default for ChunkdConfig {
    fn default() -> Self {
        Self {
            data: "/var/lib/gfs/chunkd".into(),
            listen: "127.0.0.1:7410".into(),
            http: "127.0.0.1:7411".into(),
            master: "127.0.0.1:7400".into(),
            advertise: String::new(),
            zone: String::new(),
            host: String::new(),
            reserve_bytes: 0,
            boot_id: String::new(),
            parallel_fills: 4,
            scrub_mb_per_s: 20,
            scrub_period_s: 14 * 24 * 3600,
            log_level: "info".into(),
            log_dir: None,
        }
    }
}

/// A setting that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// Nothing is named where something must be.
    #[error("{0} is empty: name at least one")]
    Empty(&'static str),
    /// An address without a port.
    #[error("{key} = {value}: expected HOST:PORT")]
    Address {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

impl ChunkdConfig {
    /// The data directories.
    pub fn dirs(&self) -> Vec<PathBuf> {
        list(&self.data).map(PathBuf::from).collect()
    }

    /// The masters' addresses.
    pub fn masters(&self) -> Vec<String> {
        list(&self.master).map(str::to_owned).collect()
    }

    /// Refuses settings that can't work.
    ///
    /// # Errors
    /// The first one that is wrong.
    pub fn check(&self) -> Result<(), SettingError> {
        if self.dirs().is_empty() {
            return Err(SettingError::Empty("data"));
        }
        if self.masters().is_empty() {
            return Err(SettingError::Empty("master"));
        }
        for (key, value) in [("listen", &self.listen), ("http", &self.http)] {
            check_address(key, value)?;
        }
        if !self.advertise.is_empty() {
            check_address("advertise", &self.advertise)?;
        }
        self.masters().iter().try_for_each(|master| check_address("master", master))
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn check_address(key: &'static str, value: &str) -> Result<(), SettingError> {
    let good = value.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if good { Ok(()) } else { Err(SettingError::Address { key, value: value.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_usable() {
        let config = ChunkdConfig::default();
        assert!(config.check().is_ok());
        assert_eq!(config.masters(), vec!["127.0.0.1:7400".to_owned()]);
    }

    #[test]
    fn lists_are_split_and_addresses_checked() {
        let config = ChunkdConfig { data: "/a, /b,".into(), master: "h:1,i:2".into(), ..ChunkdConfig::default() };
        assert_eq!(config.dirs(), vec![PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(config.masters().len(), 2);
        let wrong = ChunkdConfig { master: "h".into(), ..ChunkdConfig::default() };
        assert!(matches!(wrong.check(), Err(SettingError::Address { key: "master", .. })));
        let none = ChunkdConfig { data: " , ".into(), ..ChunkdConfig::default() };
        assert!(matches!(none.check(), Err(SettingError::Empty("data"))));
    }
}
