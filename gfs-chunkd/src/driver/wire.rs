//! Core types to data frames and back.

use super::slot::State;
use crate::store::{BlockInfo, StoreError};
use bytes::Bytes;
use gfs_core::ids::{BlockVersion, ChunkHandle, Epoch, OperationId, Sequence, SessionId};
use gfs_core::meta::request::{Configuration, ServerAddress};
use gfs_core::replica::{Message, OperationRecord, Outcome, PreparedWrite, SettledAs, Status, Ticket, WriteKind};
use gfs_proto::convert::{ConvertError, servers_to_wire};
use gfs_proto::v1::{self, data_reply, data_request::Op};

/// The wire's name of a status.
pub fn status_to_wire(status: Status) -> data_reply::Status {
    use data_reply::Status as Wire;
    match status {
        Status::Ok => Wire::Ok,
        Status::StaleEpoch => Wire::StaleEpoch,
        Status::NotPrimary => Wire::NotPrimary,
        Status::NotMember => Wire::NotMember,
        Status::NoChunk => Wire::NoChunk,
        Status::NoLease => Wire::NoLease,
        Status::Busy => Wire::Busy,
        Status::Corrupt => Wire::Corrupt,
        Status::IoError => Wire::IoError,
        Status::NoSpace => Wire::NoSpace,
        Status::NoRoom => Wire::NoRoom,
        Status::Malformed => Wire::Malformed,
        Status::TimedOut => Wire::TimedOut,
        Status::Fenced => Wire::Fenced,
        Status::OutOfOrder => Wire::OutOfOrder,
    }
}

/// The core's name of a status that a chunk server answered.
pub fn status_from_wire(status: i32) -> Status {
    use data_reply::Status as Wire;
    match Wire::try_from(status) {
        Ok(Wire::Ok) => Status::Ok,
        Ok(Wire::StaleEpoch) => Status::StaleEpoch,
        Ok(Wire::NotPrimary) => Status::NotPrimary,
        Ok(Wire::NotMember) => Status::NotMember,
        Ok(Wire::NoChunk) => Status::NoChunk,
        Ok(Wire::NoLease) => Status::NoLease,
        Ok(Wire::Busy) => Status::Busy,
        Ok(Wire::Corrupt) => Status::Corrupt,
        Ok(Wire::IoError) => Status::IoError,
        Ok(Wire::NoSpace) => Status::NoSpace,
        Ok(Wire::NoRoom) => Status::NoRoom,
        Ok(Wire::Malformed | Wire::WrongCluster) => Status::Malformed,
        Ok(Wire::TimedOut) => Status::TimedOut,
        Ok(Wire::Fenced) => Status::Fenced,
        // A payload that was damaged on the way is sent again, like one that came too early.
        Ok(Wire::OutOfOrder | Wire::BadCrc) => Status::OutOfOrder,
        Err(_) => Status::IoError,
    }
}

/// How an error of the store is answered.
pub fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::NoChunk { .. } => Status::NoChunk,
        StoreError::Corrupt { .. } => Status::Corrupt,
        StoreError::NoSpace { .. } => Status::NoSpace,
        StoreError::OutOfOrder { .. } => Status::OutOfOrder,
        StoreError::Malformed { .. } | StoreError::BadPayload { .. } => Status::Malformed,
        StoreError::Exists { .. }
        | StoreError::DiskFailed { .. }
        | StoreError::NotAdopted
        | StoreError::WrongDisk { .. }
        | StoreError::Locked { .. }
        | StoreError::Journal { .. }
        | StoreError::Io { .. } => Status::IoError,
    }
}

/// A reply that says nothing but how it ended.
pub fn reply(status: Status) -> v1::DataReply {
    v1::DataReply { status: status_to_wire(status).into(), ..v1::DataReply::default() }
}

/// A refusal with a text for people.
pub fn refusal(status: data_reply::Status, message: impl Into<String>) -> v1::DataReply {
    v1::DataReply { status: status.into(), message: message.into(), ..v1::DataReply::default() }
}

