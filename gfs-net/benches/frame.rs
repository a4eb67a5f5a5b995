//! Cost of a frame: encoding, checking and decoding its prefix and header.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gfs_net::crc32c;
use gfs_net::frame::{Kind, Prefix, decode_prefix, encode_prefix};
use gfs_proto::v1::{DataRequest, Write, data_request::Op};
use prost::Message;
use std::hint::black_box;

fn frame(c: &mut Criterion) {
    let request = DataRequest {
        handle: 1 << 50,
        epoch: 7,
        session: 3,
        operation: 1_000_000,
        op: Some(Op::Write(Write { offset: 1 << 20, crc: 0xdead_beef })),
        ..DataRequest::default()
    };
    c.bench_function("encode request frame", |b| {
        b.iter(|| {
            let header = black_box(&request).encode_to_vec();
            let prefix = Prefix {
                kind: Kind::Request,
                header: header.len(),
                payload: 4096,
                tag: 9,
                header_crc: crc32c(&header),
            };
            (encode_prefix(&prefix), header)
        });
    });
    let header = request.encode_to_vec();
    let prefix =
        Prefix { kind: Kind::Request, header: header.len(), payload: 4096, tag: 9, header_crc: crc32c(&header) };
    let bytes = encode_prefix(&prefix);
    c.bench_function("decode request frame", |b| {
        b.iter(|| {
            let prefix = decode_prefix(black_box(&bytes)).unwrap();
            assert_eq!(crc32c(&header), prefix.header_crc);
            DataRequest::decode(&header[..]).unwrap()
        });
    });
    let mut group = c.benchmark_group("crc32c");
    for size in [4096usize, 1 << 20] {
        let block = vec![7u8; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(size.to_string(), |b| b.iter(|| crc32c(black_box(&block))));
    }
    group.finish();
}

criterion_group!(benches, frame);
criterion_main!(benches);
