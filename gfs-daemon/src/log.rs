//! Logging: standard error, and a file a day if asked, with a level that can change while running.
//!
//! This room owns the process's subscriber. Nobody else installs one. Levels are
//! `tracing_subscriber::filter::Targets`: `info`, or `info,gfs_master=debug`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Crates below ours that talk too much; they log warnings unless the level names them.
const QUIET: [&str; 6] = ["h2", "hyper", "hyper_util", "openraft", "tonic", "tower"];
/// Daily files kept; older ones are removed.
const KEPT_FILES: usize = 14;

static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// What to log and where.
#[derive(Clone, Debug, Default)]
pub struct LogConfig {
    /// Level, or targets with levels.
    pub level: String,
    /// Directory for a file a day; `None` is standard error only.
    pub dir: Option<PathBuf>,
    /// Name of the process, the prefix of the files.
    pub component: String,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not one.
    #[error("log level `{level}` is not error, warn, info, debug, trace, off or a list such as info,gfs_master=debug")]
    Level {
        /// What was given.
        level: String,
    },
    /// The directory cannot be written.
    #[error("cannot write logs to {path}: {message}", path = path.display())]
    Directory {
        /// Which directory.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// `init` was called before in this process.
    #[error("logging is already set up")]
    Twice,
    /// `set_level` was called before `init`.
    #[error("logging is not set up")]
    NotSetUp,
}

/// Keeps the log file's writer alive; drop it last, so that the last lines are written.
#[must_use = "the log file is closed when this is dropped"]
#[derive(Debug)]
pub struct LogGuard {
    _file: Option<WorkerGuard>,
}

/// Installs the subscriber of this process.
pub fn init(config: &LogConfig) -> Result<LogGuard, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&config.level)?);
    let stderr =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let (file, guard) = match &config.dir {
        Some(dir) => {
            let (writer, guard) = daily(dir, &config.component)?;
            (Some(tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).boxed()), Some(guard))
        }
        None => (None, None),
    };
    tracing_subscriber::registry().with(filter).with(stderr).with(file).try_init().map_err(|_| LogError::Twice)?;
    LEVEL.set(handle).map_err(|_| LogError::Twice)?;
    Ok(LogGuard { _file: guard })
}

/// Changes the level of this process at once.
pub fn set_level(level: &str) -> Result<(), LogError> {
    let targets = parse(level)?;
    let handle = LEVEL.get().ok_or(LogError::NotSetUp)?;
    handle.reload(targets).map_err(|_| LogError::NotSetUp)?;
    tracing::info!(level, "log level changed");
    Ok(())
}

/// Checks a level without using it.
pub fn check_level(level: &str) -> Result<(), LogError> {
    parse(level).map(drop)
}

/// On every SIGHUP asks `reread` for the level (from the configuration file) and sets it. Lives as long as the
/// runtime.
pub fn reread_on_hangup(reread: impl Fn() -> Option<String> + Send + 'static) -> std::io::Result<()> {
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            if let Some(Err(error)) = reread().map(|level| set_level(&level)) {
                tracing::warn!(%error, "log level not changed");
            }
        }
    });
    Ok(())
}

fn daily(dir: &Path, component: &str) -> Result<(tracing_appender::non_blocking::NonBlocking, WorkerGuard), LogError> {
    let failed = |message: String| LogError::Directory { path: dir.into(), message };
    std::fs::create_dir_all(dir).map_err(|error| failed(error.to_string()))?;
    let appender = tracing_appender::rolling::Builder::new()
        .rotation(tracing_appender::rolling::Rotation::DAILY)
        .filename_prefix(component)
        .filename_suffix("log")
        .max_log_files(KEPT_FILES)
        .build(dir)
        .map_err(|error| failed(error.to_string()))?;
    // Lossy when the disk cannot keep up: logging never holds up a request.
    Ok(tracing_appender::non_blocking(appender))
}

fn parse(level: &str) -> Result<Targets, LogError> {
    let wrong = || LogError::Level { level: level.into() };
    // Targets takes a word that is no level for the name of a target, so a bare word is checked here.
    for part in level.split(',').map(str::trim) {
        let word = part.rsplit('=').next().unwrap_or(part);
        // The empty word parses, as error.
        if word.is_empty() {
            return Err(wrong());
        }
        word.parse::<tracing_subscriber::filter::LevelFilter>().map_err(|_| wrong())?;
    }
    let mut full = String::new();
    for name in QUIET {
        if !level.contains(name) && !["off", "error", "trace"].contains(&level) {
            full.push_str(name);
            full.push_str("=warn,");
        }
    }
    full.push_str(level);
    full.parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn level_applies_to_ours_and_keeps_noisy_crates_at_warn() {
        let targets = parse("debug").unwrap();
        assert!(targets.would_enable("gfs_master", &Level::DEBUG));
        assert!(!targets.would_enable("openraft::core", &Level::INFO));
        assert!(targets.would_enable("openraft::core", &Level::WARN));
        assert!(parse("info,openraft=debug").unwrap().would_enable("openraft", &Level::DEBUG));
        assert!(!parse("error").unwrap().would_enable("h2", &Level::WARN));
    }

    #[test]
    fn nonsense_level_is_refused() {
        for level in ["loud", "info,gfs_master=loud", "", "info,"] {
            assert!(matches!(parse(level), Err(LogError::Level { .. })), "{level}");
        }
    }

    #[test]
    fn daily_file_is_made_and_level_changes_while_running() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        assert!(matches!(set_level("info"), Err(LogError::NotSetUp)));
        let config = LogConfig { level: "warn".into(), dir: Some(logs.clone()), component: "sample".into() };
        let guard = init(&config).unwrap();
        tracing::info!("not shown");
        set_level("info").unwrap();
        tracing::info!("shown");
        assert!(matches!(init(&config), Err(LogError::Twice)));
        drop(guard);
        let file = std::fs::read_dir(&logs).unwrap().next().unwrap().unwrap();
        assert!(file.file_name().to_string_lossy().starts_with("sample."));
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("shown") && !text.contains("not shown"), "{text}");
    }
}
