//! What each target takes, to begin with: bytes that the encoders make.

use crate::meta::Root;
use gfs_chunkd::store::decoders;
use gfs_core::ids::{Epoch, ROOT, ServerId};
use gfs_core::meta::command::{Command, CommandReply, Entry, ServerIdentity};
use gfs_core::meta::request::{AttributeChanges, Configuration, NodeKind, Query, Reply, Request};
use gfs_net::frame::{self, Kind, Prefix};
use gfs_proto::{convert, v1};
use prost::Message;

/// Inputs that reach deep into each target.
pub fn examples() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = decoders::examples();
    all.extend(master());
    all.extend(messages());
    let acl =
        [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255];
    all.push(("acl", acl.to_vec()));
    all.push(("log_segment", [0x00, 0x20].into_iter().chain(0..=255).collect()));
    for text in [
        "ro,allow_other,_netdev,nofail,x-systemd.automount,subdir=/a\\,b,mount_timeout=5,cache=auto",
        "host-1:7400,10.0.0.2,[::1]:7401",
        "257 0x7ffc 0x3 0x0 0x0 0x0 0x0 0x7ffd 0x7ffe",
        "Name:\tcat\nState:\tS\nSigPnd:\t0000000000000100\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t0\n",
    ] {
        all.push(("text", text.as_bytes().to_vec()));
    }
    all
}

fn requests() -> Vec<Request> {
    let create = |name: &str, kind| Request::Create {
        parent: ROOT,
        name: name.into(),
        kind,
        mode: 0o644,
        umask: 0o22,
        exclusive: true,
        hold: false,
    };
    let changes = AttributeChanges { mode: Some(0o600), uid: Some(5), ..AttributeChanges::default() };
    vec![
        create("file", NodeKind::File),
        create("directory", NodeKind::Directory),
        create("link", NodeKind::Symlink(b"../target".to_vec())),
        create("device", NodeKind::CharDevice(0x0103)),
        Request::SetAttributes { inode: ROOT, changes },
        Request::AllocateChunks { replicas: 3, placements: vec![vec![ServerId(1)]] },
        Request::Unlink { parent: ROOT, name: b"device".to_vec() },
    ]
}

fn master() -> Vec<(&'static str, Vec<u8>)> {
    let mut root = Root::new();
    root.apply(&Command::RegisterServer(ServerIdentity { uuid: 5, address: "host:7410".into(), ..Default::default() }));
    let mut all = Vec::new();
    let mut commands = Vec::new();
    for request in requests() {
        let command = root.command(request);
        let reply = root.apply(&command);
        all.push(("log_record", [vec![1], convert::encode_command_reply(&reply)].concat()));
        if let CommandReply::Client(reply @ Reply::Attributes { .. }) = reply {
            let body = Some(v1::server_message::Body::Reply(convert::reply_to_wire(&reply)));
            all.push(("server_message", v1::ServerMessage { tag: 1, body }.encode_to_vec()));
        }
        commands.push(command);
    }
    root.set("user.name", b"value");
    let entry = convert::encode_entry(&Entry { commands, ..Entry::default() });
    all.push(("log_record", [vec![1], entry].concat()));
    all.push(("checkpoint", [vec![63], root.checkpoint()].concat()));
    all
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    use v1::client_message::Body;
    let mut root = Root::new();
    let mut bodies: Vec<Body> = Vec::new();
    for request in requests() {
        if let Command::Client(command) = root.command(request) {
            bodies.push(Body::Mutation(convert::mutation_to_wire(&command)));
        }
    }
    let query = Query::Lookup { parent: ROOT, name: b"name".to_vec() };
    let credentials = Some(v1::Credentials::default());
    bodies.push(Body::Query(v1::QueryRequest { credentials, kind: Some((&query).into()) }));
    let message = |body| v1::ClientMessage { tag: 9, body: Some(body) }.encode_to_vec();
    let mut all: Vec<_> = bodies.into_iter().map(|body| ("client_message", message(body))).collect();
    let configuration = Configuration {
        epoch: Epoch(2),
        primary: ServerId(1),
        members: vec![ServerId(1), ServerId(2)],
        syncing: vec![],
    };
    let assignment = v1::Assignment {
        handle: 1,
        configuration: Some((&configuration).into()),
        servers: vec![v1::Server { server: 1, address: "host:7410".into() }],
        ..v1::Assignment::default()
    };
    all.push(("server_message", v1::MasterOrder { assign: vec![assignment], ..Default::default() }.encode_to_vec()));
    let header = v1::DataReply { configuration: Some((&configuration).into()), ..Default::default() }.encode_to_vec();
    let prefix =
        Prefix { kind: Kind::Reply, header: header.len(), payload: 0, tag: 3, header_crc: gfs_net::crc32c(&header) };
    all.push(("frame", [&frame::encode_prefix(&prefix)[..], &header].concat()));
    all
}
