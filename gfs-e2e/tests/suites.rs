//! Public suites of others on a mount as it is made without options, at length.

use gfs_e2e::{Cluster, Options, suites};

#[test]
fn pjdfstest_passes_what_passes_on_ext4() {
    let cluster = Cluster::start(Options::default());
    suites::pjdfstest(&cluster.mount(), &cluster.scratch());
}

#[test]
fn fsx_finds_no_wrong_byte_with_ten_sets_of_options() {
    let cluster = Cluster::start(Options::default());
    suites::fsx(&cluster.mount(), &cluster.scratch(), 100_000);
}
