//! Little-endian fields, written and read one after the other. Reading never panics: what is missing is `None`.

use gfs_core::ids::{Epoch, OperationId, Sequence, ServerId, SessionId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::OperationRecord;

/// Bytes of an encoded operation record.
pub(crate) const OPERATION: usize = 32;

/// Writes fields.
#[derive(Default)]
pub(crate) struct Put(pub Vec<u8>);

impl Put {
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// epoch u32, primary u16, members u16, syncing u16, reserved u16, then the servers, u16 each.
    pub fn configuration(&mut self, configuration: &Configuration) -> &mut Self {
        self.u32(configuration.epoch.0).u16(configuration.primary.0);
        self.u16(configuration.members.len() as u16).u16(configuration.syncing.len() as u16).u16(0);
        for server in configuration.members.iter().chain(&configuration.syncing) {
            self.u16(server.0);
        }
        self
    }

    /// session u64, operation u64, sequence u64, offset u64.
    pub fn operation(&mut self, record: &OperationRecord) -> &mut Self {
        self.u64(record.operation.session.0).u64(record.operation.operation);
        self.u64(record.sequence.0).u64(record.offset)
    }
}

/// Reads fields.
pub(crate) struct Take<'a>(pub &'a [u8]);

impl<'a> Take<'a> {
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn configuration(&mut self) -> Option<Configuration> {
        let epoch = Epoch(self.u32()?);
        let primary = ServerId(self.u16()?);
        let (members, syncing) = (self.u16()?, self.u16()?);
        self.u16()?;
        let mut servers = |count: u16| (0..count).map(|_| self.u16().map(ServerId)).collect::<Option<Vec<_>>>();
        Some(Configuration { epoch, primary, members: servers(members)?, syncing: servers(syncing)? })
    }

    pub fn operation(&mut self) -> Option<OperationRecord> {
        let operation = OperationId { session: SessionId(self.u64()?), operation: self.u64()? };
        Some(OperationRecord { operation, sequence: Sequence(self.u64()?), offset: self.u64()? })
    }

    pub fn operations(&mut self, count: u32) -> Option<Vec<OperationRecord>> {
        if self.0.len() / OPERATION < count as usize {
            return None;
        }
        (0..count).map(|_| self.operation()).collect()
    }
}