/// The reply to a request that the replica answered.
pub fn outcome_to_wire(
    outcome: &Outcome,
    state: &State,
    servers: impl Fn(&Configuration) -> Vec<v1::Server>,
) -> v1::DataReply {
    let mut out = reply(outcome.status);
    out.offset = outcome.offset;
    out.sequence = outcome.sequence.0;
    out.settled = outcome.settled.as_ref().map(settled_to_wire);
    out.cut = outcome.cut.0;
    out.stored = outcome.stored.map(Into::into);
    if let (true, Some(known)) = (tells_configuration(outcome.status), state.replica.configuration()) {
        out.configuration = Some(known.into());
        out.servers = servers(known);
    }
    if outcome.status == Status::Busy {
        out.retry_after_ms = 20;
    }
    out
}

/// Whether the asker needs to know the configuration.
pub fn tells_configuration(status: Status) -> bool {
    matches!(status, Status::StaleEpoch | Status::NotPrimary | Status::NotMember)
}

fn settled_to_wire(from: &SettledAs) -> v1::SettledAs {
    v1::SettledAs { prepared: from.prepared.0, suspect: from.suspect, trusted: from.trusted, base: from.base.0 }
}

/// What a member answered.
pub fn outcome_from_wire(from: &v1::DataReply) -> Outcome {
    let settled = from.settled.as_ref().map(|settled| SettledAs {
        prepared: Sequence(settled.prepared),
        suspect: settled.suspect,
        trusted: settled.trusted,
        base: Sequence(settled.base),
    });
    let (status, cut, stored) = (status_from_wire(from.status), Epoch(from.cut), from.stored.map(Into::into));
    Outcome { status, offset: from.offset, sequence: Sequence(from.sequence), settled, cut, stored }
}

/// The configuration that a peer told, if it did and it can be understood.
pub fn told_configuration(from: Option<v1::Configuration>) -> Option<Configuration> {
    from.and_then(|wire| Configuration::try_from(wire).ok())
}

/// Servers with their addresses.
pub fn addresses_to_wire(list: &[ServerAddress]) -> Vec<v1::Server> {
    servers_to_wire(list)
}

/// A message of a primary.
pub struct Outgoing<'a> {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The configuration in force at the primary.
    pub configuration: &'a Configuration,
    /// Addresses of its servers.
    pub servers: Vec<v1::Server>,
    /// The file, as far as it is known.
    pub inode: u64,
    /// The chunk's place there.
    pub index: u32,
    /// CRC of the payload of a prepare.
    pub crc: u32,
}

/// Puts a primary's message into a request.
pub fn message_to_wire(message: &Message, out: Outgoing<'_>) -> v1::DataRequest {
    let mut request = v1::DataRequest {
        handle: out.handle.0,
        epoch: out.configuration.epoch.0,
        inode: out.inode,
        ..v1::DataRequest::default()
    };
    request.op = Some(match message {
        Message::Settle { committed, prepared } => Op::Settle(v1::Settle {
            committed: committed.0,
            configuration: Some(out.configuration.into()),
            servers: out.servers,
            prepared: prepared.0,
            index: out.index,
        }),
        Message::Prepare { write, confirmed, committed } => {
            request.session = write.operation.session.0;
            request.operation = write.operation.operation;
            request.confirmed = *confirmed;
            Op::Prepare(v1::Prepare {
                sequence: write.version.sequence.0,
                offset: write.offset,
                length: write.length,
                crc: out.crc,
                kind: write.kind as u32,
                committed: committed.0,
                configuration: Some(out.configuration.into()),
                append: write.append,
                servers: Vec::new(),
                write_epoch: write.version.epoch.0,
            })
        }
        Message::Committed(sequence) => Op::Committed(v1::Committed { sequence: sequence.0 }),
        // The ticket stays here: it is remembered with the call.
        Message::Flush { committed, .. } => Op::Flush(v1::Flush { sequence: committed.0 }),
    });
    request
}

