//! Mount options: what `-o` may say.
//!
//! This room owns the names and values of options and the one line that refuses a wrong one. It mounts nothing.

use std::path::PathBuf;
use std::time::Duration;

/// What the kernel may cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheMode {
    /// Names and attributes as long as the master grants it; file data in the page cache, when no mount has the file open for writing.
    #[default]
    Auto,
    /// File data of every file in the page cache: what kernels before 6.6 need for shared mmap.
    Pages,
    /// Nothing.
    None,
}

/// What requests of the kernel come by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// io_uring where the kernel offers it, else /dev/fuse.
    #[default]
    Auto,
    /// /dev/fuse.
    Dev,
    /// As `Auto`, with a warning if it is /dev/fuse.
    Uring,
}

/// A switch that the kernel itself acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum KernelFlag {
    /// Device files work.
    Dev,
    /// Device files do not work.
    NoDev,
    /// Set-id bits work.
    Suid,
    /// Set-id bits do not work.
    NoSuid,
    /// Programs may be run.
    Exec,
    /// Programs may not be run.
    NoExec,
    /// Every write is synchronous.
    Sync,
    /// Every change of a directory is synchronous.
    DirSync,
}

/// Everything that `-o` can set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// Refuse every change.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Let root in beside the user who mounts.
    pub allow_root: bool,
    /// Do not move access times.
    pub no_atime: bool,
    /// Switches for the kernel, in the order given; the last of two opposites counts.
    pub kernel_flags: Vec<KernelFlag>,
    /// Directory of the cluster to show as the root.
    pub subdir: Option<Vec<u8>>,
    /// How long mounting waits for the cluster.
    pub mount_timeout: Duration,
    /// How long one system call waits for the cluster.
    pub call_timeout: Duration,
    /// What the kernel may cache.
    pub cache: CacheMode,
    /// Whether replicas on this machine are read in place.
    pub local: bool,
    /// What requests of the kernel come by.
    pub transport: Transport,
    /// Log file directory.
    pub log_dir: Option<PathBuf>,
    /// Log level.
    pub log_level: String,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: false,
            allow_root: false,
            no_atime: false,
            kernel_flags: Vec::new(),
            subdir: None,
            mount_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(60),
            cache: CacheMode::default(),
            local: true,
            transport: Transport::default(),
            log_dir: None,
            log_level: "warn".into(),
        }
    }
}

/// Why an option is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("unknown mount option `{0}`")]
    Unknown(String),
    /// It takes no value.
    #[error("mount option `{0}` takes no value")]
    NoValue(&'static str),
    /// Its value is wrong.
    #[error("mount option `{name}={value}`: expected {expected}")]
    Value {
        /// Which option.
        name: &'static str,
        /// What it was set to.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A mount cannot be changed in place.
    #[error("remount is not supported: unmount and mount again")]
    Remount,
}

/// Options for mount(8), fstab and systemd that say nothing to us.
const IGNORED: [&str; 25] = [
    "_netdev",
    "_rnetdev",
    "nofail",
    "fail",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "defaults",
    "async",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
    "default_permissions",
    "iversion",
    "noiversion",
    "nostrictatime",
];
/// The same, with a value.
const IGNORED_WITH_VALUE: [&str; 5] = ["comment", "subtype", "fsname", "context", "rootcontext"];

impl MountOptions {
    /// Takes one argument of `-o`: options separated by commas, a backslash before one that belongs to a value.
    pub fn add(&mut self, list: &str) -> Result<(), OptionError> {
        for option in split(list) {
            self.set(&option)?;
        }
        Ok(())
    }

    fn set(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let user_space = name.starts_with("x-") || name.starts_with("X-");
        if option.is_empty() || user_space || IGNORED.contains(&name) || IGNORED_WITH_VALUE.contains(&name) {
            return Ok(());
        }
        match value {
            Some(value) => self.set_value(name, value),
            None => self.set_switch(name),
        }
    }

    fn set_switch(&mut self, name: &str) -> Result<(), OptionError> {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "allow_root" => self.allow_root = true,
            "atime" => self.no_atime = false,
            "noatime" => self.no_atime = true,
            "remount" => return Err(OptionError::Remount),
            "dev" => self.flag(KernelFlag::Dev, KernelFlag::NoDev),
            "nodev" => self.flag(KernelFlag::NoDev, KernelFlag::Dev),
            "suid" => self.flag(KernelFlag::Suid, KernelFlag::NoSuid),
            "nosuid" => self.flag(KernelFlag::NoSuid, KernelFlag::Suid),
            "exec" => self.flag(KernelFlag::Exec, KernelFlag::NoExec),
            "noexec" => self.flag(KernelFlag::NoExec, KernelFlag::Exec),
            "sync" => self.flag(KernelFlag::Sync, KernelFlag::Sync),
            "dirsync" => self.flag(KernelFlag::DirSync, KernelFlag::DirSync),
            "subdir" => return Err(value_error("subdir", "", "a directory of the cluster")),
            "mount_timeout" | "call_timeout" => return Err(value_error("mount_timeout", "", SECONDS)),
            _ => return Err(OptionError::Unknown(name.into())),
        }
        Ok(())
    }

    fn set_value(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "subdir" if value.is_empty() => return Err(value_error("subdir", value, "a directory of the cluster")),
            "subdir" => self.subdir = Some(value.as_bytes().to_vec()),
            "mount_timeout" => self.mount_timeout = seconds("mount_timeout", value)?,
            "call_timeout" => self.call_timeout = seconds("call_timeout", value)?,
            "cache" => self.cache = cache(value)?,
            "local" => self.local = local(value)?,
            "transport" => self.transport = transport(value)?,
            "log_dir" if value.is_empty() => return Err(value_error("log_dir", value, "a directory")),
            "log_dir" => self.log_dir = Some(PathBuf::from(value)),
            "log_level" => {
                gfs_daemon::log::check_level(value).map_err(|_| value_error("log_level", value, "a log level"))?;
                self.log_level = value.into();
            }
            "ro" => return Err(OptionError::NoValue("ro")),
            "rw" => return Err(OptionError::NoValue("rw")),
            "allow_other" => return Err(OptionError::NoValue("allow_other")),
            _ => return Err(OptionError::Unknown(format!("{name}={value}"))),
        }
        Ok(())
    }

    fn flag(&mut self, set: KernelFlag, opposite: KernelFlag) {
        self.kernel_flags.retain(|flag| *flag != opposite && *flag != set);
        self.kernel_flags.push(set);
    }
}

