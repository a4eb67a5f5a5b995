//! Log entries and stored replies: the durable form of commands.

use super::request::{client_command, mutation_to_wire};
use super::{ConvertError, narrow, need, reply_from_wire, reply_to_wire};
use crate::v1::{self, log_command::Kind, stored_reply};
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, ServerId, SessionId};
use gfs_core::meta::command::{Command, CommandRefusal, CommandReply, Entry, ServerIdentity, ServerIntent, Stamp};
use gfs_core::meta::request::{Reply, Timestamp};
use prost::Message;

/// Version of the log's content that this build writes; it reads the one before too, which does not say how much is stored.
const VERSION: u32 = 2;

/// An entry in its durable form.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let commands = entry.commands.iter().map(|c| v1::LogCommand { kind: Some(command_out(c)) }).collect();
    v1::LogEntry { version: VERSION, now_ns: entry.stamp.now.0, seed: entry.stamp.seed, commands }.encode_to_vec()
}

/// An entry from its durable form.
///
/// # Errors
/// When the bytes are not an entry, or one of a newer version.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, ConvertError> {
    let entry = v1::LogEntry::decode(bytes).map_err(|error| ConvertError::Decode(error.to_string()))?;
    if !(VERSION - 1..=VERSION).contains(&entry.version) {
        return Err(ConvertError::Value { what: "log entry version", value: entry.version.into() });
    }
    let one = |c: v1::LogCommand| command_in(need("command", c.kind)?);
    Ok(Entry {
        stamp: Stamp { now: Timestamp(entry.now_ns), seed: entry.seed },
        commands: entry.commands.into_iter().map(one).collect::<Result<_, _>>()?,
    })
}

fn replicas_out(replicas: &[(ChunkHandle, ServerId)]) -> v1::LogReplicas {
    let one = |(handle, server): &(ChunkHandle, ServerId)| v1::LogReplica { handle: handle.0, server: server.0.into() };
    v1::LogReplicas { replicas: replicas.iter().map(one).collect() }
}

fn replicas_in(from: v1::LogReplicas) -> Result<Vec<(ChunkHandle, ServerId)>, ConvertError> {
    let one = |r: v1::LogReplica| Ok((ChunkHandle(r.handle), ServerId(narrow("server", r.server)?)));
    from.replicas.into_iter().map(one).collect()
}

fn command_out(command: &Command) -> Kind {
    match command {
        Command::Client(c) => {
            Kind::Client(v1::LogClient { session: c.id.session.0, mutation: Some(mutation_to_wire(c)) })
        }
        Command::OpenSession { nonce, description } => {
            Kind::OpenSession(v1::LogOpenSession { nonce: *nonce, description: description.clone() })
        }
        Command::EndSession { session } => Kind::EndSession(session.0),
        Command::RegisterServer(s) => Kind::RegisterServer(v1::LogServer {
            uuid: s.uuid.to_be_bytes().to_vec().into(),
            address: s.address.clone(),
            http: s.http.clone(),
            zone: s.zone.clone(),
            host: s.host.clone(),
        }),
        Command::SetServerIntent { server, intent } => {
            Kind::SetIntent(v1::LogIntent { server: server.0.into(), drain: *intent == ServerIntent::Draining })
        }
        Command::RemoveServer { server } => Kind::RemoveServer(server.0.into()),
        Command::Reconfigure { handle, expected, next } => {
            Kind::Reconfigure(v1::LogReconfigure { handle: handle.0, expected: expected.0, next: Some(next.into()) })
        }
        Command::FinishShrink { inode, handle, epoch, stored } => {
            let stored = stored.map(Into::into);
            Kind::FinishShrink(v1::LogFinishShrink { inode: inode.0, handle: handle.0, epoch: epoch.0, stored })
        }
        Command::ReapOrphans { inodes } => {
            Kind::ReapOrphans(v1::LogInodes { inodes: inodes.iter().map(|i| i.0).collect() })
        }
        Command::ForgetTombstones { done } => Kind::ForgetTombstones(replicas_out(done)),
        Command::CondemnUnknown { replicas } => Kind::CondemnUnknown(replicas_out(replicas)),
        Command::SkipInodes { count } => Kind::SkipInodes(*count),
    }
}

