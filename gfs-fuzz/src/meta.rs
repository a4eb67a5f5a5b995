//! What the master keeps: its log and its checkpoints; and what its state makes of values from outside.

use gfs_core::ids::{ClusterId, OperationId, ROOT, SessionId};
use gfs_core::meta::checkpoint::DecodeError;
use gfs_core::meta::command::{Command, CommandReply, Stamp};
use gfs_core::meta::request::{ClientCommand, Credentials, Reply, Request, Timestamp, XattrMode};
use gfs_core::meta::state::State;
use gfs_master::consensus::codec;
use gfs_proto::convert;

/// A record of the master's log: its kind, then its payload. An entry comes out the same again.
pub fn log_record(bytes: &[u8]) {
    let Some((kind, payload)) = bytes.split_first() else { return };
    let _ = codec::decode(*kind, payload);
    let _ = codec::decode_position(payload);
    if let Ok(entry) = convert::decode_entry(payload) {
        let again = convert::encode_entry(&entry);
        assert_eq!(convert::decode_entry(&again).as_ref().ok(), Some(&entry));
    }
    if let Ok(reply) = convert::decode_command_reply(payload) {
        let again = convert::encode_command_reply(&reply);
        assert_eq!(convert::decode_command_reply(&again).as_ref().ok(), Some(&reply));
    }
}

/// A checkpoint, in pieces whose size the first byte tells. One that is taken is the same state again, and can be looked through.
pub fn checkpoint(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first() else { return };
    let Ok(state) = decoded(rest, usize::from(*size) + 1) else { return };
    let _ = state.namespace().verify(10);
    let mut again = Vec::new();
    let written: Result<(), ()> = state.encode_checkpoint(&mut |piece| {
        again.extend_from_slice(piece);
        Ok(())
    });
    assert_eq!(written, Ok(()));
    assert_eq!(decoded(&again, again.len().max(1)).map(|state| state.hash()).ok(), Some(state.hash()));
}

fn decoded(bytes: &[u8], piece: usize) -> Result<State, DecodeError<()>> {
    let mut pieces = bytes.chunks(piece);
    State::decode_checkpoint(&mut || Ok(pieces.next().map(<[u8]>::to_vec)))
}

/// The value of a POSIX ACL, as setxattr(2) takes it. One that is taken can be read, and set again.
pub fn acl(bytes: &[u8]) {
    let mut root = Root::new();
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        if root.set(name, bytes).is_none() {
            continue;
        }
        if let Some(value) = root.get(name) {
            assert_eq!(root.set(name, &value), Some(()), "{name}: {value:?} is shown and not taken");
            assert_eq!(root.get(name), Some(value));
        }
    }
    assert_eq!(root.state.namespace().verify(10), []);
}

/// A new state, and its root directory.
pub(crate) struct Root {
    state: State,
    operation: u64,
}

const SESSION: SessionId = SessionId(1);

impl Root {
    pub(crate) fn new() -> Self {
        let mut state = State::format(ClusterId(1), 1 << 26, 3, 0o755, Timestamp::default());
        state.apply(Stamp::default(), &Command::OpenSession { nonce: 1, description: String::new() });
        Self { state, operation: 0 }
    }

    pub(crate) fn command(&mut self, request: Request) -> Command {
        self.operation += 1;
        let id = OperationId { session: SESSION, operation: self.operation };
        Command::Client(ClientCommand { id, confirmed: 0, credentials: Credentials::default(), request })
    }

    pub(crate) fn apply(&mut self, command: &Command) -> CommandReply {
        self.state.apply(Stamp::default(), command)
    }

    pub(crate) fn checkpoint(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let written: Result<(), ()> = self.state.encode_checkpoint(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!(written, Ok(()));
        bytes
    }

    pub(crate) fn set(&mut self, name: &str, value: &[u8]) -> Option<()> {
        let (name, value) = (name.into(), value.to_vec());
        let command = self.command(Request::SetXattr { inode: ROOT, name, value, mode: XattrMode::Any });
        match self.apply(&command) {
            CommandReply::Client(Reply::Refused(_)) => None,
            _ => Some(()),
        }
    }

    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.state.namespace().get_xattr(&Credentials::default(), ROOT, name.as_bytes()).ok()
    }
}