const SECONDS: &str = "seconds, 1 to 86400";

fn value_error(name: &'static str, value: &str, expected: &'static str) -> OptionError {
    OptionError::Value { name, value: value.into(), expected }
}

fn seconds(name: &'static str, value: &str) -> Result<Duration, OptionError> {
    match value.parse::<u64>() {
        Ok(count @ 1..=86_400) => Ok(Duration::from_secs(count)),
        _ => Err(value_error(name, value, SECONDS)),
    }
}

fn local(value: &str) -> Result<bool, OptionError> {
    match value {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err(value_error("local", value, "auto or off")),
    }
}

fn transport(value: &str) -> Result<Transport, OptionError> {
    match value {
        "auto" => Ok(Transport::Auto),
        "dev" => Ok(Transport::Dev),
        "uring" => Ok(Transport::Uring),
        _ => Err(value_error("transport", value, "auto, dev or uring")),
    }
}

fn cache(value: &str) -> Result<CacheMode, OptionError> {
    match value {
        "auto" | "direct" => Ok(CacheMode::Auto),
        "pages" => Ok(CacheMode::Pages),
        "none" | "off" => Ok(CacheMode::None),
        _ => Err(value_error("cache", value, "auto, pages or none")),
    }
}

fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut letters = list.chars();
    while let Some(letter) = letters.next() {
        let current = options.len() - 1;
        match letter {
            '\\' => options[current].extend(letters.next()),
            ',' => options.push(String::new()),
            letter => options[current].push(letter),
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.add(list)?;
        Ok(options)
    }

    #[test]
    fn line_of_an_fstab_is_understood() {
        let options = parsed(
            "ro,allow_other,_netdev,nofail,x-systemd.automount,x-systemd.idle-timeout=60,subdir=/a/b,mount_timeout=5",
        )
        .unwrap();
        let want = MountOptions {
            read_only: true,
            allow_other: true,
            subdir: Some(b"/a/b".to_vec()),
            mount_timeout: Duration::from_secs(5),
            ..MountOptions::default()
        };
        assert_eq!(options, want);
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parsed(""), Ok(MountOptions::default()));
        assert_eq!(parsed("rw,defaults,,relatime"), Ok(MountOptions::default()));
        assert_eq!(MountOptions::default().mount_timeout, Duration::from_secs(30));
    }

    #[test]
    fn unknown_option_is_named() {
        assert_eq!(parsed("ro,alow_other").unwrap_err().to_string(), "unknown mount option `alow_other`");
        assert_eq!(parsed("colour=blue").unwrap_err().to_string(), "unknown mount option `colour=blue`");
        assert_eq!(parsed("remount,ro"), Err(OptionError::Remount));
    }

    #[test]
    fn wrong_value_says_what_is_expected() {
        assert_eq!(
            parsed("mount_timeout=soon").unwrap_err().to_string(),
            "mount option `mount_timeout=soon`: expected seconds, 1 to 86400"
        );
        for list in [
            "mount_timeout=0",
            "call_timeout=-1",
            "cache=everything",
            "local=yes",
            "transport=tcp",
            "subdir=",
            "subdir",
            "log_level=loud",
        ] {
            assert!(matches!(parsed(list), Err(OptionError::Value { .. })), "{list}");
        }
        assert_eq!(parsed("ro=yes"), Err(OptionError::NoValue("ro")));
    }

    #[test]
    fn last_of_two_opposites_counts() {
        assert!(!parsed("ro,rw").unwrap().read_only);
        assert!(parsed("atime,noatime").unwrap().no_atime);
        assert_eq!(parsed("nosuid,dev,suid").unwrap().kernel_flags, [KernelFlag::Dev, KernelFlag::Suid]);
    }

    #[test]
    fn escaped_comma_belongs_to_the_value() {
        assert_eq!(parsed(r"subdir=/a\,b,ro").unwrap().subdir, Some(b"/a,b".to_vec()));
    }

    #[test]
    fn replicas_of_this_machine_are_read_in_place_unless_that_is_off() {
        assert!(parsed("ro").unwrap().local && parsed("local=off,local=auto").unwrap().local);
        assert!(!parsed("local=off").unwrap().local);
    }

    #[test]
    fn transports() {
        for (value, transport) in [("auto", Transport::Auto), ("dev", Transport::Dev), ("uring", Transport::Uring)] {
            assert_eq!(parsed(&format!("transport={value}")).unwrap().transport, transport);
        }
        assert_eq!(parsed("").unwrap().transport, Transport::Auto);
    }

    #[test]
    fn cache_modes() {
        for (value, mode) in [("auto", CacheMode::Auto), ("pages", CacheMode::Pages), ("none", CacheMode::None)] {
            assert_eq!(parsed(&format!("cache={value}")).unwrap().cache, mode);
        }
    }
}