fn command_in(from: Kind) -> Result<Command, ConvertError> {
    Ok(match from {
        Kind::Client(c) => Command::Client(client_command(SessionId(c.session), need("mutation", c.mutation)?)?),
        Kind::OpenSession(s) => Command::OpenSession { nonce: s.nonce, description: s.description },
        Kind::EndSession(session) => Command::EndSession { session: SessionId(session) },
        Kind::RegisterServer(s) => Command::RegisterServer(server_in(s)?),
        Kind::SetIntent(i) => Command::SetServerIntent {
            server: ServerId(narrow("server", i.server)?),
            intent: if i.drain { ServerIntent::Draining } else { ServerIntent::Active },
        },
        Kind::RemoveServer(server) => Command::RemoveServer { server: ServerId(narrow("server", server)?) },
        Kind::Reconfigure(r) => Command::Reconfigure {
            handle: ChunkHandle(r.handle),
            expected: Epoch(r.expected),
            next: need("configuration", r.next)?.try_into()?,
        },
        Kind::FinishShrink(f) => {
            let (inode, handle, stored) = (InodeId(f.inode), ChunkHandle(f.handle), f.stored.map(Into::into));
            Command::FinishShrink { inode, handle, epoch: Epoch(f.epoch), stored }
        }
        Kind::ReapOrphans(i) => Command::ReapOrphans { inodes: i.inodes.into_iter().map(InodeId).collect() },
        Kind::ForgetTombstones(r) => Command::ForgetTombstones { done: replicas_in(r)? },
        Kind::CondemnUnknown(r) => Command::CondemnUnknown { replicas: replicas_in(r)? },
        Kind::SkipInodes(count) => Command::SkipInodes { count },
    })
}

fn server_in(from: v1::LogServer) -> Result<ServerIdentity, ConvertError> {
    let length = from.uuid.len();
    let uuid = from.uuid[..].try_into().map_err(|_| ConvertError::Length { what: "uuid", length })?;
    Ok(ServerIdentity {
        uuid: u128::from_be_bytes(uuid),
        address: from.address,
        http: from.http,
        zone: from.zone,
        host: from.host,
    })
}

const REFUSALS: [CommandRefusal; 3] =
    [CommandRefusal::UnknownServer, CommandRefusal::ServerInUse, CommandRefusal::TooManyServers];

/// A reply in its durable form.
pub fn encode_command_reply(reply: &CommandReply) -> Vec<u8> {
    use stored_reply::Kind;
    let kind = match reply {
        CommandReply::Client(reply @ Reply::Entry { .. }) => Kind::Entry(reply_to_wire(reply)),
        CommandReply::Client(reply) => Kind::Client(reply_to_wire(reply)),
        CommandReply::Session(session) => Kind::Session(session.0),
        CommandReply::Server(server) => Kind::Server(server.0.into()),
        CommandReply::Configuration(c) => {
            Kind::Configuration(v1::StoredConfiguration { configuration: c.as_ref().map(Into::into) })
        }
        CommandReply::Done => Kind::Done(v1::Empty {}),
        CommandReply::Refused(refusal) => {
            Kind::Refused(REFUSALS.iter().position(|r| r == refusal).map_or(0, |at| at as u32 + 1))
        }
    };
    v1::StoredReply { kind: Some(kind) }.encode_to_vec()
}

/// A reply from its durable form.
///
/// # Errors
/// When the bytes are not a reply.
pub fn decode_command_reply(bytes: &[u8]) -> Result<CommandReply, ConvertError> {
    use stored_reply::Kind;
    let stored = v1::StoredReply::decode(bytes).map_err(|error| ConvertError::Decode(error.to_string()))?;
    Ok(match need("reply", stored.kind)? {
        Kind::Entry(reply) => CommandReply::Client(reply_from_wire(reply)?),
        Kind::Client(reply) => CommandReply::Client(match reply_from_wire(reply)? {
            Reply::Entry { attributes, .. } => Reply::Attributes { attributes, pending_shrink: false },
            other => other,
        }),
        Kind::Session(session) => CommandReply::Session(SessionId(session)),
        Kind::Server(server) => CommandReply::Server(ServerId(narrow("server", server)?)),
        Kind::Configuration(c) => CommandReply::Configuration(c.configuration.map(TryInto::try_into).transpose()?),
        Kind::Done(_) => CommandReply::Done,
        Kind::Refused(code) => {
            let known = REFUSALS.get((code as usize).wrapping_sub(1));
            CommandReply::Refused(*known.ok_or(ConvertError::Value { what: "refusal", value: code.into() })?)
        }
    })
}
