//! Every decoder of gfs, fed with anything.
//!
//! A target takes any bytes, and panics when a decoder does, or when what it made of them does not come out the same again. The bytes
//! reach the decoder as they are and, where a checksum would stop all but whole ones, with the checksum made right. `cargo fuzz` looks
//! for new inputs (`gfs-fuzz/fuzz`); what it kept is in `gfs-fuzz/corpus`, one directory a target, and is replayed by this crate's tests.

mod control;
mod disk;
mod examples;
mod meta;
mod text;

pub use examples::examples;

/// Something that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 13] = [
    ("acl", meta::acl),
    ("block_table", disk::block_table),
    ("checkpoint", meta::checkpoint),
    ("chunk_header", disk::chunk_header),
    ("client_message", control::client_message),
    ("disk_identity", disk::disk_identity),
    ("frame", control::frame),
    ("journal_record", disk::journal_record),
    ("log_record", meta::log_record),
    ("log_segment", disk::log_segment),
    ("replica_slot", disk::replica_slot),
    ("server_message", control::server_message),
    ("text", text::options),
];

/// Feeds one target.
///
/// # Panics
/// When there is none of that name, and when the target finds something.
pub fn feed(name: &str, bytes: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = found.unwrap_or_else(|| panic!("no target {name}"));
    target(bytes);
}
