//! What is converted to its durable or wire form comes back the same.

use gfs_core::ids::{BlockVersion, ChunkHandle, Epoch, InodeId, OperationId, Sequence, ServerId, SessionId};
use gfs_core::meta::command::{Command, CommandRefusal, CommandReply, Entry, ServerIdentity, ServerIntent, Stamp};
use gfs_core::meta::request::*;
use gfs_proto::convert::{decode_command_reply, decode_entry, encode_command_reply, encode_entry};
use proptest::prelude::*;

fn configuration() -> Configuration {
    Configuration {
        epoch: Epoch(7),
        primary: ServerId(2),
        members: vec![ServerId(1), ServerId(2), ServerId(3)],
        syncing: vec![ServerId(9)],
    }
}

fn attributes() -> Attributes {
    Attributes {
        inode: InodeId(42),
        file_type: FileType::Symlink,
        mode: 0o7755,
        links: 3,
        uid: 1,
        gid: 2,
        rdev: 3,
        size: u64::MAX,
        allocated: 4096,
        atime: Timestamp(-1),
        mtime: Timestamp(i64::MAX),
        ctime: Timestamp(i64::MIN),
        btime: Timestamp(0),
        replicas: 3,
        has_acl: true,
        has_xattrs: false,
    }
}

fn lock() -> Lock {
    Lock {
        family: LockFamily::Record,
        owner: LockOwner { session: SessionId(5), owner: u64::MAX },
        pid: 77,
        mode: LockMode::Write,
        range: LockRange { start: 1, end: u64::MAX },
    }
}

fn requests() -> Vec<Request> {
    let (inode, parent, name) = (InodeId(9), InodeId(1), b"a\xffb".to_vec());
    let create = |kind| Request::Create {
        parent,
        name: name.clone(),
        kind,
        mode: 0o644,
        umask: 0o22,
        exclusive: true,
        hold: true,
    };
    let changes = AttributeChanges {
        mode: Some(0o600),
        uid: Some(0),
        gid: None,
        size: Some(0),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(Timestamp(-5))),
        ctime: Some(Timestamp(6)),
        replicas: Some(2),
        clear_suid: true,
    };
    vec![
        create(NodeKind::File),
        create(NodeKind::Directory),
        create(NodeKind::Symlink(b"../x".to_vec())),
        create(NodeKind::Fifo),
        create(NodeKind::Socket),
        create(NodeKind::CharDevice(0x103)),
        create(NodeKind::BlockDevice(u32::MAX)),
        Request::Link { inode, parent, name: name.clone() },
        Request::Unlink { parent, name: name.clone() },
        Request::Rmdir { parent, name: name.clone() },
        Request::Rename { parent, name: name.clone(), new_parent: inode, new_name: vec![], mode: RenameMode::Exchange },
        Request::SetAttributes { inode, changes: changes.clone() },
        Request::SetAttributes { inode, changes: AttributeChanges::default() },
        Request::SetXattr { inode, name: name.clone(), value: vec![0, 1], mode: XattrMode::Replace },
        Request::RemoveXattr { inode, name: name.clone() },
        Request::SetLock { inode, lock: lock() },
        Request::ReleaseLocks { inode, owner: lock().owner, family: Some(LockFamily::Flock) },
        Request::ReleaseLocks { inode, owner: lock().owner, family: None },
        Request::AllocateChunks { replicas: 3, placements: vec![vec![ServerId(1), ServerId(2)], vec![]] },
        Request::CommitWrite {
            inode,
            attach: vec![(0, ChunkHandle(5))],
            used: vec![
                UsedChunk { index: u32::MAX, handle: ChunkHandle(6), cut: Epoch(u32::MAX), stored: None },
                UsedChunk { index: 0, handle: ChunkHandle(5), cut: Epoch(0), stored: Some(stored()) },
            ],
            min_size: Some(0),
            clear_suid: true,
            space: Some(Space { from: 0, to: u64::MAX, promised: true }),
        },
        Request::Flush {
            files: vec![
                FlushedFile::default(),
                FlushedFile {
                    inode,
                    attach: vec![(3, ChunkHandle(5))],
                    used: vec![UsedChunk { index: 3, handle: ChunkHandle(5), cut: Epoch(1), stored: Some(stored()) }],
                    min_size: Some(u64::MAX),
                    changes: changes.clone(),
                },
            ],
            steps: vec![
                NameStep {
                    at: Timestamp(-5),
                    uid: 1,
                    gid: 2,
                    inode: InodeId(99),
                    request: create(NodeKind::Directory),
                },
                NameStep {
                    at: Timestamp(i64::MAX),
                    uid: u32::MAX,
                    gid: 0,
                    inode: InodeId(0),
                    request: Request::SetAttributes { inode, changes },
                },
            ],
            gives_back: vec![inode, InodeId(u64::MAX)],
        },
        Request::ReserveInodes { count: 7 },
        Request::TouchAccess { inodes: vec![inode, InodeId(9)] },
        Request::CutTail { inode: InodeId(9) },
        Request::Hold { inode: InodeId(9) },
        Request::Barrier { times: false },
        Request::Barrier { times: true },
    ]
}

