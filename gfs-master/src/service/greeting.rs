//! The first words of a session's stream: who it is, and what it holds.
//!
//! This room owns the welcome. Nothing is asked over a stream before it.

use super::failure;
use super::session::failing;
use crate::leader::Leader;
use crate::leader::commit_times::Shown;
use crate::leader::sessions::{Connection, Outgoing};
use gfs_core::ids::{InodeId, OperationId, SessionId};
use gfs_core::meta::grants::Touched;
use gfs_core::meta::request::Timestamp;
use gfs_proto::PROTOCOL;
use gfs_proto::convert::open_mode_from_wire;
use gfs_proto::v1::{self, failure::Code, server_message::Body};
use std::sync::Arc;

/// Longest description that is kept.
const MAX_DESCRIPTION: usize = 200;

/// Opens or resumes the session and says welcome.
pub(super) async fn greet(
    leader: &Arc<Leader>,
    hello: &v1::Hello,
    outgoing: &Outgoing,
    tag: u64,
) -> Result<(SessionId, Connection), v1::Failure> {
    if hello.protocol != PROTOCOL {
        let text = format!("this master speaks protocol {PROTOCOL}, the client {}", hello.protocol);
        return Err(failing(Code::Protocol, &text));
    }
    let cluster = leader.cluster();
    if !hello.cluster.is_empty() && hello.cluster[..] != cluster.0.to_be_bytes() {
        return Err(failing(Code::WrongCluster, &format!("this master serves cluster {cluster}")));
    }
    if !leader.consensus.is_leader() {
        return Err(failing(Code::NotLeader, "not the leader"));
    }
    let description: String = hello.description.chars().take(MAX_DESCRIPTION).collect();
    let known = |session| hello.session != 0 && leader.machine.state().sessions().get(session).is_some();
    let mut session = SessionId(hello.session);
    let mut resumed = known(session);
    let mut connection = if resumed { leader.sessions.connect(session, &description) } else { None };
    if connection.is_none() {
        resumed = false;
        // The nonce finds the session again whose Welcome was lost, but not one that has ended since.
        session = leader.open_session(hello.nonce, &description).await.map_err(|error| failure(&error))?;
        connection = leader.sessions.connect(session, &description);
    }
    let Some(connection) = connection else {
        return Err(failing(Code::SessionExpired, "the session has ended: open a new one with another nonce"));
    };
    // Before it said hello it has dropped what it had cached.
    leader.gate.disconnected(session);
    let written = reclaim(leader, session, &connection, hello)?;
    if !written.is_empty() {
        // What an earlier process has granted it has granted knowing of the writer.
        let touched = Touched { inodes: written, entries: Vec::new() };
        drop(leader.gate.withdraw(&leader.sessions, touched, session).await);
    }
    let shown = |of: &v1::ShownTimes| Shown {
        inode: InodeId(of.inode),
        time: Timestamp(of.time_ns),
        cleared: Timestamp(of.cleared_ns),
    };
    leader.show_again(session, &hello.times.iter().map(shown).collect::<Vec<_>>());
    leader.sessions.reclaimed(session);
    leader.gate.returned(session);
    let answered = if resumed { &hello.answered[..] } else { &[] };
    let welcome = welcome(leader, session, resumed, answered);
    let welcome = v1::ServerMessage { tag, body: Some(Body::Welcome(welcome)) };
    let sent = outgoing.send(Ok(welcome)).await;
    sent.map_err(|_| failing(Code::Stopping, "the client went away"))?;
    leader.sessions.welcomed(session, connection.number, outgoing.clone());
    Ok((session, connection))
}

/// What the session says it holds replaces what was known. Answers what it may write and others may have pages of.
fn reclaim(
    leader: &Leader,
    session: SessionId,
    connection: &Connection,
    hello: &v1::Hello,
) -> Result<Vec<InodeId>, v1::Failure> {
    let mut opens = leader.opens.lock();
    if *connection.replaced.borrow() {
        return Err(failing(Code::Stopping, "the session has come back over another connection"));
    }
    let opens = &mut opens.table;
    opens.begin(session, connection.number);
    if session.0 == hello.session {
        // What they have made meanwhile is held from here on, though they are asked again only later.
        let creating = hello.creating.iter().map(|operation| OperationId { session, operation: *operation });
        creating.for_each(|id| opens.expect(id, connection.number));
    }
    let delegated: Vec<InodeId> =
        hello.reclaim.iter().filter(|file| file.delegated).map(|file| InodeId(file.inode)).collect();
    leader.delegations.reclaim(session, &delegated, !leader.sessions.has_reclaimed(session));
    let mut written = Vec::new();
    for file in hello.reclaim.iter().filter(|file| file.access != 0) {
        let mode = open_mode_from_wire(file.access).map_err(|error| failing(Code::Malformed, &error.to_string()))?;
        if let Err(error) = opens.open(session, InodeId(file.inode), mode, file.count.max(1)) {
            return Err(failing(Code::Overloaded, &error.to_string()));
        }
        if mode.writes() && leader.is_used_elsewhere(opens, InodeId(file.inode), session) {
            written.push(InodeId(file.inode));
        }
    }
    Ok(written)
}

fn welcome(leader: &Leader, session: SessionId, resumed: bool, answered: &[u64]) -> v1::Welcome {
    let state = leader.machine.state();
    v1::Welcome {
        session: session.0,
        cluster: state.cluster().0.to_be_bytes().to_vec().into(),
        generation: state.generation().0.into(),
        lease_ms: leader.options.session_lease.as_millis() as u32,
        chunk_size: state.chunk_size(),
        replicas: state.default_replicas().into(),
        version: env!("CARGO_PKG_VERSION").into(),
        incarnation: leader.incarnation,
        resumed,
        // Their answers came before they were on stable storage, and did not get there.
        lost: state.sessions().unknown(session, answered),
    }
}
