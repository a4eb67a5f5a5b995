//! The generated types in `src/gen` are the ones that the `.proto` files describe.
//!
//! They are committed, so that building needs neither protoc nor a code generator. After a change of a `.proto` file run
//! `GFS_REGENERATE=1 cargo test -p gfs-proto --test generated`.

use std::path::Path;

const FILES: [&str; 4] = ["gfs/v1/meta.proto", "gfs/v1/cluster.proto", "gfs/v1/data.proto", "gfs/v1/log.proto"];

#[test]
fn generated_types_match_the_contract() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/gen/gfs.v1.rs");
    let scratch = std::env::temp_dir().join(format!("gfs-proto-gen-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    let descriptors = protox::compile(FILES, [root]).expect("the .proto files compile");
    tonic_prost_build::configure().bytes(".").out_dir(&scratch).compile_fds(descriptors).expect("code generation");
    let fresh = std::fs::read_to_string(scratch.join("gfs.v1.rs")).unwrap();
    std::fs::remove_dir_all(&scratch).unwrap();
    if std::env::var_os("GFS_REGENERATE").is_some() {
        std::fs::write(&committed, &fresh).unwrap();
    }
    let old = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(old == fresh, "src/gen is out of date: run GFS_REGENERATE=1 cargo test -p gfs-proto --test generated");
}
