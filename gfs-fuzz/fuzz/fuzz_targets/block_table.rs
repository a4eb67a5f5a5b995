#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gfs_fuzz::feed("block_table", bytes));
