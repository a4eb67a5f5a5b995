//! The flags that every daemon has.
//!
//! This room owns `--config`, `--print-config`, `--log-level` and `--log-dir`. What a daemon adds is its own.

use crate::config::{ConfigError, Layers, Loaded};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// Flags common to all daemons; flatten it with `#[command(flatten)]`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct CommonArgs {
    /// Read this configuration file instead of the one in /etc/gfs
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print every setting with its value and where it came from, and exit
    #[arg(long)]
    pub print_config: bool,
    /// What to log: error, warn, info, debug, trace, or targets such as info,gfs_master=debug
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Also write a log file a day into this directory
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
}

impl CommonArgs {
    /// Loads the configuration of `daemon` (`gfs-master`), with `flags` and the common ones on top.
    ///
    /// `T` is a flat struct that has the keys `log_level` and `log_dir`. A flag that was not given is `None`.
    pub fn load<T>(&self, daemon: &str, flags: Vec<(&'static str, Option<String>)>) -> Result<Loaded<T>, ConfigError>
    where
        T: Serialize + DeserializeOwned + Default,
    {
        let mut given: Vec<(&'static str, String)> =
            flags.into_iter().filter_map(|(key, value)| value.map(|value| (key, value))).collect();
        if let Some(level) = &self.log_level {
            given.push(("log_level", level.clone()));
        }
        if let Some(dir) = &self.log_dir {
            given.push(("log_dir", dir.display().to_string()));
        }
        Layers::load(daemon, self.config.clone(), given)
    }
}
