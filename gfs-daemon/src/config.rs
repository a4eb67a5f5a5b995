//! Layers of configuration: defaults, a file, the environment, flags.
//!
//! This room owns how layers are merged, how a mistake in one is told, and how the outcome is shown. What the
//! keys mean belongs to the daemon, in one flat typed struct with a default.
//!
//! A value from the environment or a flag is text. It is taken as a TOML value if the key accepts that, else as
//! a string, else as a list separated by commas. In a file, a list of strings also does for a key whose value is
//! such a text with commas.

mod fields;

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Why a configuration was refused; one line, naming where the mistake is.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration file {path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}, line {line}: {message}", path = path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that the daemon does not know.
    #[error("{origin}: unknown key `{key}`{}", nearest.as_ref().map(|n| format!(", did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// Where it was given.
        origin: Origin,
        /// The key.
        key: String,
        /// A valid key that looks like it.
        nearest: Option<String>,
    },
    /// A value that the key does not accept.
    #[error("{origin}: key `{key}`: {message}")]
    WrongValue {
        /// Where it was given.
        origin: Origin,
        /// The key.
        key: String,
        /// What was found and what is expected.
        message: String,
    },
    /// The struct of defaults cannot be shown as TOML: a mistake in the daemon.
    #[error("defaults of {daemon} cannot be written as TOML: {message}")]
    Defaults {
        /// Whose.
        daemon: String,
        /// Why.
        message: String,
    },
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Built in.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// A configuration in force, with the origin of each value.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The typed configuration.
    pub value: T,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    shown: BTreeMap<String, (Option<Value>, Origin)>,
}

impl<T> Loaded<T> {
    /// Every key with its value and origin, for `--print-config`: valid TOML, origins as comments.
    #[must_use = "print it"]
    pub fn print(&self) -> String {
        let mut out = String::new();
        for (key, (value, origin)) in &self.shown {
            let line = match value {
                Some(value) => format!("{key} = {value}"),
                None => format!("# {key} is not set"),
            };
            out.push_str(&format!("{line:<48} # {origin}\n"));
        }
        out
    }

    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.shown.get(key).map(|(_, origin)| origin)
    }
}

/// Loads configurations; see the module.
pub struct Layers;

impl Layers {
    /// Merges defaults < file < environment < flags for `daemon` (`gfs-master` or `master`).
    ///
    /// Without `file`, `/etc/gfs/<daemon>.toml` is read if it exists. The environment gives `GFS_<KEY>`, and
    /// `GFS_<DAEMON>_<KEY>`, which wins. `T` must be a flat struct. Errors name the place and the key.
    pub fn load<T>(
        daemon: &str,
        file: Option<PathBuf>,
        flags: Vec<(&'static str, String)>,
    ) -> Result<Loaded<T>, ConfigError>
    where
        T: Serialize + DeserializeOwned + Default,
    {
        let short = daemon.strip_prefix("gfs-").unwrap_or(daemon);
        let file = match file {
            Some(path) => Some(path),
            None => Some(PathBuf::from(format!("/etc/gfs/{short}.toml"))).filter(|path| path.exists()),
        };
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("GFS_"))
            .collect();
        Self::merge(short, file, environment, flags)
    }

