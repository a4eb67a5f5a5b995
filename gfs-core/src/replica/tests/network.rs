//! A pretended network: ordered lanes that break, answers that get lost, copies that arrive late.

use super::cluster::Pick;
use crate::ids::{BlockVersion, Epoch, Sequence, ServerId};
use crate::meta::request::Configuration;
use crate::replica::{Message, Mutation, OperationRecord, Outcome, Ticket};
use std::collections::{BTreeMap, VecDeque};

/// What travels between servers.
#[derive(Clone, Debug)]
pub enum Body {
    Message { configuration: Configuration, message: Message, data: Vec<u8> },
    Copy(Copy),
    Query { unsettled: bool },
}

/// A piece of a copy.
#[derive(Clone, Debug)]
pub struct Copy {
    pub committed: Sequence,
    pub first: usize,
    pub blocks: Vec<(BlockVersion, Vec<u8>)>,
    pub last: Option<(u64, Vec<OperationRecord>)>,
}

/// Which answer a sender waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Settle,
    Prepare,
    Nothing,
    Flush(Ticket),
    Copy,
    Query,
}

#[derive(Clone, Debug)]
pub struct Packet {
    pub from: ServerId,
    pub to: ServerId,
    pub epoch: Epoch,
    pub wants: Wants,
    pub body: Body,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub from: ServerId,
    pub to: ServerId,
    pub epoch: Epoch,
    pub wants: Wants,
    pub outcome: Outcome,
    pub configuration: Option<Configuration>,
}

/// A client's request under way.
#[derive(Clone, Debug)]
pub struct Request {
    pub to: ServerId,
    pub epoch: Epoch,
    pub operation: u64,
    pub confirmed: u64,
    pub mutation: Mutation,
    pub data: Vec<u8>,
}

#[derive(Default)]
pub struct Network {
    pub lanes: BTreeMap<(ServerId, ServerId), VecDeque<Packet>>,
    pub replies: Vec<Reply>,
    pub late: Vec<Packet>,
    pub requests: Vec<Request>,
}

impl Network {
    pub fn send(&mut self, packet: Packet) {
        self.lanes.entry((packet.from, packet.to)).or_default().push_back(packet);
    }

    pub fn next(&mut self, pick: &mut Pick) -> Option<Packet> {
        let keys: Vec<_> = self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|(key, _)| *key).collect();
        let key = pick.one(&keys)?;
        self.lanes.get_mut(&key)?.pop_front()
    }

    /// Breaks a lane: what is in it is lost, and its sender learns that.
    pub fn break_lane(&mut self, key: (ServerId, ServerId)) -> Vec<Packet> {
        self.lanes.remove(&key).into_iter().flatten().collect()
    }

    /// A server is gone: so is what was on its way to and from it. Late packets remain.
    pub fn cut(&mut self, server: ServerId) -> Vec<Packet> {
        let keys: Vec<_> = self.lanes.keys().copied().filter(|(from, to)| *from == server || *to == server).collect();
        self.replies.retain(|reply| reply.to != server);
        self.requests.retain(|request| request.to != server);
        keys.into_iter().flat_map(|key| self.break_lane(key)).filter(|packet| packet.from != server).collect()
    }

    pub fn is_quiet(&self) -> bool {
        self.lanes.values().all(VecDeque::is_empty) && self.replies.is_empty() && self.requests.is_empty()
    }
}
