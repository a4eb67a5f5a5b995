//! Which cluster a command talks to. The rule itself is `gfs_client::Target`'s; this room gives it the environment
//! and the files of this machine, and refuses to pass over a cluster of `gfs up` that is only stopped: a command
//! meant for a test cluster must not land in the one of /etc.

use crate::cluster_file::{ClusterFile, ClusterFileError};
use gfs_client::{Target, TargetError};
use std::path::PathBuf;

/// Where to look; tests put their own files here.
#[derive(Clone, Debug)]
pub struct Places {
    /// Value of GFS_CLUSTER.
    pub environment: Option<String>,
    /// `./gfs-data/cluster.toml`.
    pub cluster_file: PathBuf,
    /// `/etc/gfs/client.toml`.
    pub client_file: PathBuf,
}

impl Places {
    /// The real ones.
    pub fn system() -> Self {
        Self {
            environment: std::env::var("GFS_CLUSTER").ok(),
            cluster_file: "gfs-data/cluster.toml".into(),
            client_file: "/etc/gfs/client.toml".into(),
        }
    }
}

/// Why no cluster could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum WhichError {
    /// What names it cannot be understood.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The cluster file cannot be used.
    #[error(transparent)]
    ClusterFile(#[from] ClusterFileError),
    /// It was stopped.
    #[error("the cluster of {} is stopped: start it with `gfs up`, or name another with --cluster", path.display())]
    Stopped {
        /// Its file.
        path: PathBuf,
    },
}

/// The masters' addresses, in order.
pub fn masters(flag: Option<&str>, places: &Places) -> Result<Vec<String>, WhichError> {
    let environment = places.environment.as_deref().filter(|list| !list.is_empty());
    if flag.is_none()
        && environment.is_none()
        && let Some(file) = ClusterFile::read(&places.cluster_file)?
        && file.masters().is_empty()
    {
        return Err(WhichError::Stopped { path: places.cluster_file.clone() });
    }
    Ok(Target::resolve(flag, environment, &places.cluster_file, &places.client_file)?.masters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_file::Process;
    use std::path::Path;

    fn places(dir: &Path, environment: Option<&str>) -> Places {
        Places {
            environment: environment.map(String::from),
            cluster_file: dir.join("cluster.toml"),
            client_file: dir.join("client.toml"),
        }
    }

    #[test]
    fn first_place_that_says_something_wins() {
        let dir = tempfile::tempdir().unwrap();
        let quiet = places(dir.path(), None);
        assert_eq!(masters(None, &quiet).unwrap(), ["127.0.0.1:7400"]);
        std::fs::write(&quiet.client_file, "cluster = [\"c:1\", \"d\"]\n").unwrap();
        assert_eq!(masters(None, &quiet).unwrap(), ["c:1", "d:7400"]);
        let mut file = ClusterFile::default();
        file.put(Process { name: "master-1".into(), address: "m:9".into(), ..Process::default() });
        file.put(Process { name: "chunkd-1".into(), address: "x:9".into(), ..Process::default() });
        file.write(&quiet.cluster_file).unwrap();
        assert_eq!(masters(None, &quiet).unwrap(), ["m:9"]);
        let loud = places(dir.path(), Some("e:2,f:3"));
        assert_eq!(masters(None, &loud).unwrap(), ["e:2", "f:3"]);
        assert_eq!(masters(Some("g:4"), &loud).unwrap(), ["g:4"]);
    }

    #[test]
    fn stopped_cluster_is_told_and_never_replaced_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let quiet = places(dir.path(), None);
        std::fs::write(&quiet.client_file, "cluster = \"production:7400\"\n").unwrap();
        ClusterFile::default().write(&quiet.cluster_file).unwrap();
        assert!(matches!(masters(None, &quiet), Err(WhichError::Stopped { .. })));
        assert_eq!(masters(Some("h:1"), &quiet).unwrap(), ["h:1"]);
        assert_eq!(masters(None, &places(dir.path(), Some("e:1"))).unwrap(), ["e:1"]);
    }

    #[test]
    fn mistakes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let quiet = places(dir.path(), None);
        assert!(matches!(masters(Some("a:b"), &quiet), Err(WhichError::Target(TargetError::Address(_)))));
        std::fs::write(&quiet.client_file, "cluster = 7\n").unwrap();
        let error = masters(None, &quiet).unwrap_err().to_string();
        assert!(error.contains("client.toml"), "{error}");
    }
}