    /// The same with the environment as an argument.
    pub fn merge<T>(
        daemon: &str,
        file: Option<PathBuf>,
        environment: BTreeMap<String, String>,
        flags: Vec<(&'static str, String)>,
    ) -> Result<Loaded<T>, ConfigError>
    where
        T: Serialize + DeserializeOwned + Default,
    {
        let mut merge = Merge::<T>::new(daemon)?;
        if let Some(path) = &file {
            merge.file(path)?;
        }
        merge.environment(daemon, &environment)?;
        for (key, text) in flags {
            merge.text(key, &text, Origin::Flag(key.replace('_', "-")))?;
        }
        merge.finish(file)
    }
}

struct Merge<T> {
    daemon: String,
    keys: Vec<&'static str>,
    defaults: Table,
    current: BTreeMap<String, (Value, Origin)>,
    marker: std::marker::PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned + Default> Merge<T> {
    fn new(daemon: &str) -> Result<Self, ConfigError> {
        let defaults = Table::try_from(T::default())
            .map_err(|error| ConfigError::Defaults { daemon: daemon.into(), message: one_line(&error.to_string()) })?;
        Ok(Self {
            daemon: daemon.into(),
            keys: fields::of::<T>(),
            defaults,
            current: BTreeMap::new(),
            marker: std::marker::PhantomData,
        })
    }

    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            ConfigError::Syntax { path: path.into(), line, message: one_line(error.message()) }
        })?;
        for (key, value) in table {
            let origin = Origin::File(path.into());
            self.known(&key, &key, &origin)?;
            let joined = joined(&value);
            if let Err(error) = self.accept(&key, value, origin.clone()) {
                let text = joined.ok_or(error)?;
                self.accept(&key, text, origin)?;
            }
        }
        Ok(())
    }

    fn environment(&mut self, daemon: &str, environment: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let own = format!("GFS_{}_", daemon.to_uppercase().replace('-', "_"));
        for key in self.keys.clone() {
            for name in [format!("GFS_{}", key.to_uppercase()), format!("{own}{}", key.to_uppercase())] {
                if let Some(text) = environment.get(&name) {
                    self.text(key, text, Origin::Environment(name))?;
                }
            }
        }
        // Other processes have variables of their own under GFS_; only under our own prefix is one surely a mistake.
        for name in environment.keys() {
            if let Some(rest) = name.strip_prefix(&own) {
                self.known(&rest.to_lowercase(), name, &Origin::Environment(name.clone()))?;
            }
        }
        Ok(())
    }

    fn known(&self, key: &str, shown: &str, origin: &Origin) -> Result<(), ConfigError> {
        if self.keys.contains(&key) {
            return Ok(());
        }
        let nearest = self
            .keys
            .iter()
            .map(|candidate| (strsim::jaro_winkler(key, candidate), *candidate))
            .filter(|(likeness, _)| *likeness > 0.6)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, candidate)| candidate.to_string());
        Err(ConfigError::UnknownKey { origin: origin.clone(), key: shown.into(), nearest })
    }

    /// Takes a value if `T` accepts it for this key, all other keys at their defaults.
    fn accept(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let mut table = self.defaults.clone();
        table.insert(key.into(), value.clone());
        match T::deserialize(Value::Table(table)) {
            Ok(_) => {
                self.current.insert(key.into(), (value, origin));
                Ok(())
            }
            Err(error) => Err(ConfigError::WrongValue { origin, key: key.into(), message: one_line(error.message()) }),
        }
    }

    fn text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        self.known(key, key, &origin)?;
        let typed =
            format!("v = {text}").parse::<Table>().ok().filter(|t| t.len() == 1).and_then(|mut t| t.remove("v"));
        let list = text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(Value::from).collect::<Vec<_>>();
        let candidates = typed.into_iter().chain([Value::String(text.into()), Value::Array(list)]);
        let mut first = None;
        for candidate in candidates {
            match self.accept(key, candidate, origin.clone()) {
                Ok(()) => return Ok(()),
                Err(error) => first = first.or(Some(error)),
            }
        }
        // There are always at least two candidates, so one error was kept.
        first.map_or(Ok(()), Err)
    }

    fn finish(self, file: Option<PathBuf>) -> Result<Loaded<T>, ConfigError> {
        let mut table = self.defaults.clone();
        let mut shown: BTreeMap<String, (Option<Value>, Origin)> = BTreeMap::new();
        for key in &self.keys {
            shown.insert((*key).into(), (self.defaults.get(*key).cloned(), Origin::Default));
        }
        for (key, (value, origin)) in self.current {
            table.insert(key.clone(), value.clone());
            shown.insert(key, (Some(value), origin));
        }
        let value = T::deserialize(Value::Table(table))
            .map_err(|error| ConfigError::Defaults { daemon: self.daemon, message: one_line(error.message()) })?;
        Ok(Loaded { value, file, shown })
    }
}

/// A list of strings as the text that stands for it in flags, for keys that hold such text; `None` if it is something else.
fn joined(value: &Value) -> Option<Value> {
    let parts: Option<Vec<&str>> = value.as_array()?.iter().map(Value::as_str).collect();
    let parts = parts.filter(|parts| !parts.is_empty() && parts.iter().all(|part| !part.contains(',')))?;
    Some(Value::String(parts.join(",")))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