fn stored() -> Stored {
    Stored { blocks: 16_384, at: BlockVersion { epoch: Epoch(u32::MAX), sequence: Sequence(1 << 48) } }
}

fn commands() -> Vec<Command> {
    let mut all: Vec<Command> = requests()
        .into_iter()
        .enumerate()
        .map(|(at, request)| {
            Command::Client(ClientCommand {
                id: OperationId { session: SessionId(3), operation: at as u64 },
                confirmed: 1,
                credentials: Credentials { uid: 1, gid: 2, groups: vec![3, 4], check: true },
                request,
            })
        })
        .collect();
    let pairs = vec![(ChunkHandle(1), ServerId(2)), (ChunkHandle(u64::MAX), ServerId(u16::MAX))];
    all.extend([
        Command::OpenSession { nonce: 5, description: "host".into() },
        Command::EndSession { session: SessionId(4) },
        Command::RegisterServer(ServerIdentity {
            uuid: u128::MAX - 1,
            address: "a:1".into(),
            http: String::new(),
            zone: "z".into(),
            host: "h".into(),
        }),
        Command::SetServerIntent { server: ServerId(1), intent: ServerIntent::Draining },
        Command::RemoveServer { server: ServerId(1) },
        Command::Reconfigure { handle: ChunkHandle(1), expected: Epoch(3), next: configuration() },
        Command::FinishShrink { inode: InodeId(1), handle: ChunkHandle(2), epoch: Epoch(3), stored: Some(stored()) },
        Command::ReapOrphans { inodes: vec![InodeId(1), InodeId(2)] },
        Command::ForgetTombstones { done: pairs.clone() },
        Command::CondemnUnknown { replicas: pairs },
        Command::SkipInodes { count: 1 << 20 },
    ]);
    all
}

#[test]
fn every_command_survives_the_log() {
    let entry = Entry { stamp: Stamp { now: Timestamp(-7), seed: u64::MAX }, commands: commands() };
    assert_eq!(decode_entry(&encode_entry(&entry)), Ok(entry));
}

#[test]
fn every_reply_survives_a_checkpoint() {
    let replies = [
        CommandReply::Client(Reply::Done),
        CommandReply::Client(Reply::Entry { attributes: attributes(), created: true }),
        CommandReply::Client(Reply::Attributes { attributes: attributes(), pending_shrink: true }),
        CommandReply::Client(Reply::Attributes { attributes: attributes(), pending_shrink: false }),
        CommandReply::Client(Reply::Chunks(vec![(ChunkHandle(3), configuration())])),
        CommandReply::Client(Reply::Refused(Refusal::ReadOnly)),
        CommandReply::Client(Reply::Flushed(vec![])),
        CommandReply::Client(Reply::Flushed(vec![(0, Refusal::Stale), (u32::MAX, Refusal::TooLarge)])),
        CommandReply::Session(SessionId(9)),
        CommandReply::Server(ServerId(9)),
        CommandReply::Configuration(None),
        CommandReply::Configuration(Some(configuration())),
        CommandReply::Done,
        CommandReply::Refused(CommandRefusal::UnknownServer),
        CommandReply::Refused(CommandRefusal::TooManyServers),
    ];
    for reply in replies {
        assert_eq!(decode_command_reply(&encode_command_reply(&reply)), Ok(reply));
    }
}

#[test]
fn an_entry_of_the_version_before_is_read_and_one_of_a_newer_version_is_refused() {
    let mut bytes = encode_entry(&Entry::default());
    assert_eq!(bytes[..2], [8, 2], "field 1 is the version");
    bytes[1] = 1;
    assert_eq!(decode_entry(&bytes), Ok(Entry::default()));
    for version in [0, 3] {
        bytes[1] = version;
        assert!(decode_entry(&bytes).is_err());
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_and_never_panics(bytes: Vec<u8>) {
        let _ = decode_entry(&bytes);
        let _ = decode_command_reply(&bytes);
    }
}