/// A message of a primary as it arrived, with the configuration that came with it.
pub fn message_from_wire(request: &v1::DataRequest) -> Result<Option<(Message, Option<Configuration>)>, ConvertError> {
    let known = |wire: &Option<v1::Configuration>| wire.clone().map(Configuration::try_from).transpose();
    Ok(Some(match &request.op {
        Some(Op::Settle(settle)) => {
            let message =
                Message::Settle { committed: Sequence(settle.committed), prepared: Sequence(settle.prepared) };
            (message, known(&settle.configuration)?)
        }
        Some(Op::Prepare(prepare)) => {
            let kind = WriteKind::from_number(prepare.kind)
                .ok_or(ConvertError::Value { what: "kind", value: prepare.kind.into() })?;
            let operation = OperationId { session: SessionId(request.session), operation: request.operation };
            let version = BlockVersion { epoch: Epoch(prepare.write_epoch), sequence: Sequence(prepare.sequence) };
            let (offset, length, append) = (prepare.offset, prepare.length, prepare.append);
            let write = PreparedWrite { version, operation, kind, offset, length, append };
            let committed = Sequence(prepare.committed);
            (Message::Prepare { write, confirmed: request.confirmed, committed }, known(&prepare.configuration)?)
        }
        Some(Op::Committed(committed)) => (Message::Committed(Sequence(committed.sequence)), None),
        Some(Op::Flush(flush)) => (Message::Flush { ticket: Ticket(0), committed: Sequence(flush.sequence) }, None),
        _ => return Ok(None),
    }))
}

/// A block's version and checksum.
pub fn block_to_wire(info: &BlockInfo) -> v1::BlockInfo {
    let BlockInfo { version, crc, zeroed } = *info;
    v1::BlockInfo { epoch: version.epoch.0, sequence: version.sequence.0, crc, zeroed }
}

/// The same from the wire.
pub fn block_from_wire(info: &v1::BlockInfo) -> BlockInfo {
    let version = BlockVersion { epoch: Epoch(info.epoch), sequence: Sequence(info.sequence) };
    BlockInfo { version, crc: info.crc, zeroed: info.zeroed }
}

/// A record of the operation table.
pub fn operation_to_wire(record: &OperationRecord) -> v1::OperationRecord {
    v1::OperationRecord {
        session: record.operation.session.0,
        operation: record.operation.operation,
        sequence: record.sequence.0,
        offset: record.offset,
    }
}

/// The same from the wire.
pub fn operation_from_wire(record: &v1::OperationRecord) -> OperationRecord {
    OperationRecord {
        operation: OperationId { session: SessionId(record.session), operation: record.operation },
        sequence: Sequence(record.sequence),
        offset: record.offset,
    }
}

/// Whether a payload is what its sender summed.
pub fn is_whole(payload: &Bytes, crc: u32) -> bool {
    gfs_net::crc32c(payload) == crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::ids::ServerId;

    #[test]
    fn a_prepare_survives_the_wire() {
        let configuration = Configuration {
            epoch: Epoch(5),
            primary: ServerId(1),
            members: vec![ServerId(1), ServerId(2)],
            syncing: vec![ServerId(3)],
        };
        let write = PreparedWrite {
            version: BlockVersion { epoch: Epoch(4), sequence: Sequence(9) },
            operation: OperationId { session: SessionId(7), operation: 8 },
            kind: WriteKind::Truncate,
            offset: 4096,
            length: 100,
            append: true,
        };
        let message = Message::Prepare { write, confirmed: 6, committed: Sequence(8) };
        let out = Outgoing {
            handle: ChunkHandle(77),
            configuration: &configuration,
            servers: Vec::new(),
            inode: 3,
            index: 2,
            crc: 1,
        };
        let wire = message_to_wire(&message, out);
        assert_eq!((wire.handle, wire.epoch, wire.inode), (77, 5, 3));
        assert_eq!(message_from_wire(&wire), Ok(Some((message, Some(configuration)))));
    }

    #[test]
    fn every_status_survives_the_wire() {
        use Status::*;
        let all = [
            Ok, StaleEpoch, NotPrimary, NotMember, NoChunk, NoLease, Busy, Corrupt, IoError, NoSpace, NoRoom,
            Malformed, TimedOut, OutOfOrder,
        ];
        for status in all {
            assert_eq!(status_from_wire(status_to_wire(status).into()), status);
        }
        assert_eq!(status_from_wire(9999), IoError);
    }
}
